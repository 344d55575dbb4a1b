"""A process of the bot, forked from one that has imported everything. See `tests.crew`.

What computes runs in the process itself, and every port is found to be what its policy says of an
unclear one: sandbox and verdict have tests of their own.
"""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from multiprocessing.synchronize import Event
from types import SimpleNamespace
from typing import Any

from dbos import DBOS

from bot.cli.sources import open_context
from bot.hub import HubPublisher, client
from bot.making import compute, sandbox
from bot.making import make as making
from bot.running import dispatch, failure, recovery, run, workers, workflow
from bot.settings import Settings
from judging.verdict import Verdict

import_module("porting.weights.deltas")  # torch: not in the middle of something, by each member
JUDGED = "judged"  # in the name of a patch: the whole of its port is made, as if it were measured


@dataclass(frozen=True)
class Part:
    """What a member does.

    Attributes:
        role: `bot` or `worker`.
        pause: where it stops, for ever: `after make`, `before commit`, `after upload`, ...
        freezes: it is frozen there as a whole, not just what it was doing.
        queues: those that it works for; all if empty.
        limit: seconds after which a silent worker is dead.
        version: of its workflows, if it is not this one.
    """

    role: str
    pause: str = ""
    freezes: bool = False
    queues: tuple[str, ...] = ()
    limit: float = 30.0
    version: str = workflow.VERSION


def main(part: Part, environment: dict[str, str], reached: Event) -> None:
    """Be a member of the crew; `reached` is set when it comes to its pause."""
    os.environ |= environment
    log = os.open(environment["LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.INFO, format=f"{os.getpid()} %(asctime)s %(message)s")
    for noisy in ("httpx2", "apscheduler", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    client.constants = SimpleNamespace(ENDPOINT=environment["HF_ENDPOINT"])
    Settings.worker = environment["WORKER"]
    workers.LIMIT = run.LIMIT = timedelta(seconds=part.limit)
    run.TURN_SECONDS = run.TIDY_SECONDS = 0.5
    workflow.VERSION = recovery.VERSION = dispatch.VERSION = part.version
    failure.STEP.update(interval_seconds=0.05)
    sandbox.run = _computed
    workflow.judge = lambda _, policy: Verdict(action=policy.unclear, reason="As it is.")
    making.read_task = lambda patch, _: JUDGED if JUDGED in patch.repo else None
    if part.queues:
        configure = run.configure
        run.configure = lambda context: _listening(configure(context), part.queues)
    if part.pause:
        _pause(part, reached)
    start = {"bot": run.run_forever, "worker": run.work}[part.role]
    start(open_context())


def _listening(dbos: DBOS, queues: tuple[str, ...]) -> DBOS:
    DBOS.listen_queues(queues)
    return dbos


def _computed(order: dict[str, Any], *_: Any, **__: Any) -> Any:
    result = getattr(compute, order["do"])(json.loads(json.dumps(order)))
    return json.loads(json.dumps(result))


def _pause(part: Part, reached: Event) -> None:
    when, _, what = part.pause.partition(" ")
    owner: Any = making if what == "make" else HubPublisher
    name = "make_in" if what == "make" else what
    original: Callable[..., Any] = getattr(owner, name)

    def paused(*arguments: Any, **more: Any) -> Any:
        result = original(*arguments, **more) if when == "after" else None
        reached.set()
        if part.freezes:
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            threading.Event().wait()
        return result if when == "after" else original(*arguments, **more)

    setattr(owner, name, paused)
