"""The registry: its schema is its models', changes are idempotent, and inaction is explained."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import func, inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from porting.errors import UsageError
from registry import following, ports, records
from registry.database import Database, migrate
from registry.following import DOUBT, Head
from registry.models import Base, Patch, Port, PortState, Record, Release, Rule, Subscription, now
from registry.status import Status, status
from tests.records import active_subscriptions

OLD, NEW, NEWER = "a" * 40, "b" * 40, "c" * 40
PATCH_SHA = "d" * 40
BASE, PATCH, PORTED = "vendor/base", "owner/patch", "owner/ported"


def new_patch(repo: str = PATCH, sha: str = PATCH_SHA, base_sha: str = OLD) -> Patch:
    return Patch(
        repo=repo, owner=repo.split("/")[0], sha=sha, kind="LoRA", portability="additive",
        base_repo=BASE, base_sha=base_sha, license=None, evaluation={"name": "sides"},
    )  # fmt: skip


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    yield opened
    opened.close()


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.session() as opened:
        yield opened


def subscribed(session: Session, head: str = OLD) -> Subscription:
    patch = records.add_patch(session, new_patch())
    base = follow(session, head)
    return records.subscribe(session, patch, base, PORTED, "adapter", None)


def follow(session: Session, head: str) -> Base:
    return following.follow(session, Rule.REF, BASE, "main", [Head(BASE, "main", head)])


def observe(session: Session, base_id: int, sha: str) -> Release | None:
    """The one release that it makes, if it makes one."""
    return next(iter(following.observe(session, base_id, [Head(BASE, "main", sha)])), None)


def released(session: Session, sha: str, change: str | None, reason: str = "A reason.") -> Release:
    release = observe(session, session.scalars(select(Base)).one().id, sha)
    assert release is not None
    release.change, release.reason = change, reason if change else None
    session.flush()
    return release


def ported(session: Session, release: Release, state: PortState, key: str = "port-1") -> Port:
    subscription = session.scalars(select(Subscription)).one()
    ports.create_ports(session, release.id, {subscription.id: {"key": key}})
    ports.update_port(session, key, state=state, reason=f"It is {state}.", url="http://hub/x")
    session.flush()
    return session.get_one(Port, key)


def differences(database: Database) -> list[object]:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Record.metadata))


def test_migrations_give_exactly_the_models_schema(database: Database) -> None:
    assert differences(database) == []
    tables = set(inspect(database.engine).get_table_names())
    assert tables == {*Record.metadata.tables, "alembic_version"}
    foreign = inspect(database.engine).get_foreign_keys("ports")
    assert {key["name"] for key in foreign} == {
        "fk_ports_release_id_releases", "fk_ports_subscription_id_subscriptions"
    }  # fmt: skip


def test_migrations_go_down_and_up_again(database: Database) -> None:
    migrate(database.engine, "base", down=True)
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    assert differences(database) != []
    migrate(database.engine)
    assert differences(database) == []


def test_a_subscription_of_the_first_schema_has_no_policy(database: Database) -> None:
    with database.session() as session:
        subscribed(session).policy = "freeze"
    migrate(database.engine, "0001", down=True)
    migrate(database.engine)
    with database.session() as session:
        (kept,) = active_subscriptions(session)
        assert (kept.patch.repo, kept.form, kept.policy) == (PATCH, "adapter", None)


def test_records_of_an_earlier_schema_say_the_same(database: Database) -> None:
    with database.session() as session:
        subscribed(session)
        ported(session, released(session, NEW, "weights"), PortState.PUBLISHED)
        released(session, NEWER, "weights")
    migrate(database.engine, "0003", down=True)
    migrate(database.engine)
    with database.session() as session:
        (kept,) = active_subscriptions(session)
        assert (kept.patch.owner, kept.base.rule, kept.base.head_repo) == ("owner", "ref", BASE)
        assert (kept.from_sha, kept.settled_repo, kept.settled_sha) == (OLD, BASE, NEW)
        newest = session.query(Release).filter_by(base_id=kept.base_id).all()[-1]
        assert newest is not None and (newest.repo, newest.from_sha) == (BASE, NEW)
        assert following.is_followed(session, kept.base_id)
        with pytest.raises(IntegrityError):
            session.delete(kept.base)  # foreign keys are looked after again
            session.flush()
        session.rollback()


def test_what_was_recorded_when_nobody_asked_is_private_until_it_is_told(
    database: Database,
) -> None:
    def private() -> list[bool]:
        with database.session() as session:
            return [each.private for each in session.query(Patch).order_by(Patch.id)]

    with database.session() as session:
        records.add_patch(session, new_patch())
    assert private() == [False]
    migrate(database.engine, "0004", down=True)
    migrate(database.engine)
    assert private() == [True]
    for is_private, sha in ((False, PATCH_SHA), (True, "e" * 40), (False, "e" * 40)):
        with database.session() as session:
            added = new_patch(sha=sha)
            added.private = is_private
            records.add_patch(session, added)
        assert set(private()) == {is_private}  # the repo is, at each commit


def test_opening_again_keeps_what_is_recorded(database: Database) -> None:
    with database.session() as session:
        subscribed(session)
    again = Database(str(database.engine.url))
    with again.session() as session:
        (kept,) = active_subscriptions(session)
        assert kept.patch.repo == PATCH and kept.patch.evaluation == {"name": "sides"}
        assert kept.created_at.utcoffset() == timedelta(0)
    again.close()


def test_an_exception_undoes_the_whole_change(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.session() as session:
        subscribed(session)
        raise ZeroDivisionError
    with database.session() as session:
        assert session.scalars(select(Patch)).all() == []


def test_a_writer_is_waited_for_and_readers_are_not_locked_out(database: Database) -> None:
    with database.session() as session:
        subscribed(session)

    def write() -> None:
        with database.session() as other:
            ports.save_score(other, "later", {"correct": [1]})

    with database.session() as session:
        ports.save_score(session, "first", {"correct": [0]})
        session.flush()  # takes the write lock
        writer = threading.Thread(target=write)
        writer.start()
        with database.session() as reader:
            assert len(active_subscriptions(reader)) == 1
    writer.join(timeout=60)
    assert not writer.is_alive()
    with database.session() as session:
        ports.save_score(session, "later", {"correct": [1]})  # again is no error


def test_a_patch_is_recorded_once_and_never_with_another_base(session: Session) -> None:
    first = records.add_patch(session, new_patch())
    assert records.add_patch(session, new_patch()) is first
    assert session.scalar(select(func.count()).select_from(Patch)) == 1
    with pytest.raises(UsageError, match=f"{BASE}@aaaaaaa"):
        records.add_patch(session, new_patch(base_sha=NEW))


def test_a_patch_is_found_by_repo_and_sha_prefix(session: Session) -> None:
    first = records.add_patch(session, new_patch())
    second = records.add_patch(session, new_patch(sha="e" * 40))
    assert records.find_patch(session, PATCH) is second
    assert records.find_patch(session, PATCH, "ddd") is first
    for repo, revision in (("me/other", None), (PATCH, "f"), (PATCH, "%"), (PATCH, "_" * 40)):
        with pytest.raises(UsageError, match="portllm patch add"):
            records.find_patch(session, repo, revision)


def test_observing_the_same_commit_again_changes_nothing(session: Session) -> None:
    base = subscribed(session).base
    assert observe(session, base.id, OLD) is None
    first = observe(session, base.id, NEW)
    assert first is not None and (first.from_sha, first.sha) == (OLD, NEW)
    assert observe(session, base.id, NEW) is None
    assert base.head_sha == NEW and session.scalars(select(Release)).all() == [first]


def test_observing_ends_a_problem(session: Session) -> None:
    base = subscribed(session).base
    base.problem = "The Hub is down."
    observe(session, base.id, OLD)
    assert base.problem is None


def test_subscribing_twice_is_subscribing_once(session: Session) -> None:
    first = subscribed(session)
    again = records.subscribe(session, first.patch, first.base, PORTED, "both", None)
    assert again is first and first.form == "both"
    assert active_subscriptions(session) == [first]


def test_two_patches_never_write_to_one_repo(session: Session) -> None:
    first = subscribed(session)
    other = records.add_patch(session, new_patch("me/other"))
    with pytest.raises(UsageError, match=f"{PATCH} already go to {PORTED}"):
        records.subscribe(session, other, first.base, PORTED, "adapter", None)
    records.unsubscribe(session, PATCH, None)
    assert records.subscribe(session, other, first.base, PORTED, "adapter", None).patch is other


def test_unsubscribing_ends_and_subscribing_takes_up_from_the_present_head(
    session: Session,
) -> None:
    first = subscribed(session)
    with pytest.raises(UsageError, match="no such subscription"):
        records.unsubscribe(session, PATCH, "me/elsewhere")
    assert records.unsubscribe(session, PATCH, PORTED) == [first]
    assert active_subscriptions(session) == []
    with pytest.raises(UsageError, match="no such subscription"):
        records.unsubscribe(session, PATCH, None)
    base = follow(session, NEW)
    again = records.subscribe(session, first.patch, base, PORTED, "adapter", None)
    assert again is first and again.ended_at is None and again.from_sha == NEW


def test_a_port_is_created_once_and_closed_when_it_ends(session: Session) -> None:
    subscription = subscribed(session)
    release = released(session, NEW, "weights")
    ports.create_ports(session, release.id, {subscription.id: {"key": "port-1"}})
    first = session.get_one(Port, "port-1")
    assert ports.due_ports(session, PortState.WAITING, now()) == [first]
    first.state = PortState.RUNNING
    session.flush()
    for key in ("port-1", "port-2"):  # the other: of a newer engine
        ports.create_ports(session, release.id, {subscription.id: {"key": key}})
    assert session.query(Port).all() == [first] and first.state == PortState.RUNNING
    queued, running = PortState.QUEUED, PortState.RUNNING
    assert not ports.move_port(session, "port-1", 1, queued, running, "It is no more.")
    assert not ports.move_port(session, "port-1", 2, running, queued, "Another attempt.")
    assert subscription.settled_sha == OLD
    ports.update_port(session, "port-1", state=PortState.REJECTED)
    assert subscription.settled_sha == NEW


def test_a_commit_that_was_left_is_doubted_when_it_is_back(session: Session) -> None:
    base = subscribed(session).base
    released(session, NEW, "weights")
    assert observe(session, base.id, OLD) is None  # what a stale read says
    assert observe(session, base.id, NEW) is None and base.doubted_sha is None
    assert observe(session, base.id, OLD) is None and base.head_sha == NEW
    base.doubted_at = now() - DOUBT
    back = observe(session, base.id, OLD)
    assert back is not None and (back.from_sha, back.sha) == (NEW, OLD)
    base.doubted_at = now() - DOUBT
    assert observe(session, base.id, NEW) is None  # doubted anew
    base.doubted_at = now() - DOUBT
    again = observe(session, base.id, NEW)
    assert again is not None and following.times_before(session, again) == 1


def test_a_tree_moves_one_fine_tune_at_a_time(session: Session) -> None:
    there, new = Head("a/one", "main", OLD), Head("b/two", "main", NEW)
    base = following.follow(session, Rule.TREE, BASE, "medical", [there])
    patch = records.add_patch(session, new_patch())
    records.subscribe(session, patch, base, "owner/on-{name}", "adapter", None)
    assert following.observe(session, base.id, [there]) == []
    (release,) = following.observe(session, base.id, [there, new])
    assert (release.from_repo, release.repo, release.sha) == (BASE, "b/two", NEW)
    moved = Head("a/one", "main", NEWER)
    (release,) = following.observe(session, base.id, [moved, new])
    assert (release.from_sha, release.sha) == (OLD, NEWER)
    assert following.observe(session, base.id, [there, new]) == []  # stale, or a force-push back


def shown(session: Session) -> Status:
    session.flush()
    return status(session, session.scalars(select(Subscription)).one())


def test_status_of_a_base_that_stands_still(session: Session) -> None:
    subscribed(session)
    found = shown(session)
    assert found.state == "up to date" and "the patch was trained on" in found.reason
    assert (found.patch, found.follows, found.to) == ("owner/patch@ddddddd", f"{BASE}@main", PORTED)


def test_status_of_a_base_that_had_moved_before_says_what_to_run(session: Session) -> None:
    subscribed(session, head=NEW)
    found = shown(session)
    assert found.state == "up to date"
    assert f"portllm port {BASE} {PATCH} --out DIR" in found.reason
    assert f"{BASE}@aaaaaaa" in found.reason and "bbbbbbb" in found.reason


def test_status_while_a_release_is_looked_at(session: Session) -> None:
    subscribed(session)
    released(session, NEW, None)
    assert shown(session).state == "classifying" and "bbbbbbb" in shown(session).reason


@pytest.mark.parametrize("change", ["nothing", "metadata"])
def test_status_after_a_release_without_weights(session: Session, change: str) -> None:
    subscribed(session)
    released(session, NEW, change, "Only README.md changed.")
    found = shown(session)
    assert found.state == "up to date"
    assert found.reason == f"{BASE}@bbbbbbb: Only README.md changed."


def test_status_of_a_release_that_could_not_be_read(session: Session) -> None:
    subscribed(session)
    released(session, NEW, "unreadable", "config.json is missing.")
    found = shown(session)
    assert found.state == "skipped" and "config.json is missing." in found.reason


def test_an_unreadable_release_is_told_though_an_earlier_one_was_ported(session: Session) -> None:
    subscribed(session)
    ported(session, released(session, NEW, "weights"), PortState.PUBLISHED)
    released(session, NEWER, "unreadable", "config.json is missing.")
    found = shown(session)
    assert found.state == "skipped" and "config.json is missing." in found.reason


@pytest.mark.parametrize("state", PortState)
def test_status_is_that_of_the_port(session: Session, state: PortState) -> None:
    subscribed(session)
    ported(session, released(session, NEW, "weights"), state)
    found = shown(session)
    assert (found.state, found.reason) == (state, f"It is {state}.")
    assert (found.port, found.url) == ("port-1", "http://hub/x")
    assert set(found.to_dict()) == {
        "patch", "follows", "to", "form", "policy", "state", "reason", "port", "url"
    }  # fmt: skip


def test_a_quiet_release_after_a_port_is_told_beside_it(session: Session) -> None:
    subscribed(session)
    ported(session, released(session, NEW, "weights"), PortState.PUBLISHED)
    released(session, NEWER, "metadata", "Only README.md changed.")
    found = shown(session)
    assert found.state == "published"
    assert found.reason == "It is published. Since then: Only README.md changed."


def test_the_newest_port_counts(session: Session) -> None:
    subscribed(session)
    ported(session, released(session, NEW, "weights"), PortState.PUBLISHED)
    ported(session, released(session, NEWER, "weights"), PortState.REJECTED, "port-2")
    assert (shown(session).state, shown(session).port) == ("rejected", "port-2")


def test_a_problem_of_the_base_comes_first(session: Session) -> None:
    subscription = subscribed(session)
    subscription.base.problem = "vendor/base does not exist."
    found = shown(session)
    assert found.state == "blocked" and found.reason.startswith("vendor/base does not exist.")


class History(RuleBasedStateMachine):
    """Whatever happens in whatever order: an active subscription has a state and says why."""

    def __init__(self) -> None:
        super().__init__()
        self.database = Database("sqlite://")
        self.session = Session(self.database.engine)
        self.shas = iter(f"{number:040x}" for number in range(10**6))
        self.ports = iter(f"port-{number}" for number in range(10**6))
        subscribed(self.session)

    @property
    def base(self) -> Base:
        return self.session.scalars(select(Base)).one()

    @property
    def subscription(self) -> Subscription:
        return self.session.scalars(select(Subscription)).one()

    @rule()
    def moves(self) -> None:
        observe(self.session, self.base.id, next(self.shas))

    @rule(back=st.integers(0, 3))
    def moves_back(self, back: int) -> None:
        releases = self.session.scalars(select(Release).order_by(Release.id.desc())).all()
        sha = releases[back].sha if back < len(releases) else OLD
        observe(self.session, self.base.id, sha)

    @precondition(lambda self: following.unclassified_releases(self.session))
    @rule(
        change=st.sampled_from(
            ["nothing", "metadata", "weights", "tokenizer", "shapes", "architecture", "unreadable"]
        )
    )
    def classified(self, change: str) -> None:
        release = following.unclassified_releases(self.session)[0]
        release.change, release.reason = change, f"The {change} changed."

    @precondition(lambda self: self.session.scalar(select(Release.id)))
    @rule(state=st.sampled_from(PortState), back=st.integers(0, 2))
    def ported(self, state: PortState, back: int) -> None:
        releases = self.session.scalars(select(Release).order_by(Release.id.desc())).all()
        release, key = releases[min(back, len(releases) - 1)], next(self.ports)
        ports.create_ports(self.session, release.id, {self.subscription.id: {"key": key}})
        one = select(Port).where(Port.release_id == release.id)
        begun = self.session.scalars(one).one()
        ports.update_port(self.session, begun.key, state=state, reason=f"It is {state}.")

    @rule()
    def fails(self) -> None:
        self.base.problem = "The Hub can't be reached."

    @precondition(lambda self: active_subscriptions(self.session))
    @rule()
    def ended(self) -> None:
        records.unsubscribe(self.session, PATCH, None)

    @rule(form=st.sampled_from(["adapter", "merged", "both"]))
    def resumed(self, form: str) -> None:
        base = follow(self.session, self.base.head_sha)
        records.subscribe(self.session, self.subscription.patch, base, PORTED, form, None)

    @invariant()
    def every_subscription_says_why(self) -> None:
        self.session.flush()
        for subscription in active_subscriptions(self.session):
            found = status(self.session, subscription)
            assert found.state and found.reason and "None" not in found.reason
            if self.base.problem:
                assert found.state == "blocked" and self.base.problem in found.reason

    def teardown(self) -> None:
        self.session.close()
        self.database.close()


History.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestHistory = History.TestCase
