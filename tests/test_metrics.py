"""What monitors are shown: metrics against a count by hand, health against what can be wrong."""

import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, text

from bot.context import Context
from bot.hub import Hub, HubPublisher
from bot.running.metrics import registry_of
from bot.serve.app import create_app
from bot.settings import Settings
from registry.database import Database
from registry.models import (
    Base,
    Control,
    Event,
    Patch,
    Port,
    PortState,
    Release,
    Rule,
    Subscription,
    Worker,
    now,
)
from tests.postgres import postgres as postgres  # the fixture
from tests.serving import serving

Samples = dict[tuple[str, ...], float]
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("home")
    if request.param == "sqlite":
        return Settings(home=home)
    return Settings(home=home, database_url=request.getfixturevalue("postgres").create("metrics"))


@pytest.fixture(scope="module")
def context(settings: Settings) -> Iterator[Context]:
    hub = Hub("http://127.0.0.1:9", "hf_nobody")
    context = Context(hub, HubPublisher(hub), Database(settings.registry_url), settings)
    yield context
    context.database.close()


def samples(context: Context) -> dict[str, Samples]:
    """Every metric, its values by those of their labels, in the order of the labels' names."""
    shown = generate_latest(registry_of(context, {"webhook_hints": {"looked": 3}})).decode()
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(shown):
        for sample in family.samples:
            name = sample.name.removeprefix("portllm_")
            found.setdefault(name, {})[
                tuple(value for _, value in sorted(sample.labels.items()))
            ] = sample.value
    return found


def fill(context: Context, draw: random.Random) -> None:
    """Records of three hours, half of them older than one."""
    at = now()
    with context.database.session() as session:
        bases = [
            Base(
                rule=Rule.REF,
                **{"repo": f"org/{number}", "ref": "main", "head_repo": f"org/{number}"},
                **{"head_ref": "main", "head_sha": "0" * 40},
                looked_at=draw.choice([None, at - draw.random() * HOUR]),
                due_at=draw.choice([None, at + (draw.random() - 0.7) * HOUR]),
                problem=draw.choice([None, None, "It is gone."]),
            )
            for number in range(12)
        ]
        patch = Patch(
            **{"repo": "me/patch", "owner": "me", "sha": "1" * 40, "kind": "lora"},
            **{"portability": "A", "base_repo": "org/0", "base_sha": "0" * 40},
        )
        subscriptions = [
            Subscription(
                **{"patch": patch, "base": base, "to_repo": "me/ported", "form": "adapter"},
                **{"from_repo": base.repo, "from_sha": "0" * 40},
                **{"settled_repo": base.repo, "settled_sha": "0" * 40},
                ended_at=draw.choice([None, None, None, at]),
            )
            for base in bases
        ]
        session.add_all(subscriptions)
        session.flush()
        moments = sorted(at - 3 * HOUR * draw.random() for _ in range(150))
        for number, moment in enumerate(moments):
            subscription = draw.choice(subscriptions)
            release = Release(
                id=7 * number + draw.randrange(1, 7),
                base=subscription.base,
                **{"from_repo": "a/b", "from_ref": "main", "from_sha": "0" * 40},
                **{"repo": "a/b", "ref": "main", "sha": f"{number:040}"},
                change=draw.choice([None, "metadata", "weights", "ours"]),
                seen_at=moment,
            )
            action = draw.choice([None, "publish", "ask", "reject"])
            port = Port(
                key=f"port-{number:016x}",
                **{"subscription": subscription, "release": release, "job": {}},
                state=draw.choice(list(PortState)),
                reason="",
                verdict=action and {"action": action},
                published_at=draw.choice([None, moment]),
            )
            session.add(port)
        session.flush()
        keys = [f"port-{number:016x}" for number in range(150)]
        for number, moment in enumerate(sorted(at - 3 * HOUR * draw.random() for _ in range(400))):
            session.add(
                Event(
                    id=3 * number + draw.randrange(1, 3),
                    port_key=draw.choice(keys[:100]),
                    at=moment,
                    attempt=1,
                    step=draw.choice([None, "make", "publish"]),
                    blame=draw.choice([None, None, "theirs", "yours", "ours"]),
                    text="",
                )
            )
        session.add(Control(name="paused", value={"reason": "tests"}))
        session.add(Worker(id="one", pulse_at=at))
        session.add(Worker(id="two", pulse_at=at - timedelta(minutes=2)))


def counted(context: Context, since: datetime) -> dict[str, Samples]:
    """The same, by reading everything."""
    with context.database.session() as session:
        ports = {port.key: port for port in session.query(Port)}
        events = [each for each in session.query(Event) if each.at >= since]
        recent = [ports[key] for key in {each.port_key for each in events}]
        releases = list(session.query(Release))
        seen = [release for release in releases if release.seen_at >= since]
        pushed = [port.published_at for port in recent if port.published_at is not None]
        verdicts = [port.verdict["action"] for port in recent if port.verdict]
        open_ones = ("waiting", "queued", "running", "judged", "asked")
        return {
            "ports": {
                (state,): sum(port.state == state for port in ports.values()) for state in open_ones
            },
            "ports_last_hour": count((port.state,) for port in recent),
            "verdicts_last_hour": count((action,) for action in verdicts),
            "pushes_last_hour": {(): sum(moment >= since for moment in pushed)},
            "errors_last_hour": count((e.blame, e.step or "") for e in events if e.blame),
            "releases_last_hour": count((each.change or "unclassified",) for each in seen),
            "releases_waiting": {(): sum(release.change is None for release in releases)},
        }


