"""The hub through git itself."""

import os
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import get_session

from localhub.server import Server

IDENTITY = {
    "HOME": "/nonexistent",
    "PATH": os.environ["PATH"],
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(*args: str | Path, check: bool = True) -> str:
    done = subprocess.run(["git", *map(str, args)], env=IDENTITY, capture_output=True, check=False)
    if check:
        assert done.returncode == 0, done.stderr.decode()
    return (done.stdout + done.stderr).decode()


@pytest.fixture
def api(hub: Server) -> HfApi:
    api = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice"))
    api.create_repo("alice/m")
    return api


def commit(api: HfApi, path: str, content: bytes, **more) -> str:
    operations = [CommitOperationAdd(path, content)]
    return api.create_commit("alice/m", operations, commit_message="change", **more).oid


@pytest.mark.parametrize("protocol", ["0", "2"])
@pytest.mark.parametrize("ending", ["", ".git"])
def test_clone_and_fetch(
    hub: Server, api: HfApi, tmp_path: Path, protocol: str, ending: str
) -> None:
    config = ("-c", f"protocol.version={protocol}")
    first = commit(api, "a.txt", b"one\n")
    clone = tmp_path / "clone"
    git(*config, "clone", "-q", f"{hub.endpoint}/alice/m{ending}", clone)
    assert git("-C", clone, "rev-parse", "HEAD").strip() == first
    assert (clone / "a.txt").read_text() == "one\n"
    second = commit(api, "a.txt", b"two\n")
    git("-C", clone, *config, "pull", "-q")
    assert git("-C", clone, "rev-parse", "HEAD").strip() == second
    git("-C", clone, "fsck", "--strict")
    pull = api.create_commit(
        "alice/m", [CommitOperationAdd("p", b"")], commit_message="pull", create_pr=True
    )
    git("-C", clone, *config, "fetch", "-q", "origin", "refs/pr/1:pr")
    assert git("-C", clone, "rev-parse", "pr").strip() == pull.oid
    refused = git("-C", clone, "push", "origin", "HEAD:main", check=False)
    assert "403" in refused


def test_large_files_are_lfs_pointers(hub: Server, api: HfApi, tmp_path: Path) -> None:
    content = os.urandom(50_000)
    commit(api, "odd name.xyz", content + b"\0")
    clone = tmp_path / "clone"
    git("clone", "-q", hub.endpoint + "/alice/m", clone)
    pointer = (clone / "odd name.xyz").read_text()
    assert pointer.startswith("version https://git-lfs.github.com/spec/v1\noid sha256:")
    attribute = git("-C", clone, "check-attr", "filter", "--", "odd name.xyz")
    assert attribute.strip().endswith("filter: lfs")
    raw = get_session().get(f"{hub.endpoint}/alice/m/raw/main/odd%20name.xyz")
    assert raw.text == pointer
    oid = pointer.split("sha256:")[1].split()[0]
    # what git-lfs does with the pointer
    url = f"{hub.endpoint}/alice/m.git/info/lfs/objects/batch"
    body = {"operation": "download", "transfers": ["basic"], "objects": [{"oid": oid, "size": 1}]}
    answer = get_session().post(url, json=body).json()
    action = answer["objects"][0]["actions"]["download"]
    assert get_session().get(action["href"]).content == content + b"\0"


def test_private_clone_wants_the_token(hub: Server, api: HfApi, tmp_path: Path) -> None:
    sha = commit(api, "a.txt", b"one\n")
    api.update_repo_settings("alice/m", private=True)
    assert "could not read Username" in git(
        "clone", hub.endpoint + "/alice/m", tmp_path / "no", check=False
    )
    address = hub.endpoint.replace("http://", f"http://alice:{api.token}@")
    git("clone", "-q", f"{address}/alice/m", tmp_path / "yes")
    assert git("-C", tmp_path / "yes", "rev-parse", "HEAD").strip() == sha
