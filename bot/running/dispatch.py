"""What is begun when: every release and port whose time has come is handed to its workflow.

Asked again and again; whoever asks, and however often, each attempt is begun once.
"""

from datetime import datetime, timedelta

from dbos import DBOS, SetEnqueueOptions, SetWorkflowID
from sqlalchemy.orm import Session

from bot.context import Context
from bot.running.controls import held
from bot.running.manners import Hold
from bot.running.workflow import NOTICES, SHARDS, VERSION, Bot
from registry.following import unclassified_releases
from registry.models import Port, PortState, now
from registry.ports import (
    LOST,
    due_ports,
    grouped,
    move_port,
    overtaken,
    pushed_once,
    update_port,
)
from registry.scene import paused

RELEASES, PORTS, PUSHES = "releases", "ports", "pushes"
HELD = timedelta(seconds=60)  # until a port that is held is looked at again, at the latest
MOST = 50  # releases that are begun at once
FIRST, AGAIN = 1, 2  # a smaller number goes first
UNDECIDED = (PortState.WAITING, PortState.QUEUED, PortState.RUNNING)


def register_queues(context: Context) -> None:
    """Let DBOS know the queues. Call after `DBOS.launch`."""
    settings = context.settings
    DBOS.register_queue(RELEASES, worker_concurrency=4, polling_interval_sec=0.2)
    # Each port may fill the memory.
    DBOS.register_queue(PORTS, worker_concurrency=1, polling_interval_sec=0.2)
    # Each takes room for a file of a model and its port.
    DBOS.register_queue(SHARDS, worker_concurrency=1, polling_interval_sec=0.2)
    DBOS.register_queue(NOTICES, worker_concurrency=4, polling_interval_sec=0.2)
    DBOS.register_queue(
        PUSHES,
        worker_concurrency=1,
        limiter={"limit": settings.pushes_per_hour, "period": 3600.0},
        polling_interval_sec=0.2,
    )


def dispatch(context: Context, bot: Bot) -> None:
    """Begin everything whose time has come."""
    with context.database.session() as session:
        if paused(session) is not None:
            return
        at = now()
        releases = unclassified_releases(session, at)[:MOST]
        waiting = _ready(session, at, PortState.WAITING)
        judged = _ready(session, at, PortState.JUDGED)
    for release in releases:
        name = f"release-{release.id}.{release.attempt}"
        with SetWorkflowID(name), SetEnqueueOptions(priority=FIRST):
            DBOS.enqueue_workflow(RELEASES, bot.release, release.id, release.attempt)
    for key, attempt in waiting:
        with SetWorkflowID(f"{key}.{attempt}"), _priority(attempt):
            DBOS.enqueue_workflow(PORTS, bot.port, key, attempt)
        _moved(context, key, attempt, PortState.WAITING, "Waiting for a free worker.")
    for key, attempt in judged:
        with SetWorkflowID(f"{key}.{attempt}.publication"), _priority(attempt):
            DBOS.enqueue_workflow(PUSHES, bot.publication, key, attempt)
        pushes = f"at most {context.settings.pushes_per_hour} an hour"
        _moved(context, key, attempt, PortState.JUDGED, f"Judged; waiting to be pushed ({pushes}).")


def _priority(attempt: int) -> SetEnqueueOptions:
    return SetEnqueueOptions(priority=FIRST if attempt == 1 else AGAIN)


def _moved(context: Context, key: str, attempt: int, before: PortState, why: str) -> None:
    """The workflow may have begun already, and said so: then it keeps the last word."""
    with context.database.session() as session:
        move_port(session, key, attempt, before, PortState.QUEUED, why)


def _ready(session: Session, at: datetime, state: PortState) -> list[tuple[str, int]]:
    """(key, attempt) of the ports in `state` that nothing holds; the others say what does."""
    ready, due = [], due_ports(session, state, at)
    if not due:  # as nearly always, twice a second
        return []
    newer, groups = overtaken(session, due), {}
    for key in pushed_once(session, newer):  # the push finds out what there is of it, and ends it
        del newer[key]
    if state == PortState.JUDGED:
        groups = grouped(session, due)
    for port in due:
        subscription = port.subscription
        if subscription.ended_at is not None:
            reason = "The subscription was ended before the port was done."
            update_port(session, port.key, state=PortState.CANCELLED, reason=reason)
            continue
        if port.key in newer:
            done = "begun" if port.verdict is None else "published"
            reason = f"{newer[port.key].name} came before this one was {done}."
            update_port(session, port.key, state=PortState.SUPERSEDED, reason=reason)
            continue
        group = subscription.group_name
        why = held(port, at, all_paused=None)
        if why is None and state == PortState.JUDGED and group is not None:
            why = _group_hold(port, group, groups[port.release_id, group])
        if why is None:
            ready.append((port.key, port.attempt))
            continue
        port.due_at = min(why.until or at + HELD, at + HELD)
        if subscription.paused_at is None:  # a pause is told of while it lasts
            port.reason = why.reason
    return ready


def _group_hold(port: Port, group: str, ports: list[Port]) -> Hold | None:
    """Wait for the others of the group; where one of them is lost, the rest only asks."""
    others = [other for other in ports if other is not port]
    open_ones = [other for other in others if other.state in UNDECIDED and other.verdict is None]
    if open_ones:
        names = ", ".join(other.subscription.patch.repo for other in open_ones)
        return Hold(f"Judged; its group {group} waits for {names}.")
    lost = [other.subscription.patch.repo for other in others if other.state in LOST]
    assert port.verdict is not None
    if lost and port.action == "publish":
        reason = (
            f"{port.verdict['reason']} But of its group {group}, {', '.join(lost)} did not make it."
        )
        port.verdict = port.verdict | {"action": "ask", "reason": reason}
    return None


def is_busy(context: Context) -> bool:
    """Whether anything is at work, or about to be."""
    at = now()
    with context.database.session() as session:
        if paused(session) is None:
            if unclassified_releases(session, at):
                return True
            begun = (PortState.WAITING, PortState.JUDGED)
            if any(due_ports(session, state, at, 1) for state in begun):
                return True
    open_ones = DBOS.list_workflows(
        app_version=VERSION, status=["PENDING", "ENQUEUED"], limit=1, load_input=False
    )
    delayed = DBOS.list_workflows(app_version=VERSION, status="DELAYED", load_input=False)
    return bool(open_ones) or any(
        (each.delay_until_epoch_ms or 0) <= at.timestamp() * 1000 for each in delayed
    )
