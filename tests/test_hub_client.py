"""The bot's one way to the Hub: bytes at commits, or an error that says whether to ask again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from bot.context import Context
from bot.hub import PULL_REQUEST, Hub, HubPublisher, HubRepo, StaleParent
from bot.settings import Settings
from bot.watching.watch import look
from localhub.server import Server
from porting import FileEntry
from porting.errors import HubError, Refused
from registry.database import Database
from registry.following import Head, follow
from registry.models import Base, Rule

REPO = "owner/model"
SMALL, LARGE = b'{"model_type": "llama"}', bytes(range(256)) * 2000
MISSING = "0" * 40


class Owner:
    """The owner's client, and the bot's under the same account and under a stranger's."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.api = HfApi(endpoint=server.endpoint, token=server.add_user("owner"))
        self.hub = Hub(server.endpoint, self.api.token)
        self.publisher = HubPublisher(self.hub)
        self.stranger = Hub(server.endpoint, server.add_user("stranger"))
        self.api.create_repo(REPO)
        self.sha = self.push({"config.json": SMALL, "model.safetensors": LARGE})
        self.repo = HubRepo(self.hub, REPO, self.sha)

    def push(self, files: dict[str, bytes], message: str = "A commit") -> str:
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        return self.api.create_commit(REPO, operations, commit_message=message).oid


@pytest.fixture
def owner(hub: Server) -> Owner:
    return Owner(hub)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits between its attempts; the tests do not."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


@pytest.mark.parametrize(("file", "whole"), [("config.json", SMALL), ("model.safetensors", LARGE)])
def test_any_range_of_a_file_is_read(owner: Owner, file: str, whole: bytes) -> None:
    size = len(whole)
    assert owner.repo.files()[file].size == size
    for start, end in ((0, size), (0, 1), (3, 10), (size - 1, size), (5, 5), (size, size)):
        assert owner.repo.read(file, start, end) == whole[start:end]


@pytest.mark.parametrize(("start", "end"), [(0, 24), (-1, 3), (5, 4), (10**12, 10**12 + 1)])
def test_a_range_that_is_not_in_the_file_is_refused(owner: Owner, start: int, end: int) -> None:
    with pytest.raises(Refused, match=rf"{REPO}@{owner.sha[:7]}: config\.json has 23 bytes"):
        owner.repo.read("config.json", start, end)


def test_a_file_that_is_not_there_is_refused(owner: Owner) -> None:
    with pytest.raises(Refused, match=r"nothing\.json does not exist"):
        owner.repo.read("nothing.json", 0, 1)


def test_a_commit_is_read_as_it_was_though_the_repo_moves(owner: Owner) -> None:
    owner.push({"config.json": b"{}", "new.json": b"{}"})
    assert "new.json" not in owner.repo.files()
    assert owner.repo.read("config.json", 0, len(SMALL)) == SMALL


def test_the_same_bytes_have_the_same_digest(owner: Owner) -> None:
    later = HubRepo(owner.hub, REPO, owner.push({"config.json": b"{}"}))
    before, after = owner.repo.files(), later.files()
    assert after["model.safetensors"].digest == before["model.safetensors"].digest
    assert after["config.json"].digest != before["config.json"].digest


def test_facts_are_those_of_the_card_and_the_settings(owner: Owner) -> None:
    card = b"---\nlicense: mit\npipeline_tag: text-generation\n---\n"
    sha = owner.push({"README.md": card})
    facts = owner.hub.facts(REPO)
    assert (facts.sha, facts.license, facts.pipeline_tag) == (sha, "mit", "text-generation")
    assert not facts.private and not facts.gated
    owner.api.update_repo_settings(REPO, gated="manual", visibility="private")
    facts = owner.hub.facts(REPO)
    assert facts.private and facts.gated


def test_a_missing_repo_and_revision_are_refused(owner: Owner) -> None:
    with pytest.raises(Refused, match="owner/none@main does not exist, or this token may not"):
        owner.hub.head("owner/none")
    with pytest.raises(Refused, match=f"{REPO}@v9 does not exist: the repo has no such revision"):
        owner.hub.head(REPO, "v9")
    with pytest.raises(Refused, match="no such revision"):
        HubRepo(owner.hub, REPO, MISSING).files()
    assert not owner.hub.exists("owner/none") and owner.hub.exists(REPO)


def test_a_private_repo_is_refused_to_a_stranger(owner: Owner) -> None:
    owner.api.update_repo_settings(REPO, visibility="private")
    assert owner.hub.head(REPO) == owner.sha
    with pytest.raises(Refused, match="does not exist, or this token may not see it"):
        owner.stranger.head(REPO)
    assert not owner.stranger.exists(REPO)


