"""The hub through the client's own calls."""

import concurrent.futures
import os
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from localhub.server import Server

SDK = {"space": "static"}
WEIGHTS = os.urandom(200_000)


@pytest.fixture(autouse=True)
def _without_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Xet has tests of its own; here large files take the LFS way."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


@pytest.fixture
def api(hub: Server) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.add_user("alice", orgs=("acme",)))


def add(path: str, content: bytes = b"content") -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def commit(api: HfApi, *operations: CommitOperationAdd, repo_id: str = "alice/m", **more) -> str:
    return api.create_commit(repo_id, operations, commit_message="change", **more).oid


def other(hub: Server, name: str = "bob", **more) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.add_user(name, **more))


def test_life_of_a_repository(api: HfApi) -> None:
    url = api.create_repo("alice/m")
    assert (url.repo_id, url.repo_type) == ("alice/m", "model")
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("alice/m")
    assert api.create_repo("alice/m", exist_ok=True) == url
    assert api.create_repo("short").repo_id == "alice/short"
    api.move_repo("alice/m", "acme/moved")
    assert not api.repo_exists("alice/m")
    assert api.list_repo_files("acme/moved") == [".gitattributes"]
    api.delete_repo("acme/moved")
    assert not api.repo_exists("acme/moved")
    api.delete_repo("acme/moved", missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("acme/moved")


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_files_go_up_and_come_back(api: HfApi, tmp_path: Path, repo_type: str) -> None:
    api.create_repo("alice/m", repo_type=repo_type, space_sdk=SDK.get(repo_type))
    files = {
        "model.safetensors": WEIGHTS,
        "sub/ä b#?%.txt": b"text",
        "empty": b"",
        "x.odd": b"\0\1",
    }
    info = api.create_commit(
        "alice/m",
        [add(path, content) for path, content in files.items()],
        commit_message="Add weights",
        commit_description="and more",
        repo_type=repo_type,
    )
    assert api.repo_info("alice/m", repo_type=repo_type).sha == info.oid
    folder = Path(api.snapshot_download("alice/m", repo_type=repo_type, cache_dir=tmp_path))
    assert folder.name == info.oid
    for path, content in files.items():
        assert (folder / path).read_bytes() == content
    rows = {r.path: r for r in api.list_repo_tree("alice/m", recursive=True, repo_type=repo_type)}
    assert rows["model.safetensors"].lfs.size == rows["model.safetensors"].size == len(WEIGHTS)
    assert rows["x.odd"].lfs is not None and rows["empty"].lfs is None
    assert "x.odd filter=lfs" in (folder / ".gitattributes").read_text()
    latest = api.list_repo_commits("alice/m", repo_type=repo_type)[0]
    assert (latest.title, latest.message, latest.authors) == ("Add weights", "and more", ["alice"])


def test_uploading_what_is_there_commits_nothing(api: HfApi) -> None:
    api.create_repo("alice/m")
    first = commit(api, add("a.bin", WEIGHTS), add("b.txt"))
    assert commit(api, add("a.bin", WEIGHTS), add("b.txt")) == first


def test_multipart_upload(
    hub: Server, api: HfApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("localhub.lfs.PART_SIZE", 60_000)
    api.create_repo("alice/m")
    hub.faults.add(r"^/api/lfs$", method="PUT", status=503, times=1)
    commit(api, add("a.bin", WEIGHTS))
    path = api.hf_hub_download("alice/m", "a.bin", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    assert not list((hub.root / "lfs" / "tmp").iterdir())


def test_copies_deletions_and_folders(api: HfApi) -> None:
    api.create_repo("alice/m")
    commit(api, add("a.bin", WEIGHTS), add("dir/one.txt"), add("dir/two.txt"))
    commit(
        api,
        CommitOperationCopy("a.bin", "b.bin"),
        CommitOperationCopy("dir/one.txt", "three.txt"),
        CommitOperationDelete("dir/"),
        CommitOperationDelete("a.bin"),
    )
    assert set(api.list_repo_files("alice/m")) == {".gitattributes", "b.bin", "three.txt"}
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        commit(api, CommitOperationDelete("nothing"))


def test_stale_parent_is_412(api: HfApi) -> None:
    api.create_repo("alice/m")
    old = api.model_info("alice/m").sha
    commit(api, add("a"), parent_commit=old[:7])
    with pytest.raises(HfHubHTTPError, match="The branch was updated since") as caught:
        commit(api, add("b"), parent_commit=old)
    assert caught.value.response.status_code == 412


def test_of_racing_commits_exactly_one_wins(api: HfApi) -> None:
    api.create_repo("alice/m")
    parent = api.model_info("alice/m").sha
    start = threading.Barrier(6)

    def race(number: int) -> int:
        start.wait()
        try:
            commit(api, add(f"{number}.txt"), parent_commit=parent)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        outcomes = sorted(pool.map(race, range(6)))
    assert outcomes == [200, 412, 412, 412, 412, 412]
    assert len(api.list_repo_commits("alice/m")) == 2


def test_commits_without_parent_all_land(api: HfApi) -> None:
    api.create_repo("alice/m")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: commit(api, add(f"{n}.txt")), range(8)))
    assert len(api.list_repo_files("alice/m")) == 9


def test_branches_and_tags(api: HfApi) -> None:
    api.create_repo("alice/m")
    first = commit(api, add("a"))
    api.create_branch("alice/m", branch="dev/x")
    second = commit(api, add("b"), revision="dev/x")
    api.create_tag("alice/m", tag="v1", revision=first[:7], tag_message="annotated")
    api.create_tag("alice/m", tag="v2", revision="dev/x")
    refs = api.list_repo_refs("alice/m")
    assert {b.name: b.target_commit for b in refs.branches} == {"main": first, "dev/x": second}
    assert {t.name: t.target_commit for t in refs.tags} == {"v1": first, "v2": second}
    assert api.model_info("alice/m", revision="v1").sha == first
    assert api.file_exists("alice/m", "b", revision="dev/x")
    assert not api.file_exists("alice/m", "b", revision="v1")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("alice/m", tag="v1")
    api.create_branch("alice/m", branch="dev/x", exist_ok=True)
    api.delete_tag("alice/m", tag="v1")
    api.delete_branch("alice/m", branch="dev/x")
    for missing in ("v1", "dev/x", "0" * 40, "main..v2", "main@{1}", ":/x", "-x"):
        assert not api.revision_exists("alice/m", missing), missing
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag("alice/m", tag="v1")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.delete_branch("alice/m", branch="main")
    for bad in ("refs/pr/9", "-x", "a..b", "a b", "ends.lock"):
        with pytest.raises(BadRequestError):
            api.create_branch("alice/m", branch=bad)


def test_a_branch_cannot_pass_for_a_pinned_commit(api: HfApi) -> None:
    api.create_repo("alice/m")
    pinned = api.model_info("alice/m").sha
    commit(api, add("evil"))
    api.create_branch("alice/m", branch=pinned, revision="main")
    assert api.model_info("alice/m", revision=pinned).sha == pinned
    assert not api.file_exists("alice/m", "evil", revision=pinned)


def test_super_squash(api: HfApi) -> None:
    api.create_repo("alice/m")
    commit(api, add("a"))
    api.super_squash_history("alice/m", commit_message="one")
    assert [each.title for each in api.list_repo_commits("alice/m")] == ["one"]
    assert api.file_exists("alice/m", "a")


def test_ranges(hub: Server, api: HfApi) -> None:
    api.create_repo("alice/m")
    sha = commit(api, add("a.bin", WEIGHTS), add("t.txt", b"0123456789"))
    get = get_session().get
    for path, content in (("a.bin", WEIGHTS), ("t.txt", b"0123456789")):
        url, size = f"{hub.endpoint}/alice/m/resolve/main/{path}", len(content)
        for wanted, part in (
            ("2-5", slice(2, 6)),
            ("4-", slice(4, None)),
            ("-3", slice(-3, None)),
            (f"8-{2 * size}", slice(8, None)),
        ):
            answer = get(url, headers={"Range": f"bytes={wanted}"})
            assert (answer.status_code, answer.content) == (206, content[part]), wanted
            assert answer.headers["content-range"].endswith(f"/{size}")
        beyond = get(url, headers={"Range": f"bytes={size}-"})
        assert beyond.status_code == 416
        assert beyond.headers["content-range"] == f"bytes */{size}"
        whole = get(url, headers={"Range": "bytes=5-2"})
        assert (whole.status_code, whole.content) == (200, content)
        assert whole.headers["x-repo-commit"] == sha
        assert whole.headers["etag"].startswith('"')


def test_download_resumes_after_a_cut(hub: Server, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("alice/m")
    commit(api, add("a.bin", WEIGHTS))
    hub.faults.add(r"/resolve/.*/a\.bin$", method="GET", cut=70_000)
    path = api.hf_hub_download("alice/m", "a.bin", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS


def test_listing_pages(api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.create_repo("alice/m")
    commit(api, *(add(f"d/{n:04}") for n in range(1100)))
    assert len(api.list_repo_files("alice/m")) == 1101
    assert len(list(api.list_repo_tree("alice/m", "d"))) == 1100
    assert [r.path for r in api.list_repo_tree("alice/m")] == [".gitattributes", "d"]
    monkeypatch.setattr("localhub.commits.PAGE", 2)
    for number in range(3):
        commit(api, add("x", b"%d" % number))
    assert len(api.list_repo_commits("alice/m")) == 5
    infos = api.get_paths_info("alice/m", ["d", "x", "missing"], expand=True)
    assert [(i.path, i.last_commit.title) for i in infos] == [("d", "change"), ("x", "change")]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("alice/m", "nowhere"))


CARD = b"""---
license: apache-2.0
language: [en, de]
base_model: acme/base
base_model_relation: adapter
library_name: peft
pipeline_tag: text-generation
tags: [lora, "2024-01-01"]
date: 2024-01-01
---
# A patch
"""


def test_search_by_what_the_card_says(api: HfApi) -> None:
    api.create_repo("acme/base")
    api.create_repo("alice/patch")
    api.create_repo("alice/other")
    sha = commit(api, add("README.md", CARD), repo_id="alice/patch")
    found = list(api.list_models(filter=["base_model:adapter:acme/base", "lora"]))
    assert [model.id for model in found] == ["alice/patch"]
    tags = {"peft", "en", "license:apache-2.0", "base_model:acme/base", "text-generation"}
    assert tags <= set(found[0].tags)
    assert found[0].card_data is None and found[0].siblings is None
    assert {m.id for m in api.list_models(author="alice")} == {"alice/patch", "alice/other"}
    assert [m.id for m in api.list_models(search="BASE")] == ["acme/base"]
    assert not list(api.list_models(filter="base_model:finetune:acme/base"))
    expanded = list(api.list_models(author="alice", search="patch", expand=["sha", "lastModified"]))
    assert expanded[0].sha == sha and expanded[0].last_modified and expanded[0].tags is None
    info = api.model_info("alice/patch")
    assert (info.library_name, info.pipeline_tag) == ("peft", "text-generation")
    assert info.card_data.base_model == "acme/base"
    only = api.model_info("alice/patch", expand=["baseModels"])
    assert only.base_models["relation"] == "adapter" and only.sha is None


def test_listing_sorts_limits_and_pages(api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localhub.listing.MAX_PAGE", 2)
    for number in range(5):
        api.create_repo(f"alice/m{number}")
        time.sleep(0.002)  # creation dates have milliseconds
    newest = [m.id for m in api.list_models(sort="created_at")]
    assert newest == [f"alice/m{n}" for n in (4, 3, 2, 1, 0)]
    assert [m.id for m in api.list_models(sort="created_at", limit=3)] == newest[:3]
    assert list(api.list_datasets()) == []


def test_what_the_files_say_without_a_card(api: HfApi) -> None:
    api.create_repo("alice/m")
    config = b'{"base_model_name_or_path": "acme/base", "peft_type": "LORA"}'
    commit(
        api, add("adapter_config.json", config), add("README.md", b"---\nbase_model: a/b\n---\n")
    )
    info = api.model_info("alice/m")
    assert info.library_name == "peft" and "base_model:adapter:a/b" in info.tags
    assert info.config["peft"]["base_model_name_or_path"] == "acme/base"


def test_private_and_read_only(hub: Server, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("acme/secret", private=True)
    commit(api, add("a"), repo_id="acme/secret")
    strangers = [other(hub), HfApi(endpoint=hub.endpoint, token=False)]
    for stranger in strangers:
        for call in (
            lambda s=stranger: s.model_info("acme/secret"),
            lambda s=stranger: s.hf_hub_download("acme/secret", "a", cache_dir=tmp_path),
            lambda s=stranger: s.auth_check("acme/secret"),
            lambda s=stranger: s.list_repo_commits("acme/secret"),
            lambda s=stranger: s.get_repo_discussions("acme/secret").__next__(),
        ):
            with pytest.raises(RepositoryNotFoundError):
                call()
        assert list(stranger.list_models()) == []
    member = other(hub, "carol", orgs=("acme",))
    assert member.hf_hub_download("acme/secret", "a", cache_dir=tmp_path)
    api.update_repo_settings("acme/secret", private=False)
    assert not strangers[1].model_info("acme/secret").private
    with pytest.raises(HfHubHTTPError, match="403"):
        commit(strangers[0], add("b"), repo_id="acme/secret")
    reader = other(hub, "dave", orgs=("acme",), role="read")
    with pytest.raises(HfHubHTTPError, match="can only read"):
        commit(reader, add("b"), repo_id="acme/secret")
    with pytest.raises(HfHubHTTPError, match="403"):
        strangers[0].create_repo("acme/mine")
    with pytest.raises(HfHubHTTPError, match="401"):
        strangers[1].create_repo("acme/mine")


def test_gated(hub: Server, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("alice/m")
    commit(api, add("a"))
    api.update_repo_settings("alice/m", gated="manual")
    bob = other(hub)
    assert bob.model_info("alice/m").gated == "manual"
    with pytest.raises(GatedRepoError):
        bob.auth_check("alice/m")
    with pytest.raises(GatedRepoError):
        bob.hf_hub_download("alice/m", "a", cache_dir=tmp_path)
    api.grant_access("alice/m", "bob")
    bob.auth_check("alice/m")
    assert bob.hf_hub_download("alice/m", "a", cache_dir=tmp_path)
    assert list(api.list_models(gated=True)) and not list(api.list_models(gated=False))


def test_whoami(hub: Server, api: HfApi) -> None:
    me = api.whoami()
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("alice", ["acme"])
    assert me["auth"]["accessToken"]["role"] == "write"
    with pytest.raises(HfHubHTTPError, match="Invalid"):
        HfApi(endpoint=hub.endpoint, token="hf_wrong").whoami()
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(endpoint=hub.endpoint, token="hf_wrong").list_repo_files("alice/m")


def test_injected_faults(hub: Server, api: HfApi) -> None:
    api.create_repo("alice/m")
    limits = {"RateLimit": '"api";r=0;t=0', "Retry-After": "0"}
    hub.faults.add(r"^/api/models/alice/m$", status=429, headers=limits)
    with pytest.raises(HfHubHTTPError, match="429"):
        api.model_info("alice/m")
    assert api.model_info("alice/m").sha
    hub.faults.add(r"/tree/", status=503)
    assert api.list_repo_files("alice/m") == [".gitattributes"]  # the client retries this one


def test_data_survives_a_restart(tmp_path: Path) -> None:
    with Server(tmp_path / "hub") as hub:
        token = hub.add_user("alice")
        api = HfApi(endpoint=hub.endpoint, token=token)
        api.create_repo("alice/m")
        sha = commit(api, add("a.bin", WEIGHTS))
    with Server(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=token)
        path = api.hf_hub_download("alice/m", "a.bin", revision=sha, cache_dir=tmp_path)
        assert Path(path).read_bytes() == WEIGHTS
