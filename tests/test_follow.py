"""What is followed, where it stands, and which release a step makes, on a Hub."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from hypothesis import given
from hypothesis import strategies as st

from bot.address import parse_repo
from bot.context import Context, job_of
from bot.hub import Hub, HubPublisher
from bot.running.manners import Manners
from bot.settings import Settings
from bot.subscribing import Wanted, begin
from bot.watching.classify import classify_release, subscriptions_to_port
from bot.watching.follow import Follow, highest, parse_follow
from bot.watching.watch import look
from localhub.server import Server
from porting.errors import Refused, UsageError
from registry import records
from registry.browse import Browse
from registry.database import Database
from registry.models import Base, Patch, Port, Release, Rule, Subscription
from registry.ports import create_ports
from registry.status import OWN, status
from tests.records import active_subscriptions

BASE = "vendor/Model-v0.1"


class Followed:
    """A Hub with a patch, whose owner subscribes it to what a test says."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        token = server.add_user("owner", orgs=("vendor", "lab"))
        self.api = HfApi(endpoint=server.endpoint, token=token)
        settings = Settings(home=folder / "home")
        settings.home.mkdir()
        hub = Hub(server.endpoint, token)
        self.context = Context(hub, HubPublisher(hub), Database(settings.registry_url), settings)
        self.first = self.push(BASE)
        with self.context.database.session() as session:
            records.add_patch(session, self.patch())

    def patch(self) -> Patch:
        return Patch(
            repo="owner/patch", owner="owner", sha="d" * 40, kind="LoRA", portability="A",
            base_repo=BASE, base_sha=self.first, license=None, evaluation=None,
        )  # fmt: skip

    def push(self, repo: str, card: str = "---\nlicense: mit\n---\n", **facts: str) -> str:
        self.api.create_repo(repo, exist_ok=True)
        text = f"{card}{repo} {facts}"  # two repos pushed in one second have shas of their own
        return self.api.upload_file(
            path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=repo, **facts
        ).oid

    def subscribe(self, follow: str, to: str = "owner/ported", start: str | None = None) -> int:
        """The id of what is followed."""
        wanted = Wanted(
            parse_repo("owner/patch"), parse_follow(follow), to, "adapter", None, None, Manners(),
            start,
        )  # fmt: skip
        subscription_id = begin(self.context, wanted)
        with self.context.database.session() as session:
            return session.get_one(Subscription, subscription_id).base_id

    def look(self, base_id: int) -> list[tuple[str, str, str, str]]:
        """Look again; all releases so far as (from repo, from sha, repo, sha)."""
        look(self.context, base_id)
        with self.context.database.session() as session:
            releases = session.query(Release).filter_by(base_id=base_id).order_by(Release.id)
            return [(r.from_repo, r.from_sha, r.repo, r.sha) for r in releases if r.change is None]

    def said(self) -> str:
        with self.context.database.session() as session:
            (subscription,) = active_subscriptions(session)
            return status(session, subscription).reason


@pytest.fixture
def followed(hub: Server, tmp_path: Path) -> Iterator[Followed]:
    made = Followed(hub, tmp_path)
    yield made
    made.context.database.close()


def test_a_branch_moves_and_main_does_not_matter(followed: Followed) -> None:
    followed.api.create_branch(BASE, branch="next")
    base = followed.subscribe(f"{BASE}@next")
    followed.push(BASE, "on main")
    assert followed.look(base) == []
    moved = followed.push(BASE, "on next", revision="next")
    assert followed.look(base) == [(BASE, followed.first, BASE, moved)]
    assert followed.look(base) == [(BASE, followed.first, BASE, moved)]
    with pytest.raises(UsageError, match="only a branch moves"):
        followed.subscribe(f"{BASE}@{followed.first}", "owner/other")


