"""The processes that work, and which of them watches: all by the clock of the database.

A worker lives while its pulse is younger than a limit. One that is dead stays so.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from registry.database import changed
from registry.models import Control, Worker, now

WATCHER = "watcher"
TURN = 0x706F7274_6C6C6D01  # what the lock is called: "portllm", one


def clock(session: Session) -> datetime:
    """The time: in Postgres the server's, since no two machines agree."""
    if session.get_bind().dialect.name == "sqlite":
        return now()
    return session.execute(select(func.now())).scalar_one()


def enter(session: Session, worker: str) -> None:
    """Let there be `worker`, alive."""
    at = clock(session)
    session.merge(Worker(id=worker, started_at=at, pulse_at=at))


def beat(session: Session, worker: str, limit: timedelta, traffic: Mapping[str, int]) -> bool:
    """Say that `worker` lives on, and what it moved since its start.

    False where it is dead by now: its work is no longer its own.
    """
    at = clock(session)
    alive = update(Worker).where(Worker.id == worker, Worker.pulse_at > at - limit)
    return bool(changed(session, alive.values(pulse_at=at, traffic=dict(traffic))))


def traffic_of(session: Session, limit: timedelta) -> dict[str, dict[str, int]]:
    """The bytes that each living worker moved since its start, by way."""
    alive = select(Worker.id, Worker.traffic).where(Worker.pulse_at > clock(session) - limit)
    return {worker: traffic or {} for worker, traffic in session.execute(alive)}


def living(session: Session, limit: timedelta) -> set[str]:
    return set(session.scalars(select(Worker.id).where(Worker.pulse_at > clock(session) - limit)))


def bury(session: Session, limit: timedelta) -> None:
    """Forget the dead."""
    session.execute(delete(Worker).where(Worker.pulse_at <= clock(session) - limit))


def leave(session: Session, worker: str) -> None:
    """Let there be no `worker` any more, whatever it was."""
    session.execute(delete(Worker).where(Worker.id == worker))
    held = session.get(Control, WATCHER)
    if held is not None and held.value["worker"] == worker:
        session.delete(held)


def take_turn(session: Session) -> None:
    """Wait until nobody else is at it; until the end of the transaction nobody will be."""
    if session.get_bind().dialect.name != "sqlite":  # where there is one bot
        session.execute(select(func.pg_advisory_xact_lock(TURN)))


def watches(session: Session, worker: str, limit: timedelta) -> bool:
    """Whether `worker` is the one that watches: it is already, or whoever was is dead."""
    take_turn(session)
    held = session.get(Control, WATCHER)
    if held is None:
        session.add(Control(name=WATCHER, value={"worker": worker}))
    elif held.value["worker"] not in {worker, *living(session, limit)}:
        held.value, held.set_at = {"worker": worker}, clock(session)
    return held is None or held.value["worker"] == worker
