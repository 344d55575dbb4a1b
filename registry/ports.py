"""Ports: begun once per subscription and release, and the log of what became of them."""

from datetime import datetime
from typing import Any

from sqlalchemy import Insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from registry.models import Event, Port, PortState, Release, Score, Subscription, now

SETTLED = (PortState.PUBLISHED, PortState.ASKED, PortState.REJECTED)
AT_WORK = (PortState.QUEUED, PortState.RUNNING)


def create_ports(session: Session, release_id: int, jobs: dict[int, dict[str, Any]]) -> None:
    """A port of the release for each of these subscriptions that has none; `jobs` have a key."""
    rows = [
        {
            "key": job["key"],
            "subscription_id": subscription_id,
            "release_id": release_id,
            "job": job,
            "state": PortState.WAITING,
            "reason": "Waiting for its turn.",
            "attempt": 1,
            "due_at": now(),
        }
        for subscription_id, job in jobs.items()
    ]
    if rows:
        session.execute(_if_new(session), rows)


def _if_new(session: Session) -> Insert:
    """Whoever comes second inserts nothing: a port is begun once."""
    if session.get_bind().dialect.name == "sqlite":
        return sqlite.insert(Port).on_conflict_do_nothing()
    return postgresql.insert(Port).on_conflict_do_nothing()


def ports_in(session: Session, *states: PortState) -> list[Port]:
    return list(session.scalars(select(Port).where(Port.state.in_(states)).order_by(Port.key)))


def due_ports(session: Session, state: PortState, at: datetime, most: int = 500) -> list[Port]:
    """Ports in `state` whose time has come, the longest due first."""
    due = or_(Port.due_at.is_(None), Port.due_at <= at)
    chosen = select(Port).where(Port.state == state, due).order_by(Port.due_at, Port.key)
    return list(session.scalars(chosen.limit(most)))


def update_port(session: Session, key: str, **changes: Any) -> Port:
    """Change the port; the base of a port that is judged is what its subscription is settled on."""
    port = session.get_one(Port, key)
    for name, value in changes.items():
        setattr(port, name, value)
    if changes.get("state") in SETTLED:
        release, subscription = port.release, port.subscription
        if release.seen_at >= subscription.created_at:
            subscription.settled_repo, subscription.settled_sha = release.repo, release.sha
    return port


def move_port(session: Session, key: str, before: PortState, after: PortState, why: str) -> bool:
    """Put the port from the one state into the other, unless it has left the one meanwhile."""
    moved = session.execute(
        update(Port)
        .where(Port.key == key, Port.state == before)
        .values(state=after, reason=why, updated_at=now())
    )
    return bool(moved.rowcount)  # type: ignore[attr-defined]


def newer_port(session: Session, port: Port) -> Port | None:
    """A port of the same subscription on a later release; in a tree, of the same repo."""
    later = (
        select(Port)
        .join(Release, Release.id == Port.release_id)
        .where(Port.subscription_id == port.subscription_id, Port.release_id > port.release_id)
        .order_by(Port.release_id.desc())
    )
    if port.release.base.rule == "tree":
        later = later.where(Release.repo == port.release.repo)
    return session.scalars(later.limit(1)).first()


def newest_port(session: Session, subscription: Subscription) -> Port | None:
    chosen = select(Port).where(
        Port.subscription_id == subscription.id, Port.created_at >= subscription.created_at
    )
    return session.scalars(chosen.order_by(Port.release_id.desc()).limit(1)).first()


def note(session: Session, key: str, text: str, blame: str | None = None) -> None:
    """Add a line to the port's log."""
    port = session.get_one(Port, key)
    session.add(Event(port_key=key, attempt=port.attempt, step=port.step, blame=blame, text=text))


def events(session: Session, key: str) -> list[Event]:
    return list(session.scalars(select(Event).where(Event.port_key == key).order_by(Event.id)))


def save_score(session: Session, key: str, result: dict[str, Any]) -> None:
    session.merge(Score(key=key, result=result))
