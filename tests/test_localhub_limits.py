"""The hub's rate limits, and lists that are cheap enough to be asked for within them."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import get_session, parse_ratelimit_headers
from hypothesis import given
from hypothesis import strategies as st

from localhub.limits import Limits, bucket_of
from localhub.server import Server

BUCKETS = ("api", "resolvers", "pages")


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limited(tmp_path: Path, clock: Clock) -> Iterator[Server]:
    limits = Limits(api=4, resolvers=3, pages=1, window=2, clock=clock)
    with Server(tmp_path / "hub", limits=limits) as server:
        yield server


STEPS = st.tuples(
    st.floats(0, 25, allow_nan=False), st.sampled_from("ab"), st.sampled_from(BUCKETS)
)


@given(st.lists(STEPS, max_size=40), st.tuples(*[st.integers(0, 4)] * 3), st.integers(1, 30))
def test_a_window_grants_its_quota_and_no_more(
    steps: list[tuple[float, str, str]], quotas: tuple[int, int, int], window: int
) -> None:
    clock = Clock()
    quota = dict(zip(BUCKETS, quotas, strict=True))
    limits = Limits(**quota, window=window, clock=clock)
    asked: list[tuple[int, str, str]] = []
    refused = 0
    for seconds, caller, bucket in steps:
        clock.pass_(seconds)
        asked.append((int(clock.now // window), caller, bucket))
        so_far = asked.count(asked[-1])
        allowed, headers = limits.take(caller, bucket)
        told = parse_ratelimit_headers(headers)
        assert allowed == (so_far <= quota[bucket])
        assert told and told.resource_type == bucket
        assert told.remaining == max(quota[bucket] - so_far, 0)
        assert (told.limit, told.window_seconds) == (quota[bucket], window)
        # Who waits that long is in the next window, and who waits a second less is not.
        assert (clock.now + told.reset_in_seconds) // window > asked[-1][0]
        assert told.reset_in_seconds - 1 < (asked[-1][0] + 1) * window - clock.now
        refused += not allowed
    assert sum(limits.asked.values()) == len(steps)
    assert sum(limits.refused.values()) == refused


def test_who_spends_a_bucket_waits_for_the_next_window(limited: Server, clock: Clock) -> None:
    api = HfApi(endpoint=limited.endpoint, token=limited.add_user("alice"))
    bob = HfApi(endpoint=limited.endpoint, token=limited.add_user("bob"))
    api.create_repo("alice/m")
    for _ in range(3):
        api.model_info("alice/m")
    clock.pass_(1.5)
    with pytest.raises(HfHubHTTPError, match=r"'api' rate limit.\s+Retry after 1 seconds \(0/4"):
        api.model_info("alice/m")
    assert bob.model_info("alice/m").sha
    assert HfApi(endpoint=limited.endpoint, token=False).model_info("alice/m").sha
    assert api.file_exists("alice/m", ".gitattributes")  # a bucket of its own
    clock.pass_(0.5)
    assert api.model_info("alice/m").sha
    assert limited.limits
    assert limited.limits.asked == {"api": 8, "resolvers": 1}
    assert limited.limits.refused == {"api": 1, "resolvers": 0}


def test_the_client_waits_as_long_as_it_is_told(
    limited: Server, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = HfApi(endpoint=limited.endpoint, token=limited.add_user("alice"))
    monkeypatch.setattr(
        "huggingface_hub.utils._http.time", SimpleNamespace(sleep=clock.pass_, time=clock)
    )
    for _ in range(9):
        assert list(api.list_models()) == []
    assert clock.now >= 2 * 2
    assert limited.limits
    assert limited.limits.asked["api"] == 9 + limited.limits.refused["api"]


def test_every_answer_tells_what_is_left(limited: Server) -> None:
    def left(path: str) -> tuple[int, str | None]:
        answer = get_session().get(f"{limited.endpoint}{path}")
        return answer.status_code, answer.headers.get("RateLimit")

    assert left("/api/models") == (200, '"api";r=3;t=2')
    assert left("/api/models/no/body") == (404, '"api";r=2;t=2')
    limited.faults.add("/api/", status=500)
    assert left("/api/models") == (500, '"api";r=1;t=2')
    limited.faults.add("/api/", status=429, headers={"RateLimit": '"api";r=0;t=9'})
    assert left("/api/models") == (429, '"api";r=0;t=9')
    assert left("/api/models") == (429, '"api";r=0;t=2')
    assert left("/no/body/resolve/main/x") == (404, '"resolvers";r=2;t=2')
    assert left("/") == (200, '"pages";r=0;t=2')
    assert left("/no/body") == (429, '"pages";r=0;t=2')
    assert left("/no/body.git/info/refs") == (401, None)


def test_no_limits_unless_asked_for(hub: Server) -> None:
    assert hub.limits is None
    assert "RateLimit" not in get_session().get(f"{hub.endpoint}/api/models").headers


@pytest.mark.parametrize(
    ("path", "bucket"),
    [
        ("/api/models", "api"),
        ("/api/models/a/b/tree/main/resolve/x", "api"),
        ("/api/lfs", None),
        ("/api/lfs-users/x", "api"),
        ("/a/b/resolve/main/x", "resolvers"),
        ("/datasets/a/b/resolve/main/info/refs.txt", "resolvers"),
        ("/a/b/tree/main", "pages"),
        ("/a/b.git/info/lfs/objects/batch", None),
        ("/a/b.git/git-upload-pack", None),
        ("/xet-cas/0/v1/shards", None),
    ],
)
def test_buckets(path: str, bucket: str | None) -> None:
    assert bucket_of(path) == bucket


CARDS = {
    "tuned": "base_model: org/base",
    "adapted": "base_model: org/base\nbase_model_relation: adapter",
    "other": "base_model: org/other",
    "plain": "license: mit",
}


@pytest.fixture
def many(hub: Server, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """Some models of three authors, listed three a page."""
    api = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice", orgs=("acme", "org")))
    for name, card in CARDS.items():
        readme = CommitOperationAdd("README.md", f"---\n{card}\n---\n".encode())
        api.create_repo(f"alice/{name}")
        api.create_commit(f"alice/{name}", [readme], commit_message="Add a card")
        hub.copy(f"alice/{name}", [f"{who}/{name}-{n}" for who in ("acme", "org") for n in "1234"])
    monkeypatch.setattr("localhub.listing.MAX_PAGE", 3)
    return api


def test_lists_by_author_search_and_base(many: HfApi) -> None:
    ids = sorted(
        ["alice/" + name for name in CARDS]
        + [f"{who}/{name}-{n}" for who in ("acme", "org") for name in CARDS for n in "1234"]
    )

    def listed(**query: object) -> list[str]:
        return sorted(model.id for model in many.list_models(**query))

    assert listed() == ids
    assert listed(author="acme") == [one for one in ids if one.startswith("acme/")]
    assert listed(author="nobody") == listed(author="..") == listed(author="*") == []
    assert listed(search="ADAPTED-2") == ["acme/adapted-2", "org/adapted-2"]
    tuned = [one for one in ids if "/tuned" in one]
    assert listed(filter="base_model:finetune:org/base") == tuned
    adapted = [one for one in ids if "/adapted" in one]
    assert listed(filter="base_model:adapter:org/base") == adapted
    assert listed(filter="base_model:org/base") == sorted(tuned + adapted)
    both = listed(filter="base_model:adapter:org/base", author="org", search="-3")
    assert both == ["org/adapted-3"]


def test_a_list_tells_what_model_info_tells(many: HfApi) -> None:
    changed = many.create_commit(
        "org/plain-1", [CommitOperationAdd("a", b"a")], commit_message="Move on"
    )
    rows = list(many.list_models(author="org", expand=["sha", "lastModified"]))
    assert len(rows) == 16
    for row in rows:
        info = many.model_info(row.id)
        assert (row.sha, row.last_modified) == (info.sha, info.last_modified)
        assert row.tags is None and row.siblings is None
    assert {row.id: row.sha for row in rows}["org/plain-1"] == changed.oid
    newest = next(iter(many.list_models(sort="last_modified", limit=1)))
    assert newest.last_modified == max(row.last_modified for row in rows)


def test_shas_of_thousands_of_models_cost_no_process(
    many: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    with monkeypatch.context() as patched:
        patched.setattr("localhub.git.subprocess.run", none)
        assert len(list(many.list_models(expand=["sha", "lastModified"]))) == 36
        assert len(list(many.list_models(search="-1", sort="created_at", expand=["sha"]))) == 8
    by_card = list(many.list_models(filter="base_model:org/base", expand=["tags"]))
    monkeypatch.setattr("localhub.git.subprocess.run", none)  # now it is known
    again = list(many.list_models(filter="base_model:org/base", expand=["tags"]))
    assert [row.tags for row in again] == [row.tags for row in by_card]


def test_copies_are_models_of_their_own(hub: Server, many: HfApi) -> None:
    first = many.model_info("acme/plain-1")
    many.create_commit("acme/plain-2", [CommitOperationAdd("a", b"a")], commit_message="Move on")
    assert many.model_info("acme/plain-1").sha == first.sha != many.model_info("acme/plain-2").sha
    many.delete_repo("acme/plain-2")
    assert many.model_info("acme/plain-1").sha == first.sha
    with pytest.raises(RepositoryNotFoundError):
        many.model_info("acme/plain-2")
    with pytest.raises(ValueError, match="no model no/body"):
        hub.copy("no/body", ["acme/x"])