def test_a_gated_repo_says_whose_terms_are_to_be_accepted(owner: Owner) -> None:
    owner.api.update_repo_settings(REPO, gated="manual")
    repo = HubRepo(owner.stranger, REPO, owner.sha)
    with pytest.raises(Refused, match=r"owner/model@.*is gated: accept its terms"):
        repo.read("model.safetensors", 0, 8)
    with pytest.raises(Refused, match="is gated"):
        owner.stranger.snapshot(REPO, owner.sha, owner.repo.files())
    assert owner.repo.read("model.safetensors", 0, 8) == LARGE[:8]


def test_a_stranger_may_not_write(owner: Owner) -> None:
    with pytest.raises(Refused):
        HubPublisher(owner.stranger).commit(REPO, {"x": b"x"}, [], "Mine", "", owner.sha)
    with pytest.raises(Refused):
        HubPublisher(owner.stranger).create("owner/another", private=False)
    assert owner.hub.head(REPO) == owner.sha


ASKING: dict[str, Callable[[Owner], object]] = {
    "head": lambda owner: owner.hub.head(REPO),
    "exists": lambda owner: owner.hub.exists(REPO),
    "is_tag": lambda owner: owner.hub.is_tag(REPO, "v1"),
    "files": lambda owner: owner.repo.files(),
    "snapshot": lambda owner: owner.hub.snapshot(
        REPO, owner.sha, {"model.safetensors": FileEntry(len(LARGE), "")}
    ),
    "commit_with": lambda owner: owner.hub.commit_with(REPO, "PortLLM-Port: 1"),
    "pull_requests": lambda owner: owner.hub.pull_requests(REPO),
    "commit": lambda owner: owner.publisher.commit(REPO, {"x": b"x"}, [], "x", "", owner.sha),
}


@pytest.mark.parametrize("name", ASKING)
def test_a_hub_that_fails_may_be_asked_again(owner: Owner, name: str) -> None:
    for status in (500, 503, 429):
        owner.server.faults.add("/", times=20, status=status)
        with pytest.raises(HubError):
            ASKING[name](owner)
        owner.server.faults.clear()
    ASKING[name](owner)


@pytest.mark.parametrize("name", ASKING)
def test_a_hub_that_is_gone_may_be_asked_again(tmp_path: Path, name: str) -> None:
    with Server(tmp_path / "hub") as server:
        owner = Owner(server)
    with pytest.raises(HubError):
        ASKING[name](owner)


def test_a_read_that_fails_or_is_cut_may_be_tried_again(owner: Owner) -> None:
    assert owner.repo.files()
    owner.server.faults.add("/resolve/", times=20, status=500)
    with pytest.raises(HubError, match=r"model\.safetensors.*HTTP 500"):
        owner.repo.read("model.safetensors", 0, 100)
    owner.server.faults.clear()
    owner.server.faults.add(r"/resolve/.*config\.json", times=20, cut=5)
    with pytest.raises(HubError, match=r"config\.json"):
        owner.repo.read("config.json", 0, len(SMALL))
    owner.server.faults.clear()
    assert owner.repo.read("config.json", 0, len(SMALL)) == SMALL


def test_a_hub_that_is_down_is_never_taken_for_a_base_that_has_not_moved(
    owner: Owner, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path)
    context = Context(owner.hub, owner.publisher, Database(settings.registry_url), settings)
    with context.database.session() as session:
        base_id = follow(session, Rule.REF, REPO, "main", [Head(REPO, "main", owner.sha)]).id
    owner.hub.snapshot(REPO, owner.sha, owner.repo.files())  # a cache to be misled by

    owner.server.faults.add("/", times=20, status=503)
    look(context, base_id)
    with context.database.session() as session:
        problem = session.get_one(Base, base_id).problem
    assert problem is not None and "503" in problem and "looked at again soon" in problem

    owner.server.faults.clear()
    moved = owner.push({"config.json": b"{}"})
    look(context, base_id)
    with context.database.session() as session:
        base = session.get_one(Base, base_id)
        assert base.problem is None and base.head_sha == moved
    context.database.close()


def test_a_commit_goes_on_top_of_what_was_looked_at(owner: Owner) -> None:
    first = owner.publisher.commit(
        REPO, {"a.txt": b"a"}, ["config.json"], "Title", "Why", owner.sha
    )
    assert owner.hub.head(REPO) == first.sha and first.url == owner.hub.url(REPO)
    assert set(HubRepo(owner.hub, REPO, first.sha).files()) == {
        ".gitattributes", "a.txt", "model.safetensors"
    }  # fmt: skip
    with pytest.raises(StaleParent, match="changed by somebody else"):
        owner.publisher.commit(REPO, {"b.txt": b"b"}, [], "Late", "", owner.sha)
    assert owner.hub.head(REPO) == first.sha


