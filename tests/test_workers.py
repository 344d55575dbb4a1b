"""Many processes share the work on a real PostgreSQL: killed, frozen and stopped, they lose nothing
and do nothing twice.
"""

import hashlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from bot.context import Context
from bot.hub import Hub, HubPublisher
from bot.making.make import have_judged, is_made, ready
from bot.making.sandbox import silent
from bot.running.run import work
from bot.running.workers import sweep
from bot.settings import Settings
from localhub.server import Server
from porting import Folder, merge, plan
from porting.errors import PortllmError, UsageError
from registry import workers
from registry.database import Database
from registry.models import PortState, Score
from registry.ports import save_score, update_port
from tests.crew import LONG, Crew
from tests.forks import FORKS
from tests.postgres import Postgres
from tests.postgres import postgres as postgres  # the fixture
from tests.test_registry import NEW, differences, ported, released, subscribed

PATCH, JUDGED = "owner/patch", "owner/judged"
LIMIT = timedelta(seconds=30)


@pytest.fixture
def url(postgres: Postgres, tmp_path: Path) -> str:
    return postgres.create(tmp_path.name)


@pytest.fixture
def crew(hub: Server, tmp_path: Path, url: str) -> Iterator[Crew]:
    crew = Crew(hub, tmp_path, url)
    yield crew
    for member in crew.members:
        member.process.kill()
        member.process.join()
    crew.context.database.close()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(Settings(database_url=url).registry_url)
    yield opened
    opened.close()


def until(come: Callable[[], Any], crew: Crew) -> None:
    """Wait for it; it is told by a database, or by a Hub."""
    end = time.monotonic() + LONG
    while not come():
        said = (crew.folder / "log").read_text()[-4000:]
        assert time.monotonic() < end, f"It did not come: {said}"
        time.sleep(0.1)


def rows(crew: Crew, query: str) -> list[Any]:
    with crew.context.database.session() as session:
        return list(session.execute(text(query)).all())


def begun(crew: Crew, name: str, status: str = "PENDING") -> dict[str, str]:
    """The worker of each of the workflows called `name` that have this status, by its id."""
    chosen = "SELECT workflow_uuid, executor_id FROM dbos.workflow_status"
    found = rows(crew, f"{chosen} WHERE name = '{name}' AND status = '{status}'")
    return {workflow: worker for workflow, worker in found}


def died(crew: Crew) -> set[str]:
    """Ports whose worker died."""
    found = rows(crew, "SELECT port_key FROM events WHERE text LIKE 'Its worker died%'")
    return {key for (key,) in found}


def are_over(crew: Crew) -> bool:
    found = crew.ports()
    return bool(found) and all(port.state in ("published", "asked", "failed") for port in found)


def check_once(crew: Crew) -> None:
    """Every port stands on the Hub, whole, once."""
    for port in crew.ports():
        repo, tag = port.job["to_repo"], f"base-{port.job['new_sha'][:7]}"
        assert port.state in ("published", "asked"), port.reason
        brought = [c for c in crew.api.list_repo_commits(repo) if c.title.startswith("Port to")]
        asked = list(crew.api.get_repo_discussions(repo))
        tags = {each.name: each.target_commit for each in crew.api.list_repo_refs(repo).tags}
        if port.state == "published":
            assert (len(brought), len(asked)) == (1, 0)
            assert tags == {tag: port.published_sha} and brought[0].commit_id == port.published_sha
        else:
            assert (len(brought), len(asked), tags) == (0, 1, {})


