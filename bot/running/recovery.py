"""What says that it is at work, and is not: its workflow ended in a bug, or an older version's."""

from dbos import DBOS
from sqlalchemy import select
from sqlalchemy.orm import load_only

from bot.context import Context
from bot.running import failure
from bot.running.failure import fail_port, fail_release
from bot.running.workers import LIMIT
from bot.running.workflow import VERSION
from registry.following import unclassified_releases
from registry.models import Port, PortState, Release, now
from registry.ports import AT_WORK, locked, note, update_port
from registry.setback import mend
from registry.workers import living

CANCELLED, MISSING = "CANCELLED", "MISSING"
OVER = ("SUCCESS", "ERROR", CANCELLED, "MAX_RECOVERY_ATTEMPTS_EXCEEDED", MISSING)
MANY = 500  # workflows that are asked for at once
TOLD = "It ended, and why could not be recorded."  # such as on a full disk
ANEW = {
    CANCELLED: "PortLLM was updated meanwhile, so it is begun again.",
    MISSING: "Nobody was to go on with it, so it is begun again.",
}


def recover(context: Context) -> None:
    """Begin anew what an earlier version had begun; what ended without saying why has failed."""
    _cancel_older(context)
    with context.database.session() as session:
        mend(session, now(), max(failure.AGAIN))
        needed = load_only(Port.key, Port.attempt, Port.verdict)
        at_work = session.scalars(select(Port).where(Port.state.in_(AT_WORK)).options(needed))
        ports = {_workflow(port): port.key for port in at_work}
        releases = {_classification(each): each.id for each in unclassified_releases(session)}
    stands = _status([*ports, *releases])
    for name, key in ports.items():
        if (ended := stands.get(name, MISSING)) in OVER:
            _recover_port(context, key, name, ended)
    for name, release_id in releases.items():
        if (ended := stands.get(name, "")) in OVER:
            _recover_release(context, release_id, name, ended)


def _recover_port(context: Context, key: str, name: str, ended: str) -> None:
    with context.database.session() as session:
        port = locked(session, key)
        attempt = port.attempt
        if _workflow(port) != name or port.state not in AT_WORK:
            return  # somebody led it on meanwhile
        if ended in ANEW:
            note(session, key, ANEW[ended])
            state = PortState.JUDGED if port.verdict else PortState.WAITING
            again = {"attempt": attempt + 1, "due_at": now(), "reason": ANEW[ended]}
            update_port(session, key, state=state, step=None, **again)
            return
    fail_port(context, key, attempt, "machine", TOLD)


def _recover_release(context: Context, id: int, name: str, ended: str) -> None:
    with context.database.session() as session:
        release = session.get_one(Release, id)
        attempt = release.attempt
        if _classification(release) != name:
            return
        if ended == CANCELLED:
            release.attempt += 1
            return
    fail_release(context, id, attempt, "machine", TOLD)


def _cancel_older(context: Context) -> None:
    """Cancel what an earlier version had begun or enqueued, but for what it is working on."""
    names = (version["version_name"] for version in DBOS.list_application_versions())
    older = [name for name in names if name != VERSION]
    if not older:
        return
    begun = DBOS.list_workflows(
        app_version=older, status=["PENDING", "ENQUEUED"], load_input=False, load_output=False
    )
    with context.database.session() as session:
        alive = living(session, LIMIT) if context.settings.is_shared else set()
    left = [
        each.workflow_id
        for each in begun
        if each.status == "ENQUEUED" or each.executor_id not in alive
    ]
    if left:
        DBOS.cancel_workflows(left)


def _status(names: list[str]) -> dict[str, str]:
    """Where those of these workflows stand that there are."""
    found: dict[str, str] = {}
    for start in range(0, len(names), MANY):
        some = names[start : start + MANY]
        for each in DBOS.list_workflows(workflow_ids=some, load_input=False, load_output=False):
            found[each.workflow_id] = each.status
    return found


def _workflow(port: Port) -> str:
    """What `bot.running.dispatch` calls the workflow that leads the port on from where it is."""
    return f"{port.key}.{port.attempt}" + (".publication" if port.verdict is not None else "")


def _classification(release: Release) -> str:
    return f"release-{release.id}.{release.attempt}"
