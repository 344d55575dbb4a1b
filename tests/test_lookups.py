"""Where bases stand, in few requests: the same as asking for each, and never from a cache."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, set_client_factory
from huggingface_hub.utils import httpx
from huggingface_hub.utils._http import default_client_factory

from bot.hub import Hub, NoRepo
from bot.hub.lookups import Ask, head_by_resolver, heads_of_author, look
from bot.watching.cadence import Cadence, Followed, Known, Looks, Room, plan_looks
from localhub.server import Server
from porting.errors import HubError, PortllmError, Refused
from registry.following import Head
from registry.models import Rule

NOW = datetime(2027, 1, 1, tzinfo=UTC)
HEADS, LISTS, FACTS = "/resolve/", "/api/models$", "/api/models/vendor"


class Vendor:
    """An author with six repos, seen by the author and by a stranger."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.api = HfApi(endpoint=server.endpoint, token=server.add_user("vendor"))
        self.hub = Hub(server.endpoint, str(self.api.token))
        self.stranger = Hub(server.endpoint, server.add_user("stranger"))
        self.repos = [f"vendor/base{number}" for number in range(6)]
        self.pushes = 0
        self.sent: list[str] = []
        self.api.create_repo(self.repos[0])
        server.copy(self.repos[0], self.repos[1:])
        for repo in self.repos[:4]:
            self.push(repo)

    def push(self, repo: str, file: str = "notes.txt") -> str:
        self.pushes += 1
        content = [CommitOperationAdd(file, f"---\nlicense: mit\n---\n{self.pushes}".encode())]
        return self.api.create_commit(repo, content, commit_message="A commit").oid

    def head(self, repo: str, ref: str = "main") -> str:
        return str(self.api.model_info(repo, revision=ref).sha)

    def requests(self, path: str) -> int:
        """How many the client sent since `sent` was cleared."""
        return len([each for each in self.sent if re.search(path, each)])

    def base(self, repo: str, ref: str = "main", rule: Rule = Rule.REF) -> Followed:
        number = self.repos.index(repo)
        return Followed(number, rule, repo, ref, self.head(repo, ref), None, None, None)

    def ask(self, base: Followed) -> list[Head]:
        return [Head(base.repo, base.ref, self.hub.head(base.repo, base.ref))]


@pytest.fixture
def vendor(hub: Server) -> Iterator[Vendor]:
    vendor = Vendor(hub)

    def client() -> httpx.Client:
        made = default_client_factory()
        hooks = made.event_hooks
        count = [*hooks["request"], lambda request: vendor.sent.append(request.url.path)]
        made.event_hooks = {**hooks, "request": count}
        return made

    set_client_factory(client)
    yield vendor
    set_client_factory(default_client_factory)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits between its attempts; the tests do not."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


def no_ask(base: Followed) -> list[Head]:
    raise AssertionError(f"{base.repo} was asked for, though a HEAD tells")


def found(vendor: Vendor, looks: Looks, known: Known, ask: Ask = no_ask) -> dict[str, object]:
    """The sha or the error's class of each base that is looked at."""
    outcomes = list(look(vendor.hub, looks, known, NOW, ask))
    assert len(outcomes) == len(looks)
    return {
        base.repo: type(heads) if isinstance(heads, PortllmError) else heads[0].sha
        for base, heads in outcomes
    }


