"""Why did nothing happen? Every subscription says so."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event

from bot.running import controls
from bot.running.dispatch import dispatch
from porting.errors import UsageError
from registry import following, records
from registry.models import Port, PortState, Release, Worker, now
from registry.ports import create_ports, update_port
from registry.status import chosen, statuses
from tests.judged import PATCH
from tests.records import LONG_AGO, Records


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Records]:
    made = Records(tmp_path)
    yield made
    made.database.close()


def test_everything_is_paused(kept: Records) -> None:
    idle, waits, done = (
        kept.subscribe(f"owner/{name}", f"vendor/{name}") for name in ("idle", "waits", "done")
    )
    kept.port(waits, PortState.WAITING, "port-1")
    kept.port(done, PortState.PUBLISHED, "port-2")
    kept.do(controls.pause_all, "The Hub is being moved.")
    dispatch(kept.context, kept.bot)
    said = "Everything is paused: The Hub is being moved. It goes on with: portllm resume --all"
    for into in (idle, waits):
        found = kept.status(into)
        assert found.state == "paused" and found.reason.startswith(f"{said} Before that: ")
    assert kept.status(done).state == "published" and kept.status(done).reason.endswith(said)
    assert kept.read("port-1").state == PortState.WAITING
    kept.do(controls.resume_all)
    assert kept.status(waits).state == "waiting" and "paused" not in kept.status(waits).reason
    with pytest.raises(UsageError, match="No subscription is paused"):
        kept.do(controls.resume_all)


def test_a_subscription_is_paused(kept: Records) -> None:
    into, other = kept.subscribe(), kept.subscribe("owner/other", "vendor/other")
    kept.port(into, PortState.WAITING, "port-1")
    kept.do(controls.pause, "owner/ported")
    dispatch(kept.context, kept.bot)
    found = kept.status(into)
    assert found.state == "paused" and "portllm resume owner/ported" in found.reason
    assert kept.read("port-1").due_at > now()
    assert kept.status(other).state == "up to date"
    with pytest.raises(UsageError, match=r"Paused are: owner/ported\."):
        kept.do(controls.resume, "owner/other")
    kept.do(controls.resume, "owner/patch")
    assert kept.status(into).state == "waiting" and kept.read("port-1").due_at <= now()
    with pytest.raises(UsageError, match="portllm status"):
        kept.do(controls.pause, "owner/nothing")


def test_a_base_is_blocked_and_nobody_watches(kept: Records) -> None:
    into = kept.subscribe()
    kept.change(following.Base, 1, problem="vendor/base does not exist.")
    found = kept.status(into)
    assert found.state == "blocked" and "does not exist" in found.reason
    kept.change(following.Base, 1, problem=None, due_at=now() - LONG_AGO)
    assert "Nobody has looked at vendor/base@main yet" in kept.status(into).reason
    kept.change(following.Base, 1, looked_at=now() - 2 * LONG_AGO)
    found = kept.status(into)
    assert "since 20" in found.reason and "start one: portllm bot run" in found.reason
    kept.change(following.Base, 1, looked_at=now())
    assert "Nobody" not in kept.status(into).reason


@pytest.mark.parametrize(
    ("manners", "said"),
    [
        ({"minimum_release_age": "PT24H"}, "let ripen until 20"),
        ({"schedule": "0 0 29 feb *"}, "Outside of its schedule (0 0 29 feb *) until 20"),
    ],
)
def test_a_release_is_too_young_or_it_is_not_the_hour(
    kept: Records, manners: dict[str, str], said: str
) -> None:
    into = kept.subscribe(**manners)
    kept.port(into, PortState.WAITING, "port-1")
    dispatch(kept.context, kept.bot)
    found = kept.status(into)
    assert found.state == "waiting" and said in found.reason
    assert now() < kept.read("port-1").due_at < now() + timedelta(minutes=2)


def test_it_waits_for_its_group(kept: Records) -> None:
    one, two = kept.subscribe(group="both"), kept.subscribe("lab/ported", group="both")
    release = kept.release(one)
    with kept.database.session() as session:
        create_ports(session, release, {one: {"key": "port-1"}, two: {"key": "port-2"}})
        verdict = {"action": "publish", "reason": "It is good."}
        update_port(session, "port-1", state=PortState.JUDGED, verdict=verdict)
        update_port(session, "port-2", due_at=now() + LONG_AGO)
    dispatch(kept.context, kept.bot)
    assert kept.status(one).reason == "Judged; its group both waits for lab/patch."


def test_no_worker_is_running(kept: Records) -> None:
    into = kept.subscribe()
    kept.port(into, PortState.QUEUED, "port-1", updated_at=now() - LONG_AGO)
    assert "No worker is running; start one: portllm bot run" in kept.status(into).reason
    with kept.database.session() as session:
        session.add(Worker(id="one"))
    assert "worker" not in kept.status(into).reason
    kept.change(Worker, "one", pulse_at=now() - LONG_AGO)
    kept.change(Port, "port-1", state=PortState.WAITING, due_at=now() + LONG_AGO)
    assert "worker" not in kept.status(into).reason  # it has nothing to do yet
    kept.release(into, None)
    kept.change(Release, 2, due_at=now() - LONG_AGO)
    assert "No worker is running" in kept.status(into).reason


def test_an_ended_one_is_shown_where_it_is_asked_for(kept: Records) -> None:
    kept.subscribe()
    with kept.database.session() as session:
        records.unsubscribe(session, PATCH, None)
    with kept.database.session() as session:
        assert chosen(session) == []
        (found,) = statuses(session, chosen(session, patch=PATCH, ended=True))
        assert found.state == "ended" and "portllm subscribe takes it up again" in found.reason


def test_a_release_with_the_weights_of_before_needs_nothing(kept: Records) -> None:
    into = kept.subscribe()
    kept.port(into, PortState.PUBLISHED, "port-1")
    kept.port(into, PortState.REFUSED, "port-2")
    release = kept.release(into)
    with kept.database.session() as session:
        first = session.get_one(Release, 1)
        session.get_one(Release, release).sha = first.sha
    found = kept.status(into)
    assert found.state == "up to date" and "has had its port before" in found.reason


def test_many_take_as_few_queries_as_one_and_say_the_same(kept: Records) -> None:
    states = [*PortState, None]
    ids = [
        kept.subscribe(f"owner/to-{number}", f"vendor/{number}") for number in range(len(states))
    ]
    for number, (into, state) in enumerate(zip(ids, states, strict=True)):
        if state is not None:
            kept.port(into, state, f"port-{number}")
    kept.do(controls.pause, "owner/to-3")
    asked: list[str] = []
    event.listen(kept.database.engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    with kept.database.session() as session:
        together = statuses(session, chosen(session, "owner"))
    assert len(asked) <= 7
    assert together == [kept.status(into) for into in ids]
    assert [each.port for each in together] == [
        f"port-{number}" if state else None for number, state in enumerate(states)
    ]