def test_of_the_dead_and_the_frozen_others_take_the_work(crew: Crew) -> None:
    crew.add_patch(PATCH)
    for number, unclear in enumerate(("publish", "ask") * 3):
        crew.subscribe(PATCH, f"owner/port-{number}", "adapter", unclear)
    crew.release(1)
    ports, pushes = ("ports",), ("pushes",)
    stopped = crew.start("a", "worker", "after make", queues=ports)
    frozen = crew.start("b", "worker", "before commit", queues=pushes, freezes=True, limit=10)
    mortals = [
        crew.start("c", "worker", "after make", queues=ports),
        crew.start("d", "worker", "before commit", queues=pushes),
        crew.start("e", "bot", "after commit"),
    ]
    for member in (stopped, frozen, *mortals):
        member.wait()
    since = time.monotonic()
    (handed,) = (name for name, worker in begun(crew, "port").items() if worker == "a")
    assert stopped.end(signal.SIGTERM) == 0
    until(lambda: begun(crew, "port").get(handed) != "a", crew)
    with crew.context.database.session() as session:
        workers.take_turn(session)  # whoever was at it has said so by then
    assert died(crew) == set()
    for member in mortals:
        member.end(signal.SIGKILL)
    crew.age(frozen, *mortals)
    last = crew.start("f", "bot")
    until(lambda: are_over(crew), crew)
    assert len(died(crew)) >= 4
    check_once(crew)
    time.sleep(max(0.0, since + 10 - time.monotonic()))  # by then it should have said something
    frozen.send(signal.SIGCONT)
    frozen.process.join(LONG)
    assert frozen.process.exitcode == 1
    check_once(crew)
    assert last.end(signal.SIGTERM) == 0
    assert rows(crew, "SELECT * FROM workers") == rows(crew, "SELECT * FROM controls") == []


def test_one_port_is_spread_over_workers_and_committed_once(crew: Crew) -> None:
    for patch in (PATCH, JUDGED):
        crew.add_patch(patch)
    crew.subscribe(PATCH, "owner/merged", "merged")
    crew.subscribe(JUDGED, "owner/both", "both")
    crew.release(1)
    mortals = [
        crew.start("a", "bot", queues=("releases", "ports", "pushes")),
        sender := crew.start("b", "worker", "after upload", queues=("shards",)),
    ]
    sender.wait()
    crew.start("c", "bot")
    until(lambda: "c" in begun(crew, "shard", "SUCCESS").values(), crew)
    assert "b" in begun(crew, "shard").values()
    for mortal in mortals:
        mortal.end(signal.SIGKILL)
    crew.age(*mortals)
    until(lambda: are_over(crew), crew)
    check_once(crew)
    for patch, repo in ((PATCH, "owner/merged"), (JUDGED, "owner/both")):
        out, tuned = crew.folder / repo, crew.folder / patch
        made = plan(Folder(crew.base), Folder(tuned), as_="merged")
        digests = merge(made, crew.base, tuned, out)
        lfs = {e.path: e.lfs.sha256 for e in crew.api.list_repo_tree(repo) if getattr(e, "lfs", 0)}
        assert lfs and lfs.items() <= digests.items()
        (port,) = (each for each in crew.ports() if each.job["to_repo"] == repo)
        assert {f"merged/{name}": digest for name, digest in digests.items()}.items() <= (
            port.made or {}
        ).items()


def test_what_an_older_version_or_nobody_goes_on_with_is_begun_again(crew: Crew) -> None:
    crew.add_patch(PATCH)
    crew.subscribe(PATCH, "owner/port", "adapter")
    crew.release(1)
    older = crew.start("a", "bot", "after make", version="0")
    older.wait()
    older.end(signal.SIGKILL)
    crew.age(older)
    crew.start("b", "bot")
    until(lambda: are_over(crew), crew)
    assert [port.attempt for port in crew.ports()] == [2]
    until(lambda: not begun(crew, "publication"), crew)
    lost = "SET status = 'PENDING', completed_at = NULL WHERE status = 'SUCCESS' RETURNING name"
    found = rows(crew, f"UPDATE dbos.workflow_status {lost}")  # as if its answers had been lost
    assert {name for (name,) in found} >= {"port", "publication"}
    until(lambda: not begun(crew, "port") and not begun(crew, "publication"), crew)
    check_once(crew)
    # As by a watcher that froze: what it had begun was over when it said that it waits.
    queued = "SET state = 'queued', attempt = attempt + 1, published_at = NULL"
    rows(crew, f"UPDATE ports {queued} RETURNING key")
    until(lambda: are_over(crew), crew)
    assert [port.attempt for port in crew.ports()] == [4]
    check_once(crew)


def test_migrations_of_postgres_give_the_models_schema_however_many_run(url: str) -> None:
    opened = Settings(database_url=url).registry_url
    together = [FORKS.Process(target=Database, args=(opened,)) for _ in range(4)]
    for process in together:
        process.start()
    for process in together:
        process.join()
    assert [process.exitcode for process in together] == [0] * 4
    database = Database(opened)
    assert differences(database) == []
    database.close()


