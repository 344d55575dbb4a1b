"""Whose fault a failure is, and when it is tried again.

theirs   the Hub or the network: again by itself, later and later
machine  the disk, the memory, the database: likewise
gone     what was named is not there: again twice, since a Hub may answer with what was; then yours
yours    the inputs, a token, a gate: again when you say so, once it is mended
ours     a bug: again with the next version, or when you say so
"""

import logging
from datetime import timedelta
from typing import Any, Literal

from dbos import error as dbos_error
from sqlalchemy.exc import OperationalError

from bot.context import Context
from bot.hub import Missing
from bot.running.machine import trouble
from bot.running.manners import moment
from bot.running.stops import Cancelled
from porting.errors import HubError, PortllmError, Refused
from registry.models import PortState, Release, now
from registry.ports import AT_WORK, failures, locked, note, update_port
from registry.status import UNREADABLE

log = logging.getLogger("portllm")

Blame = Literal["theirs", "machine", "gone", "yours", "ours"]

# A step is tried again within half a minute, a port as a whole after each of these.
STEP: dict[str, Any] = {
    "retries_allowed": True,
    "interval_seconds": 1.0,
    "max_attempts": 5,
    "backoff_rate": 2.0,
    "should_retry": lambda error: isinstance(error, HubError | Missing | OperationalError),
}
AGAIN = tuple(timedelta(minutes=minutes) for minutes in (2, 10, 60, 360, 1440))
MOST = {"theirs": len(AGAIN), "machine": len(AGAIN), "gone": 2}  # times that it is tried again
WAYS_BACK = {
    "theirs": "It was tried {tries} times; once the Hub is well again: portllm retry {name}",
    "machine": "It was tried {tries} times; once this machine is well again: portllm retry {name}",
    "gone": "It was looked for {tries} times; once it is there again: portllm retry {name}",
    "yours": "Once that is mended: portllm retry {name}",
    "ours": "That is a bug of ours; please report it. To try again: portllm retry {name}",
}


def failure(error: Exception) -> tuple[Blame, str]:
    """Whose fault `error`, which ended a workflow, is, and what it is to one who reads of it."""
    blame, said = _blamed(error)
    return blame, said if said.endswith((".", "?")) else f"{said}."


def _blamed(error: Exception) -> tuple[Blame, str]:
    if isinstance(error, dbos_error.DBOSMaxStepRetriesExceeded):
        return _blamed(error.errors[-1])
    if (broken := trouble(error)) is not None:
        return "machine", broken
    if isinstance(error, Missing):
        return "gone", str(error)
    if isinstance(error, HubError):
        return "theirs", str(error)
    if isinstance(error, Refused):
        return "yours", str(error)
    if isinstance(error, PortllmError):
        return "ours", str(error)
    return "ours", f"{type(error).__name__}: {error}"


def is_expected(error: Exception) -> bool:
    """Whether it is none of ours, so that nobody needs its traceback."""
    return isinstance(error, Cancelled) or failure(error)[0] != "ours"


def fail_port(context: Context, key: str, attempt: int, blame: Blame, sentence: str) -> bool:
    """Record that attempt at the port as failed, once; whether it is tried again by itself."""
    with context.database.session() as session:
        port = locked(session, key)
        if port.attempt != attempt or port.state not in AT_WORK:
            return True
        note(session, key, sentence, blame)
        tries = failures(session, key, blame)
        later = _again_in(blame, tries)
        log.warning("%s: attempt %d: %s", key, port.attempt, sentence)
        if later is None:
            end = PortState.REFUSED if blame in ("yours", "gone") else PortState.FAILED
            way_back = WAYS_BACK[blame].format(tries=tries, name=key)
            update_port(session, key, state=end, step=None, reason=f"{sentence} {way_back}")
            return False
        due = now() + later
        update_port(
            session,
            key,
            # What is judged need not be made again.
            state=PortState.JUDGED if port.verdict else PortState.WAITING,
            step=None,
            attempt=port.attempt + 1,
            due_at=due,
            reason=f"{sentence} It is tried again at {moment(due)}.",
        )
        return True


def fail_release(
    context: Context, release_id: int, attempt: int, blame: Blame, sentence: str
) -> None:
    """Record that the release could not be looked at. The Hub's faults pass: it is asked again."""
    with context.database.session() as session:
        release = session.get_one(Release, release_id)
        if release.attempt != attempt or release.change is not None:
            return
        log.warning("%s: %s", release.name, sentence)
        release.missed += blame == "gone"
        tries = release.missed if blame == "gone" else release.attempt
        later = _again_in(blame, tries)
        if later is not None or blame in ("theirs", "machine"):
            release.due_at = now() + (later or AGAIN[-1])
            release.attempt += 1
            release.reason = f"{sentence} It is tried again at {moment(release.due_at)}."
        else:
            way_back = WAYS_BACK[blame].format(tries=tries, name=release.repo)
            release.change, release.reason = UNREADABLE, f"{sentence} {way_back}"


def _again_in(blame: Blame, tries: int) -> timedelta | None:
    """How long after that many failures of the kind it is tried again, if it is."""
    return AGAIN[tries - 1] if tries <= MOST.get(blame, 0) else None
