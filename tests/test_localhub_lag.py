"""Reads that lag behind, force-pushes, and commits that vanish."""

import itertools

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from localhub.server import Server

MODEL = "alice/m"
Refs = dict[str, str]


@pytest.fixture
def api(hub: Server) -> HfApi:
    api = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice"))
    api.create_repo(MODEL)
    return api


def commit(api: HfApi, path: str, **more: object) -> str:
    operations = [CommitOperationAdd(path, path.encode())]
    return str(api.create_commit(MODEL, operations, commit_message=f"Add {path}", **more).oid)


def refs(api: HfApi) -> Refs:
    found = api.list_repo_refs(MODEL, include_pull_requests=True)
    shown = [*found.branches, *found.tags, *(found.pull_requests or [])]
    return {ref.ref: ref.target_commit for ref in shown}


def test_a_read_lags_behind_by_any_number_of_moves(hub: Server, api: HfApi) -> None:
    first = api.model_info(MODEL).sha
    moves = [
        lambda: commit(api, "a"),
        lambda: api.create_tag(MODEL, tag="v1"),
        lambda: api.create_branch(MODEL, branch="next"),
        lambda: commit(api, "b", revision="next"),
        lambda: commit(api, "c", create_pr=True),
        lambda: api.create_tag(MODEL, tag="v2", tag_message="annotated", revision="next"),
        lambda: api.delete_tag(MODEL, tag="v1"),
        lambda: commit(api, "d", revision="refs/pr/1"),
        lambda: api.merge_pull_request(MODEL, 1),
        lambda: api.delete_branch(MODEL, branch="next"),
        lambda: api.super_squash_history(MODEL),
        lambda: hub.force(MODEL, "refs/heads/main", str(first)),
    ]
    states = [refs(api)]
    for move in moves:
        move()
        states.append(refs(api))
    assert all(before != after for before, after in itertools.pairwise(states))
    known = set().union(*(state.values() for state in states))
    for stale, state in enumerate([*reversed(states), states[0]]):
        hub.faults.add(f"^/api/models/{MODEL}", stale=stale, times=10**6)
        assert refs(api) == state
        for ref in set().union(*states):
            assert _sha(api, ref) == state.get(ref)
        seen = {
            sha
            for earlier in states[: len(states) - stale] or states[:1]
            for sha in earlier.values()
        }
        assert {sha for sha in known if _sha(api, sha)} == seen
        hub.faults.clear()


def _sha(api: HfApi, revision: str) -> str | None:
    try:
        return api.model_info(MODEL, revision=revision).sha
    except RevisionNotFoundError:
        return None


def test_every_way_to_see_a_revision_lags(hub: Server, api: HfApi) -> None:
    old = api.model_info(MODEL).sha
    new = commit(api, "a")
    url = f"{hub.endpoint}/{MODEL}/resolve/main/.gitattributes"
    author = {"author": "alice", "expand": ["sha"]}
    looks = {
        "/api/models/alice/m$": lambda: api.model_info(MODEL).sha,
        "/revision/main$": lambda: api.model_info(MODEL, revision="main").sha,
        "/api/models$": lambda: next(iter(api.list_models(**author))).sha,
        "/refs$": lambda: refs(api)["refs/heads/main"],
        "/commits/": lambda: api.list_repo_commits(MODEL)[0].commit_id,
        "/resolve/": lambda: api.get_hf_file_metadata(url=url).commit_hash,
    }
    for path, look in looks.items():
        hub.faults.add(path, stale=1, times=2)
        assert [look() for _ in range(3)] == [old, old, new], path
    hub.faults.add("/tree/", stale=1)
    assert api.list_repo_files(MODEL) == [".gitattributes"]
    assert api.list_repo_files(MODEL) == [".gitattributes", "a"]
    api.create_discussion(MODEL, "Hello")
    hub.faults.add("/discussions", stale=1)
    assert list(api.get_repo_discussions(MODEL)) == []
    assert [each.num for each in api.get_repo_discussions(MODEL)] == [1]


def test_what_writes_does_not_lag(hub: Server, api: HfApi) -> None:
    first = commit(api, "a")
    hub.faults.add(f"^/api/models/{MODEL}", stale=1)
    second = commit(api, "b", parent_commit=first)
    assert [api.model_info(MODEL).sha for _ in range(2)] == [first, second]  # a read was meant


def test_force_to_an_older_and_to_an_unrelated_commit(hub: Server, api: HfApi) -> None:
    first, second = commit(api, "a"), commit(api, "b")
    told = []
    hub.webhooks.plan = lambda delivery: told.append(delivery.payload["updatedRefs"]) or []
    watched = [{"type": "model", "name": MODEL}]
    api.create_webhook(url=hub.endpoint, watched=watched, domains=["repo"])
    hub.force(MODEL, "refs/heads/main", first)
    assert api.model_info(MODEL).sha == first
    assert told == [[{"ref": "refs/heads/main", "oldSha": second, "newSha": first}]]
    api.create_branch(MODEL, branch="side")
    api.super_squash_history(MODEL, branch="side")
    unrelated = str(api.model_info(MODEL, revision="side").sha)
    hub.force(MODEL, "refs/heads/main", unrelated)
    assert [one.commit_id for one in api.list_repo_commits(MODEL)] == [unrelated]
    assert api.model_info(MODEL, revision=second).sha == second  # out of the way, but there
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(api, "c", parent_commit=first)
    assert commit(api, "c", parent_commit=unrelated)


def test_a_commit_vanishes_when_no_ref_leads_to_it(hub: Server, api: HfApi) -> None:
    first, second = commit(api, "a"), commit(api, "b")
    with pytest.raises(ValueError, match=f"still has {second}"):
        hub.forget(MODEL, second)
    hub.force(MODEL, "refs/heads/main", first)
    hub.forget(MODEL, second)
    for look in (
        lambda: api.model_info(MODEL, revision=second),
        lambda: api.list_repo_files(MODEL, revision=second),
        lambda: api.hf_hub_download(MODEL, "b", revision=second),
    ):
        with pytest.raises(RevisionNotFoundError):
            look()
    info = api.model_info(MODEL)  # git has packed the rest
    listed = next(iter(api.list_models(expand=["sha", "lastModified"])))
    assert (info.sha, info.last_modified) == (listed.sha, listed.last_modified)
    assert info.sha == first
    third = commit(api, "c", parent_commit=first)
    assert api.model_info(MODEL).sha == third
    with pytest.raises(ValueError, match="no model alice/none"):
        hub.forget("alice/none", first)