def test_a_commit_is_found_by_its_trailer(owner: Owner) -> None:
    made = owner.publisher.commit(
        REPO, {"a.txt": b"a"}, [], "Port", "Why.\n\nPortLLM-Port: port-1", owner.sha
    )
    owner.push({"b.txt": b"b"}, "Another, about PortLLM-Port: port-2, in words")
    assert owner.hub.commit_with(REPO, "PortLLM-Port: port-1") == made.sha
    assert owner.hub.commit_with(REPO, "PortLLM-Port: port-2") is None
    assert owner.hub.commit_with(REPO, "PortLLM-Port: port") is None


def test_a_pull_request_is_found_by_its_title_and_only_our_own(owner: Owner) -> None:
    owner.api.create_pull_request(REPO, "Port 1")
    owner.api.create_discussion(REPO, "Port 2")
    made = owner.publisher.commit(REPO, {"a": b"a"}, [], "Port 3", "", owner.sha, to=PULL_REQUEST)
    assert owner.hub.head(REPO) == owner.sha
    newest, older = owner.hub.pull_requests(REPO)
    assert (newest.title, newest.url, newest.status) == ("Port 3", made.url, "open")
    assert (older.title, older.status) == ("Port 1", "draft")
    assert owner.stranger.pull_requests(REPO) == []


def test_an_open_pull_request_is_brought_up_to_date(owner: Owner) -> None:
    owner.publisher.commit(REPO, {"a": b"a"}, [], "Port 1", "", owner.sha, to=PULL_REQUEST)
    (request,) = owner.hub.pull_requests(REPO)
    head = owner.hub.head(REPO, request.ref)
    owner.publisher.commit(REPO, {"a": b"b"}, [], "Port 2", "", head, to=request.ref)
    for _ in range(2):
        owner.publisher.retitle(REPO, request.number, "Port 2", "A newer release.")
    (request,) = owner.hub.pull_requests(REPO)
    assert (request.title, request.status) == ("Port 2", "open")
    assert HubRepo(owner.hub, REPO, owner.hub.head(REPO, request.ref)).read("a", 0, 1) == b"b"
    assert owner.hub.head(REPO) == owner.sha
    details = owner.api.get_discussion_details(REPO, request.number)
    assert [event.content for event in details.events if event.type == "comment"] == [
        "A newer release."
    ]


def test_a_tag_stands_where_it_was_put_last(owner: Owner) -> None:
    owner.publisher.tag(REPO, "base-1", owner.sha)
    owner.publisher.tag(REPO, "base-1", owner.sha)
    assert owner.hub.head(REPO, "base-1") == owner.sha
    later = owner.push({"a.txt": b"a"})
    owner.publisher.tag(REPO, "base-1", later)
    assert owner.hub.head(REPO, "base-1") == later
    assert owner.hub.is_tag(REPO, "base-1")
    assert not owner.hub.is_tag(REPO, "main") and not owner.hub.is_tag(REPO, "base")


def test_a_snapshot_has_the_files_asked_for_and_no_others(owner: Owner) -> None:
    sha = owner.push({"[a]*.json": b"literal", "a1.json": b"not asked for"})
    files = HubRepo(owner.hub, REPO, sha).files()
    folder = owner.hub.snapshot(REPO, sha, {"[a]*.json": files["[a]*.json"]})
    assert (folder / "[a]*.json").read_bytes() == b"literal"
    assert not (folder / "a1.json").exists() and not (folder / "model.safetensors").exists()


def test_a_snapshot_that_is_not_whole_is_no_snapshot(owner: Owner) -> None:
    files = owner.repo.files()
    folder = owner.hub.snapshot(REPO, owner.sha, files)
    assert (folder / "model.safetensors").read_bytes() == LARGE
    for wrong in ({"config.json": FileEntry(5, "")}, {"absent.json": FileEntry(5, "")}):
        with pytest.raises(HubError, match="did not arrive whole"):
            owner.hub.snapshot(REPO, owner.sha, wrong)
    (folder / "config.json").resolve().write_bytes(b"cut")  # a disk that was full, say
    with pytest.raises(HubError, match=r"config\.json did not arrive whole"):
        owner.hub.snapshot(REPO, owner.sha, files)
    shutil.rmtree(folder.parents[1])
    assert (owner.hub.snapshot(REPO, owner.sha, files) / "config.json").read_bytes() == SMALL


def test_without_a_token_nobody_is_asked_whose_it_is(owner: Owner) -> None:
    owner.hub.token = False
    with pytest.raises(Refused, match="hf auth login"):
        _ = owner.hub.user
