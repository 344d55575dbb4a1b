"""With a million subscriptions, every question that is asked often is answered by an index."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from benchmarks.records_inputs import Sizes, World, fill, owner_name, patch_repo, target
from bot.context import NAME
from bot.publishing.targets import ports_to
from bot.running.controls import find_port
from registry import following, ports, records
from registry.database import Database
from registry.models import Base, Patch, Port, PortState, Release, Rule, Subscription, now
from registry.status import chosen, statuses
from tests.postgres import Postgres, postgres

__all__ = ["postgres"]  # pytest finds the fixture here

WORLD = World(Sizes(bases=100, owners=50, patches=200, subscriptions=2000))
BIG = {"patches", "releases", "subscriptions", "ports", "events"}
# Read from one end: the one is short, of the other only a page is read.
SHORT = {"ix_releases_unclassified", "ix_ports_release_id_subscription_id"}
LOGGED = """INSERT INTO events (port_key, at, attempt, text)
    SELECT key, created_at, attempt, reason FROM ports"""
Plan = dict[str, Any]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('scale') / 'registry.db'}"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        url = server.create("scale").replace("postgresql:", "postgresql+psycopg:")
    opened = Database(url)
    fill(opened, WORLD)
    with opened.engine.begin() as connection:
        connection.exec_driver_sql(LOGGED)
        if request.param == "postgres":
            connection.exec_driver_sql("ANALYZE events")
    yield opened
    opened.close()


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    """Whatever it changes is undone."""
    with Session(database.engine) as opened:
        yield opened


NEWEST = select(Release).where(Release.base_id == 1).order_by(Release.id.desc()).limit(1)


def newest(session: Session) -> Release:
    """Of the first base, the most popular one."""
    return session.scalars(NEWEST).one()


def some_ports(session: Session) -> list[Port]:
    """Judged, and in groups."""
    found = list(session.scalars(select(Port).order_by(Port.key).limit(5)))
    for port in found:
        port.subscription.group_name = "night"
    session.flush()
    return found


def begin(session: Session, release: Release) -> None:
    ids = [id for some in following.subscribers(session, release).values() for id in some]
    jobs = {each.id: {"key": f"k-{each.id}"} for each in ports.with_patches(session, ids)}
    ports.create_ports(session, release.id, jobs)


# What is asked, after what it is asked about has been looked up.
QUESTIONS: dict[str, tuple[Callable[[Session], Any], Callable[[Session, Any], Any]]] = {
    "begin ports": (newest, begin),
    "observe": (
        lambda s: s.get_one(Base, 1),
        lambda s, base: following.observe(s, 1, [following.Head(base.repo, "main", "f" * 40)]),
    ),
    "bases": (lambda _: "vendor-001/Model", following.bases_touched),
    "unclassified": (lambda _: now(), following.unclassified_releases),
    "due": (lambda _: now(), lambda s, at: ports.due_ports(s, PortState.WAITING, at)),
    "overtaken": (some_ports, ports.overtaken),
    "grouped": (some_ports, ports.grouped),
    "judged": (
        lambda s: some_ports(s)[0].key,
        lambda s, key: ports.update_port(s, key, state=PortState.ASKED),
    ),
    "log": (lambda s: some_ports(s)[0].key, ports.events),
    "status": (
        lambda _: owner_name(WORLD.owner.max()),
        lambda s, owner: statuses(s, chosen(s, owner=owner)),
    ),
    "ports": (
        lambda _: patch_repo(WORLD.owner[0], 0),
        lambda s, repo: [
            s.scalars(ports.newest_ports(50, state, patch)).all()
            for state in (None, PortState.PUBLISHED)
            for patch in (None, repo)
        ],
    ),
    "ports to": (
        lambda s: s.get_one(Subscription, 1).to_repo,
        lambda s, to: (
            ports_to(s, to, PortState.PUBLISHED),
            ports_to(s, "nobody/nothing", PortState.PUBLISHED),
        ),
    ),
    "find port": (lambda s: some_ports(s)[0].key, find_port),
    "find patch": (lambda _: patch_repo(WORLD.owner[0], 0), records.find_patch),
    "subscribe": (
        lambda s: (records.find_patch(s, patch_repo(WORLD.owner[0], 0)), s.get_one(Base, 1)),
        lambda s, pair: records.subscribe(s, *pair, target(0, 10**6), "adapter", None),
    ),
    "unsubscribe": (
        lambda s: s.get_one(Subscription, 1).patch.repo,
        lambda s, repo: records.unsubscribe(s, repo, None),
    ),
    "settle": (
        newest,
        lambda s, release: following.settle(s, release, (release.repo, release.sha)),
    ),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_it_is_answered_by_an_index(session: Session, question: str) -> None:
    look_up, ask = QUESTIONS[question]
    about = look_up(session)
    with recorded(session) as statements:
        ask(session, about)
        session.flush()
    assert statements and [scan for each in statements for scan in scans(session, *each)] == []


def test_a_scan_would_be_seen(session: Session) -> None:
    with recorded(session) as statements:
        session.scalars(select(Port).where(Port.reason == "None.")).all()
    assert scans(session, *statements[0])


@given(states=st.lists(st.sampled_from(PortState), min_size=2, max_size=6), is_tree=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[*HealthCheck])
def test_a_port_is_overtaken_by_a_later_one_that_is_not_lost(
    session: Session, states: list[PortState], is_tree: bool
) -> None:
    with session.begin_nested() as undone:
        subscription = session.get_one(Subscription, 1)
        subscription.base.rule = Rule.TREE if is_tree else Rule.REF
        made = []
        for number, state in enumerate(states):
            release = Release(
                base=subscription.base, from_repo="a/b", from_ref="main", from_sha="a" * 40,
                repo=f"a/{number % 2}", ref="main", sha=f"{number:040x}",
            )  # fmt: skip
            port = Port(
                key=f"k-{number}", subscription=subscription, release=release, job={},
                state=state, reason="A reason.",
            )  # fmt: skip
            session.add(port)
            session.flush()
            made.append(port)
        gone = (*ports.LOST, PortState.CANCELLED)
        expected = {
            port.key: later.release
            for port in made
            for later in made
            if later.release_id > port.release_id
            and later.state not in gone
            and (not is_tree or later.release.repo == port.release.repo)
        }
        assert ports.overtaken(session, made) == expected
        undone.rollback()


def test_subscribers_are_the_active_ones_that_were_there_before(session: Session) -> None:
    release = session.scalars(select(Release).where(Release.base_id == 1).offset(20).limit(1)).one()
    there = session.scalars(select(Subscription).where(Subscription.base_id == 1)).all()
    for number, subscription in enumerate(there):
        if number % 3 == 0:
            subscription.ended_at = now()
        if number % 3 == 1:
            subscription.created_at = release.seen_at
    session.flush()
    expected = defaultdict(set)
    for each in there:
        if each.ended_at is None and each.created_at <= release.seen_at:
            expected[each.settled_repo, each.settled_sha].add(each.id)
    found = following.subscribers(session, release)
    assert {commit: {*ids} for commit, ids in found.items()} == expected
    assert 0 < sum(map(len, found.values())) < len(there)


def test_names_are_in_the_order_of_bytes(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        pytest.skip("It knows no other.")
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(
            "CREATE DATABASE words TEMPLATE template0 "
            "LOCALE_PROVIDER icu ICU_LOCALE 'und-u-ka-shifted'"  # passes over a slash
        )
    there = database.engine.url.set(database="words").render_as_string()
    of_words = Database(there)
    with of_words.session() as session:
        base = following.follow(session, Rule.TREE, "vendor/base", "", [])
        patch = Patch(repo="me/lora", owner="me", sha="a" * 40, kind="LoRA", portability="A",
                      base_repo="vendor/base", base_sha="b" * 40)  # fmt: skip
        into = records.subscribe(
            session, records.add_patch(session, patch), base, f"me/mine-on-{NAME}", "adapter", None
        )
        head = following.Head("lab/that", "main", "c" * 40)
        (release,) = following.observe(session, base.id, [head])
        job = {"key": "port-1", "to_repo": "me/mine-on-that"}
        ports.create_ports(session, release.id, {into.id: job})
        (found,) = ports_to(session, "me/mine-on-that", PortState.WAITING)
        assert found.key == "port-1" and not ports_to(session, "me/other", PortState.WAITING)
    of_words.close()


@contextmanager
def recorded(session: Session) -> Iterator[list[tuple[str, Any]]]:
    """The statements that are sent meanwhile, with their parameters."""
    found: list[tuple[str, Any]] = []

    def record(_c: Any, _cursor: Any, sent: str, parameters: Any, _x: Any, many: bool) -> None:
        found.append((sent, parameters[0] if many else parameters))

    engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", record)
    yield found
    event.remove(engine, "before_cursor_execute", record)


def scans(session: Session, statement: str, parameters: Any) -> list[str]:
    """What would be read from end to end, if it were long."""
    connection = session.connection()
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        steps = [row[3] for row in rows]
        return [
            step
            for step in steps
            if step.startswith("SCAN ") and BIG & {*step.split()} and not SHORT & {*step.split()}
        ]
    for other in ("seqscan", "hashjoin", "mergejoin"):  # good for tables as short as here
        connection.exec_driver_sql(f"SET LOCAL enable_{other} = off")
    (plan,) = connection.exec_driver_sql(
        f"EXPLAIN (FORMAT JSON) {statement}", parameters
    ).scalar_one()
    return [
        f"{node['Node Type']} of {node['Relation Name']}"
        for node in nodes(plan["Plan"])
        if node.get("Relation Name") in BIG
        and node["Node Type"] in ("Seq Scan", "Index Scan", "Index Only Scan")
        and "Index Cond" not in node
        and node.get("Index Name") not in SHORT
    ]


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)