def test_what_comes_out_otherwise_than_judged_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path(part: str) -> Path:
        return tmp_path / "work/port-1" / part

    judged = {"adapter/a": hashlib.sha256(b"a").hexdigest(), "adapter/b": "0" * 64}
    context: Any = SimpleNamespace(settings=Settings(home=tmp_path))
    job: Any = SimpleNamespace(key="port-1")
    path("adapter").mkdir(parents=True)
    path("adapter/a").write_bytes(b"a")
    assert is_made(context, job, "adapter/a", judged)
    path("adapter/b").write_bytes(b"b")
    assert not is_made(context, job, "adapter/b", judged)
    monkeypatch.setattr("bot.making.make._make", lambda *_: judged | {"adapter/b": "1" * 64})
    with pytest.raises(PortllmError, match=r"not what was judged: adapter/b\."):
        ready(context, job, 1.0, judged, silent)
    made = []
    monkeypatch.setattr("bot.making.make._make", lambda *_: made.append(judged) or judged)
    for is_judged in (False, True):  # it is made again on this machine for those who judge it
        monkeypatch.setattr("bot.making.make._is_judged", lambda *_, is_judged=is_judged: is_judged)
        have_judged(context, job, 1.0, judged, silent)
        assert bool(made) == is_judged


def test_a_worker_without_others_is_an_error_of_usage(tmp_path: Path) -> None:
    hub = Hub("http://127.0.0.1:1", "none")
    settings = Settings(home=tmp_path, database_url=None)
    database = Database(settings.registry_url)
    with pytest.raises(UsageError, match="PORTLLM_DATABASE_URL"):
        work(Context(hub, HubPublisher(hub), database, settings))
    database.close()


def test_the_dead_stay_dead_by_the_clock_of_the_database(database: Database) -> None:
    with database.session() as session:
        workers.enter(session, "a")
        assert workers.beat(session, "a", LIMIT, {"read": 7})
        assert workers.living(session, LIMIT) == {"a"}
        assert workers.traffic_of(session, LIMIT) == {"a": {"read": 7}}
    with database.session() as session:
        assert not workers.beat(session, "a", timedelta(0), {})
        assert not workers.beat(session, "b", LIMIT, {})
        assert workers.living(session, timedelta(0)) == set()
        workers.bury(session, timedelta(0))
    with database.session() as session:
        assert not workers.beat(session, "a", LIMIT, {})


def test_one_watches_until_it_leaves_or_dies(database: Database) -> None:
    def watches(worker: str, limit: timedelta = LIMIT) -> bool:
        with database.session() as session:
            return workers.watches(session, worker, limit)

    for worker in "ab":
        with database.session() as session:
            workers.enter(session, worker)
    assert [watches("a"), watches("b"), watches("a")] == [True, False, True]
    with database.session() as session:
        workers.leave(session, "a")
        workers.enter(session, "a")
    assert [watches("b"), watches("a")] == [True, False]
    assert [watches("a", timedelta(0)), watches("b")] == [True, False]


def test_two_may_record_the_same_score_at_once(database: Database) -> None:
    def save(number: int) -> None:
        with database.session() as session:
            save_score(session, "key", {"number": number})

    def is_waiting() -> bool:
        with database.session() as session:
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            return bool(session.execute(text(waits)).scalar())

    with ThreadPoolExecutor(1) as pool:
        with database.session() as session:
            save_score(session, "key", {"number": 1})
            second = pool.submit(save, 2)
            while not is_waiting():  # for the first
                time.sleep(0.01)
        second.result()
    with database.session() as session:
        assert session.get_one(Score, "key").result == {"number": 2}


def test_of_what_is_over_nothing_is_left(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=None)
    database = Database(settings.registry_url)
    context: Any = SimpleNamespace(settings=settings, database=database)
    with database.session() as session:
        subscribed(session)
        key = ported(session, released(session, NEW, "weights"), PortState.WAITING).key
    for state in PortState:
        with database.session() as session:
            update_port(session, key, state=state)
        kept, scratch = settings.work(key) / "merged", settings.scratch.parent / "dead/portllm-x"
        for folder in (kept, scratch, settings.scratch, settings.work("by-hand")):
            folder.mkdir(parents=True, exist_ok=True)
        sweep(context)
        assert kept.exists() == (state in ("waiting", "queued", "running", "judged"))
        assert not scratch.exists() and settings.scratch.exists()
        assert settings.work("by-hand").exists()
    database.close()