def count(labels: Iterator[tuple[str, ...]]) -> Samples:
    return {tuple(map(str, label)): number for label, number in Counter(labels).items()}


def test_metrics_are_what_one_counts_by_hand(context: Context) -> None:
    fill(context, random.Random(0))
    shown = samples(context)
    by_hand = counted(context, now() - HOUR)
    assert by_hand == {name: shown[name] for name in by_hand}
    assert all(len(values) > 0 for values in by_hand.values())
    assert shown["workers"] == {(): 1} and shown["paused"] == {(): 1}
    assert shown["webhook_hints_total"] == {("looked",): 3}
    with context.database.session() as session:
        followed = [s.base for s in session.query(Subscription) if s.ended_at is None]
        late = [now() - base.due_at for base in followed if base.due_at and base.due_at <= now()]
        assert shown["bases"] == {
            ("followed",): len(followed),
            ("due",): len(late),
            ("overdue",): sum(each > timedelta(minutes=15) for each in late),
            ("blocked",): sum(base.problem is not None for base in followed),
        }
        oldest = min(base.looked_at for base in followed if base.looked_at)
    assert shown["look_age_seconds"]["1",] == pytest.approx(
        (now() - oldest).total_seconds(), abs=60
    )


def test_every_metric_is_in_the_docs(context: Context) -> None:
    page = (Path(__file__).parents[1] / "docs/serve.md").read_text().partition("## Metrics")[2]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert samples(context).keys() - documented == set()


def test_a_scrape_reads_no_table_whole(context: Context) -> None:
    if context.settings.is_shared:
        pytest.skip("PostgreSQL rightly reads small tables whole")
    statements: list[tuple[str, Any]] = []

    def noted(_a: Any, _b: Any, statement: str, parameters: Any, _c: Any, _d: Any) -> None:
        statements.append((statement, parameters))

    event.listen(context.database.engine, "before_cursor_execute", noted)
    try:
        samples(context)
    finally:
        event.remove(context.database.engine, "before_cursor_execute", noted)
    with context.database.engine.connect() as connection:
        plans = [
            row[3]
            for statement, parameters in statements
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    scans = [plan for plan in plans if plan.startswith("SCAN") and "bases" not in plan]
    assert all("ix_releases_unclassified" in plan or "workers" in plan for plan in scans), scans
    assert len(statements) < 60


WORKED = """
import sys
from dbos import DBOS, DBOSClient
url = sys.argv[1]
DBOS(config={"name": "tested", "system_database_url": url, "log_level": "ERROR"})

@DBOS.step(name="make")
def make():
    pass

@DBOS.workflow(name="port")
def port():
    make()
    make()

DBOS.launch()
DBOS.start_workflow(port).get_result()
DBOS.destroy()
client = DBOSClient(system_database_url=url)
for queue in ("ports", "ports", "pushes"):
    client.enqueue({"queue_name": queue, "workflow_name": "port"})
"""


def test_queues_and_steps_are_those_of_dbos(context: Context) -> None:
    before = samples(context)
    assert "queue_depth" not in before and "steps_last_hour" not in before
    assert not (context.settings.home / "workflows.db").exists()
    subprocess.run(
        [sys.executable, "-c", WORKED, context.settings.memory_url], check=True, timeout=120
    )
    shown = samples(context)
    assert shown["queue_depth"] == {("ports", "enqueued"): 2, ("pushes", "enqueued"): 1}
    assert shown["steps_last_hour"] == {("make",): 2}
    assert set(shown["step_seconds"]) == {("0.5", "make"), ("0.95", "make"), ("1", "make")}
    assert all(0 <= seconds < 60 for seconds in shown["step_seconds"].values())


def get(context: Context, *paths: str) -> list[requests.Response]:
    with serving(create_app(context, None)) as url:
        return [requests.get(f"{url}/{path}") for path in paths]


def test_health_is_said_with_a_reason(settings: Settings, context: Context) -> None:
    alive, ready = get(context, "healthz", "readyz")
    assert (alive.status_code, alive.json()) == (200, {"state": "alive"})
    assert (ready.status_code, ready.json()) == (200, {"state": "ready"})

    with context.database.session() as session:
        session.add(Control(name="watcher", value={"worker": "gone"}))
        session.add(Worker(id="gone", pulse_at=now() - timedelta(minutes=2)))
    (silent,) = get(context, "readyz")
    assert silent.status_code == 503 and "60 s" in silent.json()["reason"]
    with context.database.session() as session:
        session.get_one(Worker, "gone").pulse_at = now()
    assert get(context, "readyz")[0].status_code == 200

    with context.database.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    (newer,) = get(context, "readyz")
    assert newer.status_code == 503 and "restart" in newer.json()["reason"]


def test_a_database_that_is_away_is_said_and_not_described(
    settings: Settings, tmp_path: Path
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    hub = Hub("http://127.0.0.1:9", "none")
    context = Context(hub, HubPublisher(hub), database, Settings(home=tmp_path))
    with serving(create_app(context, None)) as url:
        database.close()
        for file in tmp_path.glob("registry.db*"):
            file.unlink()
        answers = [requests.get(f"{url}/{path}") for path in ("readyz", "metrics")]
        assert requests.get(f"{url}/healthz").status_code == 200
    for answer in answers:
        assert answer.status_code == 503 and "database" in answer.text
        assert str(tmp_path) not in answer.text


def test_every_answer_is_for_no_browser(context: Context) -> None:
    for answer in get(context, "healthz", "readyz", "metrics", "webhooks", "nothing"):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert answer.headers["Cache-Control"] == "no-store" and "server" not in answer.headers
        assert "hf_nobody" not in answer.text
