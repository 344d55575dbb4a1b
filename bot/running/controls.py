"""What a person may tell the bot: again, stop, wait, go on. And whether it has to wait right now.

Nothing here talks to the Hub or to a running bot: the records change, and the bot goes by them.
"""

from datetime import datetime

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from bot.running.manners import Hold, Manners, hold
from porting.errors import UsageError
from registry.models import Base, Control, Event, Port, PortState, Release, Subscription, now
from registry.ports import LOST, RETRIED, locked, note, overtaken, update_port
from registry.status import UNREADABLE, chosen

AGAIN = (*LOST, PortState.CANCELLED, PortState.DECLINED, PortState.SUPERSEDED)
WAITS = (PortState.WAITING, PortState.JUDGED)
STOPPABLE = (*WAITS, PortState.QUEUED, PortState.RUNNING)
# What can be done instead about a port in a state in which it can't be begun again, or stopped.
INSTEAD = {
    **dict.fromkeys(STOPPABLE, "To stop it: portllm cancel {key}"),
    PortState.PUBLISHED: "To take it back: portllm rollback {to}, or portllm withdraw {key}",
    PortState.ASKED: "Answer its pull request, {url}: merge it, or close it.",
    PortState.SUPERSEDED: "See what took its place: portllm status --patch {patch}",
    PortState.ROLLED_BACK: "The next release gets a port again.",
    PortState.WITHDRAWN: "The next release gets a port again.",
}
BEGIN_AGAIN = "To begin it again: portllm retry {key}"


def held(port: Port, at: datetime, all_paused: str | None, is_begun: bool = False) -> Hold | None:
    """What keeps the port from being begun or published at the moment `at`.

    What is begun in time may take longer than its window: then only a pause does.
    """
    subscription = port.subscription
    manners = Manners.model_validate({} if is_begun else subscription.manners or {})
    return hold(at, manners, port.release.seen_at, all_paused, subscription.paused_at)


def find_port(session: Session, name: str) -> Port:
    """The port with this key, or the only one whose key begins so; `port-` may be left out."""
    start = "port-" + name.removeprefix("port-")
    # All that may follow are hexadecimal digits.
    matching = select(Port).where(Port.key >= start, Port.key < f"{start}g").order_by(Port.key)
    found = list(session.scalars(matching.limit(3)))
    if not found:
        raise UsageError(f"There is no port {name}; see: portllm ports")
    if len(found) > 1 and found[0].key != start:
        some = ", ".join(port.key for port in found)
        raise UsageError(f"{name} may be {some} and others: write more of it.")
    return found[0]


def way_on(port: Port) -> str:
    """What a person can do about the port, in the state that it is in."""
    to, patch = port.job["to_repo"], port.subscription.patch.repo
    way = INSTEAD.get(port.state, BEGIN_AGAIN)
    return way.format(key=port.key, to=to, url=port.url, patch=patch)


def refusal(port: Port, what: str) -> str:
    """What can't be done to it, in which state it is, and what can be done instead."""
    return f"{port.key} {what}: it is {port.state}. {way_on(port)}"


def retry(session: Session, name: str) -> Port:
    """Begin a port again, from the start; one that waits is due at once.

    Raises:
        UsageError: there is nothing to begin again; the message says what can be done.
    """
    port = locked(session, find_port(session, name).key)
    subscription = port.subscription
    if port.state not in (*AGAIN, *WAITS):
        raise UsageError(refusal(port, "can't be begun again"))
    if subscription.ended_at is not None:
        raise UsageError(f"{port.key}: its subscription was ended. Begin with: portllm subscribe")
    if port.key in (newer := overtaken(session, [port])):
        raise UsageError(f"{port.key}: {newer[port.key].name} came since, and has a port.")
    said = "Begun again by hand."
    if port.state in WAITS:
        return update_port(session, port.key, due_at=now(), reason=said)
    session.add(Event(port_key=port.key, attempt=port.attempt + 1, step=RETRIED, text=said))
    return update_port(
        session,
        port.key,
        state=PortState.WAITING,
        step=None,
        reason=said,
        attempt=port.attempt + 1,
        due_at=now(),
        evidence=None,
        verdict=None,
        made=None,
        published_at=None,
    )


def retry_release(session: Session, repo: str) -> Release:
    """Look again at the newest release of what is followed at `repo`, which could not be read."""
    newest = (
        select(Release)
        .join(Base, Base.id == Release.base_id)
        .where(or_(Release.repo == repo, Base.repo == repo), Release.change.is_not(None))
        .order_by(Release.id.desc())
    )
    release = session.scalars(newest.limit(1)).first()
    if release is None:
        raise UsageError(f"No release of {repo} is known; see: portllm status")
    if release.change != UNREADABLE:
        raise UsageError(f"{release.name} could be read: {release.reason} Nothing is to be done.")
    release.change, release.reason = None, "It is looked at again."
    release.attempt, release.missed, release.due_at = release.attempt + 1, 0, now()
    return release


def cancel(session: Session, name: str) -> Port:
    """Stop a port. Raises UsageError where it is not at work."""
    port = locked(session, find_port(session, name).key)
    if port.state not in STOPPABLE:
        raise UsageError(refusal(port, "can't be stopped"))
    said = "You stopped it."
    if port.step == "publish":
        said += " It was just being pushed: where that was quicker, it is shown as published."
    note(session, port.key, said)
    release, subscription = port.release, port.subscription
    subscription.settled_repo, subscription.settled_sha = release.repo, release.sha
    reason = f"{said} {BEGIN_AGAIN.format(key=port.key)}"
    return update_port(session, port.key, state=PortState.CANCELLED, step=None, reason=reason)


def pause_all(session: Session, reason: str) -> None:
    session.merge(Control(name="paused", value={"reason": reason}, set_at=now()))


def resume_all(session: Session) -> None:
    """Raises UsageError where everything goes on already."""
    control = session.get(Control, "paused")
    if control is None:
        raise UsageError(f"Not everything is paused. {_paused_ones(session)}")
    session.delete(control)


def pause(session: Session, name: str) -> list[Subscription]:
    """Pause the subscriptions to the target `name`, or of the patch `name`."""
    found = _named(session, name)
    for subscription in found:
        subscription.paused_at = subscription.paused_at or now()
    return found


def resume(session: Session, name: str) -> list[Subscription]:
    found = [each for each in _named(session, name) if each.paused_at is not None]
    if not found:
        raise UsageError(f"{name} is not paused. {_paused_ones(session)}")
    for subscription in found:
        subscription.paused_at = None
    ids = [subscription.id for subscription in found]
    session.execute(
        update(Port)
        .where(Port.subscription_id.in_(ids), Port.state.in_(WAITS))
        .values(due_at=now())
    )
    return found


def _named(session: Session, name: str) -> list[Subscription]:
    to = select(Subscription).where(Subscription.to_repo == name, Subscription.ended_at.is_(None))
    found = list(session.scalars(to)) or chosen(session, patch=name)
    if not found:
        raise UsageError(f"Nothing is subscribed to go to {name}, or is of it; see: portllm status")
    return found


def _paused_ones(session: Session) -> str:
    stopped = select(Subscription.to_repo).where(
        Subscription.paused_at.is_not(None), Subscription.ended_at.is_(None)
    )
    names = ", ".join(session.scalars(stopped.limit(10)))
    return f"Paused are: {names}." if names else "No subscription is paused."
