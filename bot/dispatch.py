"""What is begun when: every release and port whose time has come is handed to its workflow.

Asked again and again; whoever asks, and however often, each attempt is begun once.
"""

from datetime import datetime, timedelta

from dbos import DBOS, SetEnqueueOptions, SetWorkflowID
from sqlalchemy import select
from sqlalchemy.orm import Session

from bot.context import Context
from bot.failure import fail_port, fail_release
from bot.manners import Hold, Manners, hold
from bot.workflow import Bot
from registry.following import unclassified_releases
from registry.models import Control, Port, PortState, Subscription, now
from registry.ports import due_ports, move_port, newer_port, ports_in, update_port

RELEASES, PORTS, PUSHES = "releases", "ports", "pushes"
HELD = timedelta(seconds=60)  # until a port that is held is looked at again, at the latest
FIRST, AGAIN = 1, 2  # a smaller number goes first
UNDECIDED = (PortState.WAITING, PortState.QUEUED, PortState.RUNNING)
LOST = (PortState.REJECTED, PortState.REFUSED, PortState.FAILED)
OVER = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")


def register_queues(context: Context) -> None:
    """Let DBOS know the queues. Call after `DBOS.launch`."""
    settings = context.settings
    DBOS.register_queue(RELEASES, worker_concurrency=4, polling_interval_sec=0.2)
    # Each port may fill the memory.
    DBOS.register_queue(PORTS, worker_concurrency=1, polling_interval_sec=0.2)
    DBOS.register_queue(
        PUSHES,
        worker_concurrency=1,
        limiter={"limit": settings.pushes_per_hour, "period": 3600.0},
        polling_interval_sec=0.2,
    )


def dispatch(context: Context, bot: Bot) -> None:
    """Begin everything whose time has come."""
    with context.database.session() as session:
        at = now()
        paused = session.get(Control, "paused")
        why = str(paused.value["reason"]) if paused else None
        releases = [] if why else unclassified_releases(session, at)
        waiting = _ready(session, at, PortState.WAITING, why)
        judged = _ready(session, at, PortState.JUDGED, why)
    for release in releases:
        name = f"release-{release.id}.{release.attempt}"
        with SetWorkflowID(name), SetEnqueueOptions(priority=FIRST):
            DBOS.enqueue_workflow(RELEASES, bot.release, release.id, release.attempt)
    for key, attempt in waiting:
        with SetWorkflowID(f"{key}.{attempt}"), _priority(attempt):
            DBOS.enqueue_workflow(PORTS, bot.port, key, attempt)
        _moved(context, key, PortState.WAITING, "Waiting for a free worker.")
    for key, attempt in judged:
        with SetWorkflowID(f"{key}.{attempt}.publication"), _priority(attempt):
            DBOS.enqueue_workflow(PUSHES, bot.publication, key, attempt)
        pushes = f"at most {context.settings.pushes_per_hour} an hour"
        _moved(context, key, PortState.JUDGED, f"Judged; waiting to be pushed ({pushes}).")


def _priority(attempt: int) -> SetEnqueueOptions:
    return SetEnqueueOptions(priority=FIRST if attempt == 1 else AGAIN)


def _moved(context: Context, key: str, before: PortState, why: str) -> None:
    """The workflow may have begun already, and said so: then it keeps the last word."""
    with context.database.session() as session:
        move_port(session, key, before, PortState.QUEUED, why)


def _ready(
    session: Session, at: datetime, state: PortState, all_paused: str | None
) -> list[tuple[str, int]]:
    """(key, attempt) of the ports in `state` that nothing holds; the others say what does."""
    ready = []
    for port in due_ports(session, state, at):
        subscription, release = port.subscription, port.release
        if subscription.ended_at is not None:
            reason = "The subscription was ended before the port was done."
            update_port(session, port.key, state=PortState.CANCELLED, reason=reason)
            continue
        newer = newer_port(session, port)
        if newer is not None and newer.state not in (*LOST, PortState.CANCELLED):
            reason = f"{newer.release.name} came before this one was begun."
            update_port(session, port.key, state=PortState.SUPERSEDED, reason=reason)
            continue
        manners = Manners.model_validate(subscription.manners or {})
        held = hold(at, manners, release.seen_at, all_paused, subscription.paused_at)
        if held is None and state == PortState.JUDGED and manners.group is not None:
            held = _group_hold(session, port, manners.group)
        if held is None:
            ready.append((port.key, port.attempt))
        else:
            again = at + HELD
            update_port(
                session,
                port.key,
                reason=held.reason,
                due_at=min(held.until, again) if held.until else again,
            )
    return ready


def _group_hold(session: Session, port: Port, group: str) -> Hold | None:
    """Wait for the others of the group; where one of them is lost, the rest only asks."""
    others = session.scalars(
        select(Port)
        .join(Subscription, Subscription.id == Port.subscription_id)
        .where(
            Port.release_id == port.release_id,
            Port.key != port.key,
            Subscription.manners["group"].as_string() == group,
        )
    ).all()
    open_ones = [other for other in others if other.state in UNDECIDED and other.verdict is None]
    if open_ones:
        names = ", ".join(other.subscription.patch.repo for other in open_ones)
        return Hold(f"Judged; its group {group} waits for {names}.")
    lost = [other.subscription.patch.repo for other in others if other.state in LOST]
    assert port.verdict is not None
    if lost and port.verdict["action"] == "publish":
        reason = (
            f"{port.verdict['reason']} But of its group {group}, {', '.join(lost)} did not make it."
        )
        port.verdict = port.verdict | {"action": "ask", "reason": reason}
    return None


def is_busy(context: Context) -> bool:
    """Whether anything is at work, or about to be."""
    at = now()
    with context.database.session() as session:
        if unclassified_releases(session, at):
            return True
        begun = (PortState.WAITING, PortState.JUDGED)
        if any(due_ports(session, state, at, 1) for state in begun):
            return True
    return bool(DBOS.list_workflows(status=["PENDING", "ENQUEUED"], limit=1))


def recover(context: Context) -> None:
    """Put right what says that it is at work, where its workflow is over: it ended in a bug."""
    told = "It ended without saying why."
    with context.database.session() as session:
        ports = [
            (port.key, port.attempt, port.verdict is not None)
            for port in ports_in(session, PortState.QUEUED, PortState.RUNNING)
        ]
        releases = [(each.id, each.attempt) for each in unclassified_releases(session, now())]
    for key, attempt, is_judged in ports:
        if _is_over(f"{key}.{attempt}" + (".publication" if is_judged else "")):
            fail_port(context, key, attempt, "ours", told)
    for release_id, attempt in releases:
        if _is_over(f"release-{release_id}.{attempt}"):
            fail_release(context, release_id, attempt, "ours", told)


def _is_over(workflow_id: str) -> bool:
    status = DBOS.get_workflow_status(workflow_id)
    return status is not None and status.status in OVER