def test_a_listing_is_whole_and_costs_its_pages(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localhub.listing.MAX_PAGE", 3)
    listing = heads_of_author(vendor.hub, "vendor", most_pages=9)
    assert (listing.price, vendor.requests(LISTS)) == (2, 2)
    assert listing.heads == {repo: vendor.head(repo) for repo in vendor.repos}
    listing = heads_of_author(vendor.hub, "vendor", most_pages=1)
    assert (listing.price, len(listing.heads), vendor.requests(LISTS)) == (2, 3, 3)
    assert heads_of_author(vendor.hub, "nobody", most_pages=2).heads == {}


@pytest.mark.parametrize("ref", ["main", "v1.0", "branch/of-it", "refs/pr/1"])
@pytest.mark.parametrize("file", [None, "README.md"])
def test_one_head_request_names_the_commit_of_any_ref(
    vendor: Vendor, ref: str, file: str | None
) -> None:
    repo = vendor.repos[0]
    if file:
        vendor.push(repo, file)
    vendor.api.create_tag(repo, tag="v1.0")
    vendor.api.create_branch(repo, branch="branch/of-it")
    vendor.api.create_pull_request(repo, title="A change")
    vendor.push(repo)
    expected = vendor.head(repo, ref)
    vendor.sent.clear()
    assert head_by_resolver(vendor.hub, repo, ref) == expected
    assert vendor.requests(".") == vendor.requests(HEADS) == 1


def test_a_head_is_never_older_than_the_last_push(vendor: Vendor) -> None:
    for repo in vendor.repos[:2] * 3:
        sha = vendor.push(repo)
        assert head_by_resolver(vendor.hub, repo, "main") == sha
        assert heads_of_author(vendor.hub, "vendor", 1).heads[repo] == sha


def test_what_a_head_cannot_tell(vendor: Vendor) -> None:
    private, gated, gone = vendor.repos[:3]
    vendor.api.update_repo_settings(private, private=True)
    vendor.api.update_repo_settings(gated, gated="manual")
    vendor.api.delete_repo(gone)
    assert head_by_resolver(vendor.hub, private, "main") == vendor.head(private)
    assert head_by_resolver(vendor.hub, gated, "main") == vendor.head(gated)
    with pytest.raises(Refused, match="does not exist"):
        head_by_resolver(vendor.stranger, private, "main")
    assert head_by_resolver(vendor.stranger, gated, "main") is None
    with pytest.raises(Refused, match="does not exist"):
        head_by_resolver(vendor.hub, gone, "main")
    with pytest.raises(Refused, match="no such revision"):
        head_by_resolver(vendor.hub, vendor.repos[3], "v9")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_fails_is_not_a_base_that_stands_still(vendor: Vendor, status: int) -> None:
    vendor.server.faults.add(HEADS, status=status, times=2)
    vendor.server.faults.add(LISTS, status=status, times=2)
    with pytest.raises(HubError):
        head_by_resolver(vendor.hub, vendor.repos[0], "main")
    with pytest.raises(HubError):
        heads_of_author(vendor.hub, "vendor", 1)
    assert head_by_resolver(vendor.hub, vendor.repos[0], "main") == vendor.head(vendor.repos[0])


def test_a_renamed_repo_is_followed_and_a_strange_host_is_not(vendor: Vendor) -> None:
    old, new = "vendor/old-name", vendor.repos[0]
    location = {"Location": f"/{new}/resolve/main/README.md"}
    vendor.server.faults.add(f"/{old}/", status=307, headers=location)
    assert head_by_resolver(vendor.hub, old, "main") == vendor.head(new)

    with Server(vendor.server.root / "other") as other:
        location = {"Location": f"{other.endpoint}/{new}/resolve/main/README.md"}
        vendor.server.faults.add(f"/{old}/", status=307, headers=location)
        assert head_by_resolver(vendor.hub, old, "main") is None
        assert not list(other.traffic.of("."))


def test_an_author_is_looked_at_in_one_request_and_what_moved_alone(vendor: Vendor) -> None:
    bases = [vendor.base(repo) for repo in vendor.repos]
    moved, hidden, gone = vendor.repos[:3]
    vendor.push(moved)
    vendor.api.update_repo_settings(hidden, private=True)
    vendor.api.delete_repo(gone)
    vendor.sent.clear()
    vendor.hub = vendor.stranger
    looks = plan_looks(bases, Known(), NOW, Room(10, 0), Cadence())
    assert list(looks.listed) == ["vendor"]
    seen = found(vendor, looks, known := Known())
    assert (vendor.requests(LISTS), vendor.requests(HEADS), vendor.requests(".")) == (1, 3, 4)
    assert known.prices == {"vendor": (1, NOW)}
    still = {repo: vendor.head(repo) for repo in vendor.repos if repo not in (hidden, gone)}
    assert seen == still | {hidden: NoRepo, gone: NoRepo}


def test_a_listing_that_lags_behind_takes_nothing_back(vendor: Vendor) -> None:
    vendor.push(vendor.repos[0])
    bases = [vendor.base(repo) for repo in vendor.repos]
    vendor.server.faults.add(LISTS, stale=1)
    seen = found(vendor, Looks(listed={"vendor": bases}), Known())
    assert seen == {base.repo: base.sha for base in bases}


@pytest.mark.parametrize("fails", [True, False])
def test_a_listing_that_fails_or_is_too_long_is_left_alone_for_a_day(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr("localhub.listing.MAX_PAGE", 1000 if fails else 3)
    vendor.server.faults.add(LISTS, status=500, times=2 * fails)
    bases, known = [vendor.base(repo) for repo in vendor.repos], Known()
    seen = found(vendor, Looks(listed={"vendor": bases}), known)
    assert seen == {base.repo: base.sha for base in bases}
    plan = [
        plan_looks(bases, known, NOW + later, Room(99, 99), Cadence())
        for later in (timedelta(minutes=5), timedelta(days=2))
    ]
    assert [len(looks.listed) for looks in plan] == [0, 1]
    assert len(plan[0].resolved) == len(bases)


def test_a_closed_repo_is_asked_for_by_itself_from_then_on(vendor: Vendor) -> None:
    base = vendor.base(vendor.repos[0])
    vendor.api.update_repo_settings(base.repo, gated="manual")
    vendor.hub, known = vendor.stranger, Known()
    for heads in (1, 0):
        vendor.sent.clear()
        looks = plan_looks([base], known, NOW, Room(9, 9), Cadence())
        assert found(vendor, looks, known, vendor.ask) == {base.repo: base.sha}
        assert (vendor.requests(HEADS), vendor.requests(FACTS)) == (heads, 1)


def test_other_rules_are_asked_and_one_failure_stops_no_other(vendor: Vendor) -> None:
    tags = [vendor.base(repo, rule=Rule.TAGS) for repo in vendor.repos[:2]]
    plain = vendor.base(vendor.repos[2])

    def ask(base: Followed) -> list[Head]:
        if base is tags[0]:
            raise Refused("It has no such tag.")
        return vendor.ask(base)

    looks = plan_looks([*tags, plain], Known(), NOW, Room(9, 9), Cadence())
    assert found(vendor, looks, Known(), ask) == {
        tags[0].repo: Refused,
        tags[1].repo: tags[1].sha,
        plain.repo: plain.sha,
    }
