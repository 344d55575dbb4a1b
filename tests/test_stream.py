"""`portllm publish`: a merged port of a model that is larger than the disk, by the real client."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from localhub.server import Server
from tests.tiny import raw_adapter

BASE, PATCH = "vendor/base", "owner/patch"
SHARDS, TOUCHED = 12, (0, 10)
SIZE = 2 << 20  # bytes of the one tensor in a shard, (1024, 512) in float32
XET = r"/v1/(xorbs|shards)"

REAL = "What is computed, is in processes of its own."
KILLED = """
import os, signal, sys
from bot import hub
from bot.making import sandbox
from bot.publishing import journal
from bot.cli import main
from tests.quick_bot import computed
sandbox.run = computed
owner, name, calls, when = sys.argv.pop(1).split(",")
place = {"Journal": journal.Journal, "Publisher": hub.HubPublisher}[owner]
original, left = getattr(place, name), [int(calls)]
def dying(*args, **kwargs):
    left[0] -= 1
    if left[0] == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args, **kwargs)
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(place, name, dying)
main()
"""


def shard(number: int) -> str:
    return f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"


def tensor(number: int) -> str:
    return f"model.layers.{number}.mlp.up_proj.weight"


def write_shard(folder: Path, number: int, seed: int) -> None:
    values = torch.randn(1024, 512, generator=torch.Generator().manual_seed(seed))
    save_file({tensor(number): values}, folder / shard(number), metadata={"format": "pt"})


class Shop:
    """A Hub with a base and a patch, and the commands as the owner of the patch runs them."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.token = server.add_user("owner", orgs=("vendor",))
        self.api = HfApi(endpoint=server.endpoint, token=self.token)
        self.base = folder / "base"
        self.base.mkdir()
        for number in range(SHARDS):
            write_shard(self.base, number, seed=number)
        index = {"weight_map": {tensor(number): shard(number) for number in range(SHARDS)}}
        (self.base / "model.safetensors.index.json").write_text(json.dumps(index))
        (self.base / "config.json").write_text(json.dumps({"model_type": "none"}))
        (self.base / "tokenizer.json").write_text("{}")
        self.base_sha = self.push(BASE, self.base)
        modules = {tensor(n).removesuffix(".weight"): (1024, 512) for n in TOUCHED}
        self.patch = raw_adapter(folder / "patch", modules, base_model_name_or_path=BASE)
        self.push(PATCH, self.patch)

    def push(self, repo: str, folder: Path, **options: Any) -> str:
        self.api.create_repo(repo, exist_ok=True, **options)
        return self.api.upload_folder(repo_id=repo, folder_path=folder).oid

    def run(
        self, home: Path, *arguments: str, code: int = 0, script: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        start = ["-c", script] if script else ["-m", "tests.quick_bot"]
        start = ["-m", "bot.cli"] if script == REAL else start
        done = subprocess.run(
            [sys.executable, *start, *arguments],
            env=os.environ
            | {
                "HF_ENDPOINT": self.server.endpoint,
                "HF_TOKEN": self.token,
                "HF_HOME": str(home / "hf"),
                "PORTLLM_HOME": str(home / "home"),
                "TMPDIR": str(home),
                "OMP_NUM_THREADS": "1",
            }
            | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stderr[-3000:]}"
        return done

    def order(self, to: str, base: str = BASE, patch: str = PATCH) -> tuple[str, ...]:
        return ("publish", base, patch, "--to", to, "--old", f"{BASE}@{self.base_sha}", "--json")

    def publish(self, home: Path, to: str, **options: str) -> dict[str, Any]:
        """What the command says of itself, and under `server` what the Hub saw of it."""
        self.server.traffic.clear()
        home.mkdir(exist_ok=True)
        done: dict[str, Any] = json.loads(self.run(home, *self.order(to), **options).stdout)
        return done | {"server": self.seen()}

    def digests(self, repo: str) -> dict[str, str]:
        """sha256 of every file, as anybody can download it."""
        files = self.api.list_repo_files(repo)
        paths = {file: Path(self.api.hf_hub_download(repo, file)) for file in files}
        return {file: hashlib.sha256(path.read_bytes()).hexdigest() for file, path in paths.items()}

    def ports(self, repo: str) -> list[str]:
        titles = (commit.title for commit in self.api.list_repo_commits(repo))
        return [title for title in titles if title.startswith("Port to")]

    def seen(self) -> dict[str, Any]:
        """Bytes of files sent, of large files received, and the shards that were fetched whole."""
        traffic, whole = self.server.traffic, re.compile(r"/vendor/.*/resolve/.*/model-(\d+)-")
        gets = list(traffic.of("/resolve/", "GET"))
        puts = [*traffic.of(XET, "POST"), *traffic.of("^/api/lfs$", "PUT")]
        shards = [(whole.search(each.path), each.status) for each in gets]
        return {
            "sent": sum(each.sent for each in gets),
            "received": sum(each.received for each in puts),
            "shards": [int(match[1]) - 1 for match, status in shards if match and status == 200],
        }


def counted(done: dict[str, Any]) -> bool:
    """Whether the command counted what the Hub did."""
    own, seen = done["bytes"], done["server"]
    down, up = own["read"] + own["downloaded"], own["sent"]
    return bool((down, up) == (seen["sent"], seen["received"]))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    with Server(folder / "hub") as server:
        yield Shop(server, folder)


@pytest.fixture(scope="module")
def whole(shop: Shop) -> dict[str, str]:
    """sha256 of what `portllm port --as merged` writes, which has the whole base at once."""
    home = shop.folder / "whole"
    home.mkdir()
    old = f"{BASE}@{shop.base_sha}"
    order = ("port", BASE, PATCH, "--as", "merged", "--old", old, "--out", str(home / "out"))
    files: dict[str, str] = json.loads(shop.run(home, *order, "--json").stdout)["files"]
    return files


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[list[int]]:
    """A disk of `size` bytes at `folder` where this machine lets us mount one; its use over time.

    Elsewhere the sampled use is all that is known.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    used, over = [0], threading.Event()

    def sample() -> None:
        while not over.is_set():
            blocks = 0
            for parent, _, names in os.walk(folder):
                for name in names:
                    try:
                        blocks += (Path(parent) / name).stat().st_blocks
                    except FileNotFoundError:
                        continue
            used.append(blocks * 512)
            time.sleep(0.005)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield used
    finally:
        over.set()
        thread.join()
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_model_larger_than_the_disk(shop: Shop, whole: dict[str, str], tmp_path: Path) -> None:
    limit = 3 * SIZE
    with small_disk(tmp_path / "disk", limit) as used:
        done = shop.publish(tmp_path / "disk", "owner/streamed", script=REAL)
        left = [path for path in (tmp_path / "disk/home/work").rglob("*") if path.is_file()]
    assert left == []
    assert SIZE < max(used) <= limit < SHARDS * SIZE

    assert {file["file"]: file["sha256"] for file in done["files"]} == whole
    held = shop.digests("owner/streamed")
    assert {file: held[file] for file in whole} == whole
    assert held.keys() - whole.keys() == {".gitattributes", "README.md", "portllm.lock.json"}
    assert done["server"]["shards"] == list(TOUCHED)
    how = {file["file"]: file["how"] for file in done["files"]}
    ported = {shard(number) for number in TOUCHED}
    assert {file for file in how if how[file] == "ported"} == ported
    assert {file for file in how if how[file] == "copied"} == {
        shard(number) for number in range(SHARDS) if number not in TOUCHED
    }
    size = (shop.base / shard(0)).stat().st_size
    count = done["bytes"]
    assert counted(done)
    assert count["uploaded"] == len(TOUCHED) * size
    assert count["copied"] == (SHARDS - len(TOUCHED)) * size
    assert len(shop.ports("owner/streamed")) == 1

    shop.run(tmp_path, "verify", "owner/streamed")
    card = Path(shop.api.hf_hub_download("owner/streamed", "README.md")).read_text()
    assert f"base_model:\n- {BASE}\n" in card and "not judged" in card


def test_a_file_that_the_hub_can_not_copy_is_moved(
    shop: Shop, whole: dict[str, str], tmp_path: Path
) -> None:
    shop.server.faults.add("/lfs-files/duplicate", status=403, times=1)  # another region, say
    done = shop.publish(tmp_path, "owner/moved")
    how = [file["how"] for file in done["files"]]
    assert (how.count("ported"), how.count("moved")) == (len(TOUCHED), SHARDS - len(TOUCHED))
    assert sorted(done["server"]["shards"]) == list(range(SHARDS))
    assert counted(done)
    assert done["bytes"]["copied"] == 0 and len(shop.ports("owner/moved")) == 1
    held = shop.digests("owner/moved")
    assert {file: held[file] for file in whole} == whole


def test_without_xet_files_are_sent_whole_and_once(
    shop: Shop, whole: dict[str, str], tmp_path: Path
) -> None:
    dying = "Journal,add,1,before"  # uploaded, and nobody knows
    order, plain = shop.order("owner/plain"), {"HF_HUB_DISABLE_XET": "1"}
    shop.run(tmp_path, dying, *order, script=KILLED, code=-signal.SIGKILL, **plain)
    done = shop.publish(tmp_path, "owner/plain", **plain)
    size = (shop.base / shard(0)).stat().st_size
    assert counted(done) and done["bytes"]["sent"] == (len(TOUCHED) - 1) * size
    held = shop.digests("owner/plain")
    assert {file: held[file] for file in whole} == whole


KILLS = [
    ("Journal,add,1,after", (1, 1)),
    ("Publisher,commit,1,before", (1, 2)),
    ("Publisher,tag,1,before", (0, 0)),
]


@pytest.mark.parametrize(("dying", "done_before"), KILLS)
def test_killed_it_goes_on_where_it_was(
    shop: Shop, whole: dict[str, str], tmp_path: Path, dying: str, done_before: tuple[int, int]
) -> None:
    again, resumed = done_before
    to = f"owner/killed-{KILLS.index((dying, done_before))}"
    shop.run(tmp_path, dying, *shop.order(to), script=KILLED, code=-signal.SIGKILL)
    if again:
        assert shop.api.list_repo_files(to) == [".gitattributes"]
        assert len(shop.api.list_repo_commits(to)) == 1

    done = shop.publish(tmp_path, to)

    how = [file["how"] for file in done["files"]]
    assert how.count("resumed") == resumed
    assert done["server"]["shards"] == list(TOUCHED[resumed:] if again else ())
    assert len(shop.ports(to)) == 1 and len(shop.api.list_repo_commits(to)) == 2
    head = shop.api.model_info(to).sha
    assert [tag.target_commit for tag in shop.api.list_repo_refs(to).tags] == [head]
    held = shop.digests(to)
    assert {file: held[file] for file in whole} == whole
    assert not list((tmp_path / "home/work").rglob("*"))


def test_what_the_hub_forgot_is_not_counted_on_again(shop: Shop, tmp_path: Path) -> None:
    to, dying = "owner/forgotten", "Publisher,commit,1,before"
    shop.run(tmp_path, dying, *shop.order(to), script=KILLED, code=-signal.SIGKILL)
    for note in shop.server.root.glob(f"repos/models/{to}.git/localhub/lfs/*"):
        note.unlink()  # as the Hub drops what no commit refers to
    failed = shop.run(tmp_path, *shop.order(to), code=4)
    assert "no longer has a file" in failed.stderr and shop.ports(to) == []
    [journal] = tmp_path.glob("home/work/*/journal.json")
    assert journal.read_text() == "{}"  # so the next attempt takes nothing for uploaded


def test_the_next_release_costs_what_changed(shop: Shop, tmp_path: Path) -> None:
    """One touched and one untouched shard changed; all others stay where they are."""
    base = tmp_path / "base"
    base.mkdir()
    for file in shop.base.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    shop.push("vendor/moving", base)
    order = ("publish", "vendor/moving", PATCH, "--to", "owner/moving", "--json")
    old = ("--old", f"{BASE}@{shop.base_sha}")
    shop.run(tmp_path, *order, *old)
    for number in (4, 10):
        write_shard(base, number, seed=100 + number)
    shop.push("vendor/moving", base)
    shop.server.traffic.clear()

    done = json.loads(shop.run(tmp_path, *order, *old).stdout) | {"server": shop.seen()}

    how = {file["file"]: file["how"] for file in done["files"]}
    large = {number: how[shard(number)] for number in range(SHARDS)}
    assert large == dict.fromkeys(range(SHARDS), "kept") | {4: "copied", 10: "ported"}
    assert done["server"]["shards"] == [10]
    assert counted(done)
    assert len(shop.ports("owner/moving")) == 2
    merged = tmp_path / "merged"
    shop.run(tmp_path, "port", "vendor/moving", PATCH, "--as", "merged", *old, "--out", str(merged))
    held = shop.digests("owner/moving")
    assert all(
        held[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
        for path in merged.iterdir()
    )


def test_a_port_of_a_closed_base_is_closed(shop: Shop, tmp_path: Path) -> None:
    shop.push("vendor/closed", shop.base)
    shop.api.update_repo_settings("vendor/closed", gated="manual")
    shop.run(tmp_path, *shop.order("owner/closed", base="vendor/closed"))
    made = shop.api.model_info("owner/closed")
    assert (made.private, made.gated) == (False, "manual")

    shop.api.update_repo_settings("vendor/closed", gated=False, visibility="private")
    shop.api.create_repo("owner/wide-open")
    order = shop.order("owner/wide-open", base="vendor/closed")
    refused = shop.run(tmp_path, *order, code=3)
    assert "is public, but a base or the patch is private or gated" in refused.stderr
    assert shop.ports("owner/wide-open") == []


def test_private_is_private_or_refused(shop: Shop, tmp_path: Path) -> None:
    shop.api.create_repo("owner/open")
    refused = shop.run(tmp_path, *shop.order("owner/open"), "--private", code=3)
    assert "owner/open is public" in refused.stderr


def test_what_is_not_a_port_of_the_patch_is_left_alone(shop: Shop, tmp_path: Path) -> None:
    shop.push("owner/other", shop.base)
    before = shop.api.model_info("owner/other").sha
    assert (
        "holds weights that no port wrote"
        in shop.run(tmp_path, *shop.order("owner/other"), code=3).stderr
    )
    assert shop.api.model_info("owner/other").sha == before
    shop.run(tmp_path, *shop.order(BASE), code=2)
    shop.run(tmp_path, *shop.order("owner/x@main"), code=2)
    shop.run(tmp_path, *shop.order("owner/x"), "--policy", "freeze", code=2)
    assert not shop.api.repo_exists("owner/x")
