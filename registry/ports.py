"""Ports: begun once per subscription and release, and the log of what became of them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import Insert, Select, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, defer, joinedload

from registry.database import changed
from registry.models import Event, Patch, Port, PortState, Release, Rule, Score, Subscription, now

SETTLED = (PortState.PUBLISHED, PortState.ASKED, PortState.REJECTED)
AT_WORK = (PortState.QUEUED, PortState.RUNNING)
LOST = (PortState.REJECTED, PortState.REFUSED, PortState.FAILED)
MANY = 1000  # rows named in one query
RETRIED = "retry"  # the step of the event that says that it was begun again by hand


def with_patches(session: Session, ids: list[int]) -> Iterator[Subscription]:
    """These subscriptions, their patches read along with them; not all kept at once."""
    chosen = select(Subscription).options(joinedload(Subscription.patch))
    for start in range(0, len(ids), MANY):
        yield from session.scalars(chosen.where(Subscription.id.in_(ids[start : start + MANY])))


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


def due_ports(session: Session, state: PortState, at: datetime, most: int = 500) -> list[Port]:
    """Ports in `state` whose time has come, the longest due first, with what they are of."""
    chosen = (
        select(Port)
        .where(Port.state == state, Port.due_at <= at)
        .order_by(Port.due_at)
        .limit(most)
        .options(joinedload(Port.subscription), joinedload(Port.release).joinedload(Release.base))
        .options(defer(Port.evidence))  # it may be long
    )
    return list(session.scalars(chosen))


def taken_keys(session: Session, release_id: int, keys: dict[str, int]) -> list[int]:
    """Of these subscriptions, by the keys of their ports: whose key is another port's already.

    The same inputs may be asked for twice: by a branch that is followed, and by a tag.
    """
    chosen = select(Port.key, Port.subscription_id, Port.release_id)
    names, taken = list(keys), []
    for start in range(0, len(names), MANY):
        found = session.execute(chosen.where(Port.key.in_(names[start : start + MANY])))
        taken += [keys[key] for key, *of in found if of != [keys[key], release_id]]
    return taken


def without_port(session: Session, release: Release, ids: list[int]) -> list[int]:
    """Of these subscriptions, those whose newest port is not to this very commit already."""
    newest = (
        select(func.max(Port.release_id))
        .join(Subscription, Subscription.id == Port.subscription_id)
        .where(Port.release_id < release.id, Port.created_at >= Subscription.created_at)
        .group_by(Port.subscription_id)
    )
    there: set[int] = set()
    for start in range(0, len(ids), MANY):
        some = Port.subscription_id.in_(ids[start : start + MANY])
        same = select(Port.subscription_id).join(Release, Release.id == Port.release_id)
        same = same.where(some, Release.repo == release.repo, Release.sha == release.sha)
        there.update(session.scalars(same.where(Port.release_id.in_(newest.where(some)))))
    return [id for id in ids if id not in there]


def locked(session: Session, key: str) -> Port:
    """The port, which nobody else changes before this transaction ends."""
    # SQLite has no FOR UPDATE: it is the first write that locks.
    session.execute(update(Port).where(Port.key == key).values(attempt=Port.attempt))
    return session.get_one(Port, key, populate_existing=True)


def update_port(session: Session, key: str, **changes: Any) -> Port:
    """Change the port; the base of a port that is judged is what its subscription is settled on."""
    port = session.get_one(Port, key)
    was_settled = port.state in SETTLED
    for name, value in changes.items():
        setattr(port, name, value)
    if changes.get("state") in SETTLED and not was_settled:
        release, subscription = port.release, port.subscription
        if release.seen_at >= subscription.created_at:
            subscription.settled_repo, subscription.settled_sha = release.repo, release.sha
    return port


def move_port(
    session: Session, key: str, attempt: int, before: PortState, after: PortState, why: str
) -> bool:
    """Put the port from the one state into the other, unless it has left the one meanwhile."""
    moved = (
        update(Port)
        .where(Port.key == key, Port.attempt == attempt, Port.state == before)
        .values(state=after, reason=why, updated_at=now())
    )
    return bool(changed(session, moved))


def overtaken(session: Session, ports: list[Port]) -> dict[str, Release]:
    """The newest later release to which the same subscription has a port, by key of these ports.

    A port that is lost or cancelled overtakes none. In a tree, only the same repo's releases do.
    """
    rows = session.execute(
        select(Port.subscription_id, Release)
        .join(Release, Release.id == Port.release_id)
        .where(
            Port.subscription_id.in_({port.subscription_id for port in ports}),
            Port.release_id > min((port.release_id for port in ports), default=0),
            Port.state.not_in((*LOST, PortState.CANCELLED)),
        )
        .order_by(Release.id)
    )
    later: defaultdict[int, list[Release]] = defaultdict(list)
    for subscription_id, release in rows:
        later[subscription_id].append(release)
    return {
        port.key: release
        for port in ports
        for release in later[port.subscription_id]
        if release.id > port.release_id
        and (release.base.rule != Rule.TREE or release.repo == port.release.repo)
    }


def pushed_once(session: Session, keys: Iterable[str]) -> set[str]:
    """Of these ports, those whose push was begun: some of it may be on the Hub."""
    begun = select(Event.port_key).where(Event.port_key.in_(keys), Event.step == "publish")
    return set(session.scalars(begun))


def grouped(session: Session, ports: list[Port]) -> dict[tuple[int, str], list[Port]]:
    """All ports of the releases and groups that these are of, by release and group."""
    some = [port for port in ports if port.subscription.group_name is not None]
    chosen = (
        select(Port)
        .join(Subscription, Subscription.id == Port.subscription_id)
        .where(
            Subscription.base_id.in_({port.release.base_id for port in some}),
            Subscription.group_name.in_({port.subscription.group_name for port in some}),
            Port.release_id.in_({port.release_id for port in some}),
        )
        .options(joinedload(Port.subscription).joinedload(Subscription.patch))
    )
    found: defaultdict[tuple[int, str], list[Port]] = defaultdict(list)
    for port in session.scalars(chosen):
        found[port.release_id, port.subscription.group_name or ""].append(port)
    return found


def newest_ports(
    most: int, state: PortState | None = None, patch: str | None = None
) -> Select[Port]:
    """The query for the ports to the newest releases; of a state alone, for those due last."""
    query = (
        select(Port)
        .join(Subscription, Subscription.id == Port.subscription_id)
        .options(joinedload(Port.subscription).joinedload(Subscription.patch))
        .options(joinedload(Port.release))
        .limit(most)
    )
    if state is not None and patch is None:
        return query.where(Port.state == state).order_by(Port.due_at.desc())
    if patch is not None:
        query = query.join(Patch, Patch.id == Subscription.patch_id).where(Patch.repo == patch)
    if state is not None:  # few are of the patch: SQLite must not read all that are in the state
        query = query.where(func.lower(Port.state) == state)
    return query.order_by(Port.release_id.desc(), Port.subscription_id.desc())


def note(session: Session, key: str, text: str, blame: str | None = None) -> None:
    """Add a line to the port's log."""
    port = session.get_one(Port, key)
    session.add(Event(port_key=key, attempt=port.attempt, step=port.step, blame=blame, text=text))


def failures(session: Session, key: str, blame: str) -> int:
    """How often the port failed by this fault since it was last begun by hand."""
    mine = select(func.max(Event.id)).where(Event.port_key == key, Event.step == RETRIED)
    since = session.scalar(mine) or 0
    failed = (Event.port_key == key, Event.blame == blame, Event.id > since)
    return session.scalar(select(func.count()).select_from(Event).where(*failed)) or 0


def events(session: Session, key: str) -> list[Event]:
    return list(session.scalars(select(Event).where(Event.port_key == key).order_by(Event.id)))


def save_score(session: Session, key: str, result: dict[str, Any]) -> None:
    """Record it, in the place of what was there: two workers may judge the same arm at once."""
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    made = (sqlite if is_sqlite else postgresql).insert(Score)
    new = {"result": made.excluded.result, "judged_at": made.excluded.judged_at}
    session.execute(
        made.on_conflict_do_update(index_elements=[Score.key], set_=new),
        {"key": key, "result": result, "judged_at": now()},
    )
