"""Many processes share the work: each says that it lives, and what the dead had begun goes back.

DBOS takes no checkpoint from a process whose work was given to another one. What a step does to the
Hub and the registry it can't take back: so a process that could not say in time that it lives ends
itself, before anybody takes its work.
"""

import functools
import logging
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from dbos import DBOS, WorkflowStatus
from sqlalchemy.exc import SQLAlchemyError

from bot.context import Context
from bot.hub import sweep_downloads
from registry import workers
from registry.models import Port, PortState
from registry.ports import note

log = logging.getLogger("portllm")

LIMIT = timedelta(seconds=30)  # a worker that was silent for longer is dead
BEATS = 6  # within the limit
PATIENCE = 0.7  # of the limit: so long a process waits for its own pulse to be taken
PUSH_SECONDS = 5.0  # that a push gets to its end when the process is told to stop
OPEN = (PortState.WAITING, PortState.QUEUED, PortState.RUNNING, PortState.JUDGED)

# Held while something is committed to the Hub.
pushing = threading.Lock()
_at_work: list[str] = []  # ids of workflows that run in this process


Workflow = TypeVar("Workflow", bound=Callable[..., Any])


def known_here(workflow: Workflow) -> Workflow:
    """Let it be known of each run of the workflow that it goes on in this process."""

    @functools.wraps(workflow)
    def known(*arguments: Any, **more: Any) -> Any:
        name = str(DBOS.workflow_id)
        _at_work.append(name)
        try:
            return workflow(*arguments, **more)
        finally:
            _at_work.remove(name)

    return cast(Workflow, known)


class Pulse:
    """Says that this process lives, from a thread of its own; where it can't, the process ends."""

    def __init__(self, context: Context) -> None:
        self._database, self._worker = context.database, context.settings.worker
        self._is_shared = context.settings.is_shared
        self._traffic = context.hub.traffic
        self._stopped = threading.Event()
        self._told = time.monotonic()

    def start(self) -> None:
        with self._database.session() as session:
            workers.enter(session, self._worker)
        self._told = time.monotonic()
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()
        if self._is_shared:
            threading.Thread(target=self._watch, name="pulse watch", daemon=True).start()

    def stop(self) -> None:
        """Say no more. Others find out after a while."""
        self._stopped.set()

    def leave(self) -> None:
        """Say that this process is no more."""
        self.stop()
        with self._database.session() as session:
            workers.leave(session, self._worker)

    def _beat(self) -> None:
        while not self._stopped.wait(LIMIT.total_seconds() / BEATS):
            at = time.monotonic()
            try:
                with self._database.session() as session:
                    lives = workers.beat(session, self._worker, LIMIT, vars(self._traffic))
                    if not lives and not self._is_shared:  # the machine slept
                        workers.enter(session, self._worker)
            except SQLAlchemyError as error:
                log.warning("The database did not take this worker's pulse: %s", error)
                continue
            if not lives and self._is_shared and not self._stopped.is_set():
                _end("This worker was silent, and others took its work")
            self._told = at

    def _watch(self) -> None:
        patience = LIMIT.total_seconds() * PATIENCE
        while not self._stopped.wait(patience / 20):
            if time.monotonic() - self._told > patience:
                _end(f"This worker could not say for {patience:.0f} s that it lives")


def _end(why: str) -> NoReturn:
    log.critical("%s, so it ends. Start it again.", why)
    logging.shutdown()
    os._exit(1)


def take_over(context: Context) -> None:
    """Put what dead workers had begun back into the queues that it came from."""
    if not context.settings.is_shared:
        return  # DBOS takes it up when it starts
    with context.database.session() as session:
        workers.take_turn(session)
        begun = _begun()  # before it is asked who lives: a worker says so before it begins anything
        living = workers.living(session, LIMIT)
        lost = [each for each in begun if each.executor_id not in living]
        for each in lost:
            log.warning("%s: its worker %s died.", each.workflow_id, each.executor_id)
        for key in {each.workflow_id.partition(".")[0] for each in lost}:
            if session.get(Port, key) is not None:
                note(session, key, "Its worker died; another one goes on with it.")
        _requeue(lost)
        workers.bury(session, LIMIT)


class Claims:
    """What is begun in this process by the database's word, though nobody here knows of it.

    That happens where the database was told, and could not answer any more.
    """

    def __init__(self) -> None:
        self._unknown: set[str] = set()

    def check(self, context: Context) -> None:
        """Put back into its queue what was unknown here the last time, and is still."""
        begun = _begun(context.settings.worker)
        unknown = [each for each in begun if each.workflow_id not in _at_work]
        again = [each for each in unknown if each.workflow_id in self._unknown]
        for each in again:
            log.warning("%s: nobody was at it; begun again.", each.workflow_id)
        _requeue(again)
        self._unknown = {each.workflow_id for each in unknown} - {e.workflow_id for e in again}


def hand_back(context: Context, dbos: DBOS, pulse: Pulse) -> None:
    """Take no more work, and put back what was begun here.

    A push that takes long is left alone: what it sent may still arrive, so it is for others once
    this process is surely no more.
    """
    for event in dbos.background_thread_stop_events:
        event.set()
    is_quiet = pushing.acquire(timeout=PUSH_SECONDS)
    if context.settings.is_shared:
        begun = _begun(context.settings.worker)
        _requeue(each for each in begun if is_quiet or each.name != "publication")
    if is_quiet:
        pulse.leave()
    else:
        pulse.stop()


def _begun(worker: str | None = None) -> list[WorkflowStatus]:
    return DBOS.list_workflows(
        status="PENDING", executor_id=worker, load_input=False, load_output=False
    )


def _requeue(begun: Iterable[WorkflowStatus]) -> None:
    queues = defaultdict(list)
    for each in begun:
        queues[each.queue_name].append(each.workflow_id)
    for queue, ids in queues.items():
        DBOS.resume_workflows(ids, queue_name=queue)


def sweep(context: Context) -> None:
    """Remove what processes that were killed left on this disk."""
    settings = context.settings
    with context.database.session() as session:
        living = {settings.worker, *workers.living(session, LIMIT)}
        left = [folder for folder in _below(settings.scratch.parent) if folder.name not in living]
        for folder in _below(settings.work("")):
            port = session.get(Port, folder.name)
            if port is not None and port.state not in OPEN:
                left.append(folder)
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)  # another process may be at it
    sweep_downloads()


def _below(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []
