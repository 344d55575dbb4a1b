"""A repository has the large files that were given to it, and nobody else's; as on the Hub."""

import hashlib
import os
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, HfApi
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from huggingface_hub.utils import get_session

from localhub.server import Server

WEIGHTS = os.urandom(300_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


class People:
    """Alice has a model; Bob has an empty repository."""

    def __init__(self, hub: Server) -> None:
        self.hub = hub
        self.alice = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice"))
        self.bob = HfApi(endpoint=hub.endpoint, token=hub.add_user("bob"))
        self.alice.create_repo("alice/model")
        self.bob.create_repo("bob/model")

    def upload(self) -> None:
        add = CommitOperationAdd("model.safetensors", WEIGHTS)
        self.alice.create_commit("alice/model", [add], commit_message="weights")

    def claim(self) -> None:
        """Bob commits a file that he knows by name only."""
        add = CommitOperationAdd("model.safetensors", b"")
        digest = bytes.fromhex(SHA256)
        add.upload_info = UploadInfo(size=len(WEIGHTS), sample=b"", sha256=digest)
        add._upload_mode, add._is_uploaded = "lfs", True
        self.bob.create_commit("bob/model", [add], commit_message="mine")

    def copy(self) -> None:
        copy = CommitOperationCopy(
            "model.safetensors",
            "copy.safetensors",
            src_repo_id="alice/model",
            src_repo_type="model",
        )
        self.bob.create_commit("bob/model", [copy], commit_message="copy")


@pytest.fixture(params=[True, False], ids=["xet", "lfs"])
def people(hub: Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> People:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", not request.param)
    people = People(hub)
    people.upload()
    return people


def test_a_sha256_alone_gives_nothing(people: People) -> None:
    with pytest.raises(BadRequestError, match="LFS pointer pointed to a file that does not exist"):
        people.claim()
    headers = {"Authorization": f"Bearer {people.bob.token}"}
    url = f"{people.hub.endpoint}/bob/model.git/info/lfs/objects/{SHA256}"
    assert get_session().get(url, headers=headers).status_code == 404
    batch = get_session().post(
        f"{people.hub.endpoint}/bob/model.git/info/lfs/objects/batch",
        json={"operation": "download", "objects": [{"oid": SHA256, "size": len(WEIGHTS)}]},
        headers=headers,
    )
    assert batch.json()["objects"][0]["error"]["code"] == 404
    assert set(people.bob.list_repo_files("bob/model")) == {".gitattributes"}


@pytest.mark.parametrize(("repo", "todo"), [("alice/model", False), ("bob/model", True)])
def test_a_batch_tells_what_the_repository_has(people: People, repo: str, todo: bool) -> None:
    api = people.alice if repo.startswith("alice") else people.bob
    info = UploadInfo(size=len(WEIGHTS), sample=b"", sha256=bytes.fromhex(SHA256))
    [answer], _, _ = post_lfs_batch_info(
        [info], token=api.token, repo_type="model", repo_id=repo, endpoint=api.endpoint
    )
    assert ("actions" in answer) == todo


def test_who_has_the_bytes_may_upload_them_again(people: People, tmp_path: Path) -> None:
    add = CommitOperationAdd("model.safetensors", WEIGHTS)
    people.bob.create_commit("bob/model", [add], commit_message="weights")
    path = people.bob.hf_hub_download("bob/model", "model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS


def test_only_a_file_in_xet_is_copied_between_repositories(
    people: People, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    [info] = people.bob.get_paths_info("alice/model", "model.safetensors")
    if info.xet_hash is None:
        assert "lfs" in request.node.callspec.id
        with pytest.raises(ValueError, match="has no xet hash"):
            people.copy()
        return
    people.hub.traffic.clear()
    people.copy()
    assert not list(people.hub.traffic.of("xet-cas|/resolve/|/api/lfs$"))
    path = people.bob.hf_hub_download("bob/model", "copy.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS


def test_a_copy_needs_to_read_the_source_and_to_write_the_target(people: People) -> None:
    people.alice.update_repo_settings("alice/model", gated="manual")
    body = {
        "target": {"type": "model", "name": "bob/model"},
        "files": [{"xetHash": "0" * 64, "sha256": SHA256, "filename": "model.safetensors"}],
    }
    url = f"{people.hub.endpoint}/api/models/alice/model/lfs-files/duplicate"

    def answer(api: HfApi) -> int:
        headers = {"Authorization": f"Bearer {api.token}"}
        return int(get_session().post(url, json=body, headers=headers).status_code)

    assert (answer(people.bob), answer(people.alice)) == (403, 403)
    people.alice.update_repo_settings("alice/model", gated=False)
    headers = {"Authorization": f"Bearer {people.bob.token}"}
    failed = get_session().post(url, json=body, headers=headers).json()
    assert failed["succeeded"] == 0 and failed["failed"][0]["sha256"] == SHA256
    for broken in ({}, {"target": "bob/model"}, {**body, "files": [{"sha256": "../x"}]}):
        assert get_session().post(url, json=broken, headers=headers).status_code == 400
    with pytest.raises(HfHubHTTPError):
        people.claim()
