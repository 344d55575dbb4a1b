"""Publishing by shards what needs more than one shard: values of the old base, a head cut loose."""

import fcntl
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from bot.context import Job, made_job
from bot.hub import Hub, HubPublisher
from bot.making.make import make_in
from bot.making.remote import Remote
from bot.making.sandbox import silent
from bot.publishing.stream import publish_streamed
from localhub.server import Server
from porting.errors import Refused, UsageError
from tests.tiny import save_adapter, save_base

Q = ["model.layers.1.self_attn.q_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "modules_to_save": {"target_modules": Q, "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": Q, "trainable_token_indices": {"embed_tokens": [3, 4, 90]}},
    "pissa": {"target_modules": Q, "init_lora_weights": "pissa"},
    "freeze": {"target_modules": Q, "use_dora": True},
    "tied head": {"target_modules": ["lm_head"]},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("hub")) as server:
        yield server


def noisy(file: Path, seed: int, matching: str) -> None:
    """Move every tensor whose name matches a little."""
    torch.manual_seed(seed)
    tensors = load_file(file)
    for name, value in tensors.items():
        if re.search(matching, name):
            tensors[name] = value + 0.01 * torch.randn_like(value)
    save_file(tensors, file, metadata={"format": "pt"})


def pushed(server: Server, tmp_path: Path, kind: str) -> tuple[Hub, Job]:
    """Two releases of a base in two shards, and a patch of `kind` that was trained on the first."""
    api = HfApi(endpoint=server.endpoint, token=server.add_user("owner"))
    name = kind.replace(" ", "-")

    def push(repo: str, folder: Path) -> str:
        api.create_repo(repo, exist_ok=True)
        return api.upload_folder(repo_id=repo, folder_path=folder).oid

    base = save_base(tmp_path / "base", tied=kind == "tied head", shard_size="40KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    patch = save_adapter(tmp_path / "patch", base, r=4, **KINDS[kind])
    noisy(patch / "adapter_model.safetensors", 1, "^(?!.*lora_)")
    old_sha = push(f"owner/{name}-base", base)
    for number, file in enumerate(sorted(base.glob("*.safetensors"))):
        noisy(file, number, "")
    job = made_job(
        "hand",
        patch_repo=f"owner/{name}-patch",
        patch_sha=push(f"owner/{name}-patch", patch),
        old_repo=f"owner/{name}-base",
        old_sha=old_sha,
        new_repo=f"owner/{name}-base",
        new_sha=push(f"owner/{name}-base", base),
        form="merged",
        to_repo=f"owner/{name}",
        policy="freeze" if kind == "freeze" else None,
    )
    return Hub(server.endpoint, api.token), job


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_whole_port_writes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("porting.base.layout.FIRST_READ", 1024)  # else it reads these files whole
    hub, job = pushed(server, tmp_path, kind)
    server.traffic.clear()
    trained = Remote(hub, job.patch_repo, job.patch_sha)

    parts = publish_streamed(
        job, trained, HubPublisher(hub), tmp_path / "work", False, silent
    ).parts

    whole = [
        e for e in server.traffic.of(f"/resolve/{job.old_sha}/.*safetensors$") if e.status == 200
    ]
    assert whole == []  # of the old base, nothing but ranges
    sent = sum(exchange.sent for exchange in server.traffic.of("/resolve/", "GET"))
    assert hub.traffic.read + hub.traffic.downloaded == sent
    made = make_in(tmp_path / "whole", job.inputs(hub), silent)
    assert parts is not None
    assert {f"merged/{file}": digest for file, digest in parts.digests.items()} == made
    assert {parts.how[file] for file in parts.how} <= {"ported", "copied", "written"}
    assert "ported" in parts.how.values()


def test_without_room_for_a_shard_none_is_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, job = pushed(server, tmp_path, "tokens")
    full = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr("bot.publishing.shards.shutil.disk_usage", lambda _: full)
    server.traffic.clear()
    with pytest.raises(Refused, match="has 50,000 bytes free, and one shard and its port take up"):
        publish_streamed(
            job,
            Remote(hub, job.patch_repo, job.patch_sha),
            HubPublisher(hub),
            tmp_path / "work",
            False,
            silent,
        )
    fetched = server.traffic.of(f"/resolve/{job.new_sha}/.*safetensors$", "GET")
    assert [exchange for exchange in fetched if exchange.status == 200] == []
    assert hub.commit_with(job.to_repo, f"PortLLM-Port: {job.key}") is None


def test_two_at_once_do_not_share_a_folder(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    hub = Hub("http://127.0.0.1:9")  # nobody is asked
    job = made_job(
        "hand",
        patch_repo="owner/patch", patch_sha="", old_repo="", old_sha="", new_repo="", new_sha="",
        form="merged", to_repo="owner/port", policy=None,
    )  # fmt: skip
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="owner/port is being published by another process"):
            publish_streamed(
                job, Remote(hub, "owner/patch", ""), HubPublisher(hub), work, False, silent
            )