def test_tags_count_by_version_and_a_tag_that_moves_is_a_release(followed: Followed) -> None:
    api = followed.api
    with pytest.raises(Refused, match=r"has no tag v\*"):
        followed.subscribe(f"{BASE}@v*")
    api.create_tag(BASE, tag="v1.9")
    base = followed.subscribe(f"{BASE}@v*")
    second = followed.push(BASE, "2")
    for tag in ("v1.10", "v1.2", "nightly", "vNext"):
        api.create_tag(BASE, tag=tag, revision=second)
    first_step = (BASE, followed.first, BASE, second)
    assert followed.look(base) == [first_step]
    with followed.context.database.session() as session:
        assert session.get_one(Base, base).head_ref == "v1.10"
    third = followed.push(BASE, "3")
    api.delete_tag(BASE, tag="v1.10")
    assert followed.look(base) == [first_step]
    assert "v1.10 is gone" in followed.said()
    api.create_tag(BASE, tag="v1.10", revision=third)
    assert followed.look(base) == [first_step, (BASE, second, BASE, third)]
    assert "gone" not in followed.said()


def test_repos_by_pattern_and_the_first_release_from_where_it_was_asked(
    followed: Followed,
) -> None:
    second = followed.push("vendor/Model-v0.2")
    followed.push("vendor/Model-v0.2-GGUF")
    base = followed.subscribe("vendor/Model-v0.*", start=BASE)
    step = (BASE, followed.first, "vendor/Model-v0.2", second)
    assert followed.look(base) == [step]
    tenth = followed.push("vendor/Model-v0.10")
    last = ("vendor/Model-v0.2", second, "vendor/Model-v0.10", tenth)
    assert followed.look(base) == [step, last]
    fixed = followed.push("vendor/Model-v0.10", "fixed")
    name = "vendor/Model-v0.10"
    assert followed.look(base) == [step, last, (name, tenth, name, fixed)]


def test_a_tree_brings_each_fine_tune_to_a_repo_of_its_own(followed: Followed) -> None:
    def tune(repo: str, tags: str) -> str:
        return followed.push(
            repo, f"---\nbase_model: {BASE}\nbase_model_relation: finetune\ntags: [{tags}]\n---\n"
        )

    tune("lab/there", "medical")
    with pytest.raises(UsageError, match="a repo each"):
        followed.subscribe(f"tree:{BASE}@medical")
    base = followed.subscribe(f"tree:{BASE}@medical", "owner/on-{name}")
    assert followed.look(base) == []
    sha, _ = tune("lab/nurse", "medical, en"), tune("lab/poet", "poetry")
    ((from_repo, _, repo, to),) = followed.look(base)
    assert (from_repo, repo, to) == (BASE, "lab/nurse", sha)
    with followed.context.database.session() as session:
        (subscription,) = active_subscriptions(session)
        (release,) = session.query(Release).filter_by(repo="lab/nurse")
        assert job_of(subscription, release).to_repo == "owner/on-nurse"


def test_nobody_is_shown_a_private_base_nor_a_patch_that_follows_it(followed: Followed) -> None:
    database, api = followed.context.database, followed.api

    def shown() -> tuple[list[str], list[str]]:
        with database.session() as session:
            seen = Browse(session)
            return [p.repo for p in seen.patches().items], [b.repo for b in seen.bases().items]

    def add_again() -> None:
        with database.session() as session:
            records.add_patch(session, followed.patch())

    def closed(is_closed: bool) -> None:
        api.update_repo_settings(BASE, private=is_closed)

    base = followed.subscribe(BASE)
    assert shown() == (["owner/patch"], [BASE])
    closed(True)
    followed.push(BASE, "2")
    followed.look(base)
    with database.session() as session:
        release = session.query(Release).one().id
    classify_release(followed.context, release)
    assert shown() == ([], [])
    add_again()
    closed(False)
    assert shown() == ([], [])  # until it is asked for anew
    followed.subscribe(BASE)
    add_again()
    assert shown() == (["owner/patch"], [BASE])
    closed(True)
    followed.subscribe(BASE)
    assert shown() == ([], [])


def test_a_private_fine_tune_is_no_part_of_a_tree(followed: Followed) -> None:
    card = f"---\nbase_model: {BASE}\nbase_model_relation: finetune\n---\n"
    for repo in ("lab/secret", "lab/open"):
        followed.push(repo, card)
    followed.api.update_repo_settings("lab/secret", private=True)
    base = followed.subscribe(f"tree:{BASE}", "owner/on-{name}")
    followed.push("lab/secret", f"{card}2")
    followed.push("lab/open", f"{card}2")
    assert [repo for _, _, repo, _ in followed.look(base)] == ["lab/open"]
    with followed.context.database.session() as session:
        assert {release.repo for release in session.query(Release)} == {"lab/open"}


def test_a_pattern_that_comes_to_a_private_repo_is_shown_to_nobody(followed: Followed) -> None:
    base = followed.subscribe("vendor/Model-v0.*")
    followed.push("vendor/Model-v0.2")
    followed.api.update_repo_settings("vendor/Model-v0.2", private=True)
    assert len(followed.look(base)) == 1
    followed.push("vendor/Model-v0.3")
    assert len(followed.look(base)) == 2
    followed.subscribe("vendor/Model-v0.*")  # which was there, still
    with followed.context.database.session() as session:
        records.add_patch(session, followed.patch())
        seen = Browse(session)
        assert seen.patches().items == seen.bases().items == []
        assert seen.newest_releases().items == []


def test_only_what_we_pushed_there_is_ours(followed: Followed) -> None:
    base = followed.subscribe(BASE)
    context, number = followed.context, "0000000000000001"

    def moved() -> tuple[Release, str]:
        """The newest release, and what is found to have changed."""
        said = f"Better.\n\nPortLLM-Port: port-{number}"
        followed.push(BASE, commit_message=said, commit_description=str(len(followed.look(base))))
        followed.look(base)
        with context.database.session() as session:
            release = session.query(Release).order_by(Release.id.desc()).first()
        return release, classify_release(context, release.id).change

    release, change = moved()
    assert change != OWN  # anybody may write that
    with context.database.session() as session:
        (subscription,) = active_subscriptions(session)
        job = {"key": f"port-{number}", "to_repo": "owner/elsewhere"}
        create_ports(session, release.id, {subscription.id: job})
    assert moved()[1] != OWN
    with context.database.session() as session:
        session.get_one(Port, f"port-{number}").job = job | {"to_repo": BASE}
    release, change = moved()
    assert change == OWN and subscriptions_to_port(context, release.id, change) == []
    with context.database.session() as session:
        (subscription,) = active_subscriptions(session)
        assert subscription.settled_sha == release.sha


def test_a_stale_answer_is_no_release(followed: Followed) -> None:
    base = followed.subscribe(BASE)
    second = followed.push(BASE, "2")
    step = (BASE, followed.first, BASE, second)
    assert followed.look(base) == [step]
    followed.server.faults.add("/api/models", stale=1, times=1)
    assert followed.look(base) == [step]
    assert followed.look(base) == [step]


@pytest.mark.parametrize(
    "text",
    ["", "x", "a/b@", "tree:", "tree:x", "a/b*@v1", "*/b", "a/*@x", "a/b@v*/x", "a/***", "a/b*c*d*",
     "a/b@**v**", "../b", "a/b@v*;rm"],
)  # fmt: skip
def test_what_can_not_be_followed_is_refused(text: str) -> None:
    if text == "a/b@":
        assert parse_follow(text) == Follow(Rule.REF, "a/b", "main")
        return
    with pytest.raises(UsageError):
        parse_follow(text)


@given(st.lists(st.tuples(*[st.integers(0, 30)] * 3), min_size=1, unique=True))
def test_versions_are_ordered_as_numbers(numbers: list[tuple[int, int, int]]) -> None:
    names = ["v" + ".".join(map(str, number)) for number in numbers]
    assert highest("v*", [*names, "v", "latest"]) == "v" + ".".join(map(str, max(numbers)))


def test_a_release_comes_after_its_candidates_and_dates_are_versions() -> None:
    assert highest("v*", ["v1.0", "v1.0-rc2", "v1.0-rc10"]) == "v1.0"
    assert highest("v*", ["v1.0-rc2", "v1.0-rc10"]) == "v1.0-rc10"
    assert highest("org/M-*", ["org/M-2024-12-31", "org/M-2025-01-02"]) == "org/M-2025-01-02"
    assert highest("v*", ["main", "vNext"]) is None


def test_manners_read_spans_as_people_write_them() -> None:
    read = Manners.model_validate({"minimum_release_age": "36h"})
    assert read.minimum_release_age == timedelta(hours=36)
    assert Manners.model_validate(read.model_dump(mode="json")) == read
