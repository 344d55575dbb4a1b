"""Ports of patches of every class by the bot, and made again by anybody: `portllm verify`."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

from bot import cli
from bot.context import ENGINE
from localhub.server import Server
from tests.tiny import load, load_adapted
from tests.world import BASE, Portllm, World

PORTS = {  # repo: patch, form, policy
    "owner/reapplied": ("owner/dora", "merged", "reapply"),
    "owner/frozen": ("owner/dora", "merged", "freeze"),
    "owner/converted": ("owner/pissa", "both", None),
    "owner/moved": ("owner/saved", "both", None),
}
ASKED = "refs/pr/1"  # without an evaluation the port is a pull request
WEIGHTS = "model.safetensors"
pytestmark = pytest.mark.usefixtures("quick")
SIGNING = (
    "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out signing.pem",
    "openssl pkey -in signing.pem -pubout -out signing.pub",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Four subscriptions, a release that changed rows that a patch holds whole, and its ports."""
    folder = tmp_path_factory.mktemp("world")
    with Server(folder / "hub") as server, pytest.MonkeyPatch.context() as patched:
        world = World(server, folder)
        world.push_kind("dora", use_dora=True)
        world.push_kind("pissa", init_lora_weights="pissa", target_modules=["q_proj"])
        world.push_kind("saved", modules_to_save=["lm_head"], target_modules=["q_proj"])
        for command in SIGNING:
            subprocess.run([*command.split()], cwd=folder, check=True, capture_output=True)
        world.environment["PORTLLM_SIGNING_KEY"] = str(folder / "signing.pem")
        patched.setattr("bot.hub.client.constants", SimpleNamespace(ENDPOINT=server.endpoint))
        for name in ("HF_TOKEN", "PORTLLM_HOME"):
            patched.setenv(name, world.environment[name])
        for patch in ("owner/dora", "owner/pissa", "owner/saved"):
            cli.app(["patch", "add", patch], standalone_mode=False)
        for repo, (patch, form, policy) in PORTS.items():
            subscribe = ["subscribe", patch, "--follow", BASE, "--to", repo, "--as", form]
            subscribe += ["--policy", policy] if policy else []
            cli.app(subscribe, standalone_mode=False)
        release(world)
        world.portllm("bot", "run", "--once", script="-m tests.quick_bot")
        yield world


def release(world: World) -> None:
    """Every weight moves a little, and the first rows of the head by much."""
    shutil.copytree(world.base, world.folder / "old")
    torch.manual_seed(1)
    weights = load_file(world.base / WEIGHTS)
    moved = {name: w + 1e-3 * torch.randn(w.shape) for name, w in weights.items()}
    moved["lm_head.weight"][:10] += 1
    save_file(moved, world.base / WEIGHTS, metadata={"format": "pt"})
    world.push(BASE, world.base, "Second release")


def ported(world: World, repo: str) -> Path:
    where = {"endpoint": world.server.endpoint, "token": world.api.token}
    return Path(snapshot_download(repo, revision=ASKED, **where))


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.state_dict().items()}


def with_change(world: World, patch: str) -> dict[str, torch.Tensor]:
    """The new base with the change that PEFT says the patch made to the old one."""
    old, new = state(load(world.folder / "old")), state(load(world.base))
    changed = state(load_adapted(world.folder / "old", world.folder / patch).merge_and_unload())
    return {name: new[name] + changed[name] - old[name] for name in new}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_a_dora_is_reapplied_or_frozen_as_subscribed(world: World) -> None:
    reapplied = state(load_adapted(world.base, world.folder / "dora").merge_and_unload())
    frozen = with_change(world, "dora")
    assert_close(state(load(ported(world, "owner/reapplied"))), reapplied)
    assert_close(state(load(ported(world, "owner/frozen"))), frozen)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (reapplied[name] - frozen[name]).abs().max() > 1e-3  # the two do differ


@pytest.mark.parametrize(
    ("repo", "patch"), [("owner/converted", "pissa"), ("owner/moved", "saved")]
)
def test_what_only_the_old_base_explains_moves_in_both_forms(
    world: World, repo: str, patch: str
) -> None:
    folder, expected = ported(world, repo), with_change(world, patch)
    assert_close(state(load(folder)), expected)
    adapted = load_adapted(world.base, folder / "adapter").merge_and_unload()
    assert_close(state(adapted), expected)


def test_what_the_vendor_changed_survives_in_rows_that_the_patch_holds(world: World) -> None:
    patch = load_file(world.folder / "saved/adapter_model.safetensors")
    held = patch["base_model.model.lm_head.weight"]
    folder = ported(world, "owner/moved")
    adapted = load_adapted(world.base, folder / "adapter").merge_and_unload()
    for model in (load(folder), adapted):
        moved = model.lm_head.weight.detach() - held
        torch.testing.assert_close(moved[:10], torch.ones(10, 32), rtol=0, atol=0.01)
        assert moved[10:].abs().max() < 0.01


SAID = {
    "owner/reapplied": "Reapplied: dora",
    "owner/frozen": "Frozen: dora",
    "owner/converted": "Converted: pissa",
    "owner/moved": "(modules_to_save)",
}


def test_what_was_done_is_on_record(world: World) -> None:
    recorded = [(p["patch"].partition("@")[0], p["form"], p["policy"], p["state"])
                for p in world.json("ports")]  # fmt: skip
    assert sorted(recorded, key=str) == sorted(((*p, "asked") for p in PORTS.values()), key=str)
    for repo, (patch, form, policy) in PORTS.items():
        folder = ported(world, repo)
        lock = json.loads((folder / "portllm.lock.json").read_text())
        assert (lock["patch"]["repo"], lock["form"], lock["policy"]) == (patch, form, policy)
        card = (folder / "README.md").read_text()
        assert SAID[repo] in card and f"portllm verify {repo}" in card


@pytest.mark.parametrize("repo", ["owner/frozen", "owner/converted"])
def test_a_port_that_is_made_again_is_the_same(portllm: Portllm, world: World, repo: str) -> None:
    key = world.folder / "signing.pub"
    found = portllm.json("verify", f"{repo}@{ASKED}", "--public-key", key)
    assert found["signature"]["is_checked"] and not found["claims"]
    assert (found["engine"], found["ours"]) == (ENGINE, ENGINE)
    names = {file.relative_to(ported(world, repo)).as_posix()
             for file in ported(world, repo).rglob("*") if file.is_file()}  # fmt: skip
    assert {file["name"] for file in found["files"]} == names - {
        "README.md", "portllm.lock.json", ".gitattributes", "model.sig"
    }  # fmt: skip
    assert all(file["equal"] for file in found["files"])


def tampered(world: World, name: str, changes: dict[str, bytes], signed: bool = False) -> str:
    """A copy of a port with some of its files changed."""
    repo, folder = f"owner/{name}", world.folder / name
    shutil.copytree(ported(world, "owner/moved"), folder)
    if not signed:
        (folder / "model.sig").unlink()
    for file, content in changes.items():
        (folder / file).write_bytes(content)
    world.push(repo, folder, "A port, so they say")
    return repo


def edited(world: World, old: str, new: str) -> dict[str, bytes]:
    """The card of a port, with some of its words changed."""
    card = (ported(world, "owner/moved") / "README.md").read_text()
    assert old in card
    return {"README.md": card.replace(old, new).encode()}


def lock_of(world: World, **changes: Any) -> dict[str, bytes]:
    """The lock of a port, with some of its fields changed."""
    lock = json.loads((ported(world, "owner/moved") / "portllm.lock.json").read_text())
    return {"portllm.lock.json": json.dumps(lock | changes).encode()}


def test_files_that_are_not_those_of_the_lock_are_named(portllm: Portllm, world: World) -> None:
    folder = ported(world, "owner/moved")
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    config = (folder / "config.json").read_bytes() + b"\n"
    repo = tampered(world, "changed", {WEIGHTS: bytes(weights), "config.json": config}, True)
    shown = portllm("verify", repo, code=3)
    assert f"differs from the lock in config.json, {WEIGHTS};" in portllm.messages
    assert f"not what was signed in config.json, {WEIGHTS}." in portllm.messages
    assert "made again" not in portllm.messages
    rows = dict(line.split("\t")[::3] for line in shown.splitlines()[1:])
    assert {name for name, held in rows.items() if held != "equal"} == {WEIGHTS, "config.json"}


def test_a_lock_that_lies_is_found_out_by_making_it_again(portllm: Portllm, world: World) -> None:
    files = json.loads(lock_of(world)["portllm.lock.json"])["files"] | {WEIGHTS: "0" * 64}
    del files["tokenizer.json"]
    repo = tampered(world, "lied", lock_of(world, files=files))
    shown = portllm("verify", repo, code=3)
    assert f"made again, it differs from the lock in {WEIGHTS}, tokenizer.json;" in portllm.messages
    assert "its card is not what the lock's evidence says" in portllm.messages
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in shown.splitlines()[1:]}
    assert rows[WEIGHTS][0] == "0" * 64 and "equal" not in rows[WEIGHTS]
    assert rows["tokenizer.json"][0] == "missing" and rows["config.json"][1:] == ["equal"] * 2


def test_a_port_of_another_engine_is_tried_all_the_same(portllm: Portllm, world: World) -> None:
    other = "portllm 0.0.1"
    changes = lock_of(world, engine=other) | edited(world, ENGINE, other)
    repo = tampered(world, "older", changes)
    found = portllm.json("verify", repo)
    assert all(file["equal"] for file in found["files"]) and found["engine"] == "portllm 0.0.1"
    assert "made by portllm 0.0.1" in portllm.messages


def test_what_is_no_port_is_refused(portllm: Portllm, world: World) -> None:
    portllm("verify", "owner/dora", code=3)
    assert "has no portllm.lock.json" in portllm.messages
    repo = tampered(world, "damaged", lock_of(world, patch={"repo": "../../x", "sha": "main"}))
    portllm("verify", repo, code=3)
    assert "damaged (patch.repo" in portllm.messages
    gone = {"repo": "owner/dora", "sha": "0" * 40}
    repo = tampered(world, "gone", lock_of(world, patch=gone))
    portllm("verify", repo, code=3)
    assert f"owner/dora@{'0' * 40} does not exist" in portllm.messages
