"""The watch: every followed base is looked at in turn, and what is new is handed to the workflows.

One APScheduler job per base, with jitter, so that looks spread out. A look reads the base's head
from the Hub itself; the registry decides whether it was seen before.
"""

import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NoReturn

from apscheduler.schedulers.background import BackgroundScheduler
from dbos import DBOS

from bot.context import Context
from bot.workflow import Bot, configure
from porting.errors import HubError, PortllmError, UsageError
from registry.models import Base
from registry.records import active_subscriptions, observe

log = logging.getLogger("portllm")

ROSTER_SECONDS = 5.0  # how soon a new subscription's base is watched


def look(context: Context, base_id: int) -> None:
    """Look at one base, and record where it stands; a failure is recorded as its problem."""
    with context.database.session() as session:
        base = session.get_one(Base, base_id)
        repo, ref = base.repo, base.ref
    try:
        sha = context.hub.head(repo, ref)
    except PortllmError as error:
        hint = "It is looked at again soon." if isinstance(error, HubError) else "See to it."
        with context.database.session() as session:
            session.get_one(Base, base_id).problem = f"{error} {hint}"
        log.warning("%s@%s: %s", repo, ref, error)
        return
    with context.database.session() as session:
        release = observe(session, base_id, sha)
    if release is not None:
        log.info("%s@%s moved to %s", repo, ref, sha[:7])


def followed(context: Context) -> list[int]:
    """Ids of the bases that anybody follows."""
    with context.database.session() as session:
        return sorted({subscription.base_id for subscription in active_subscriptions(session)})


def run_once(context: Context) -> None:
    """Look at every base once, and return when everything that follows from it is done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _stop())
    with _launched(context) as bot:
        for base_id in followed(context):
            look(context, base_id)
        bot.dispatch()
        while bot.is_busy():
            time.sleep(0.2)


def run_forever(context: Context) -> None:
    """Watch until told to stop (Ctrl-C, SIGTERM). Unfinished work goes on at the next start."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    every = context.settings.poll_seconds
    scheduler = BackgroundScheduler(timezone=UTC)

    with _launched(context) as bot:

        def look_and_dispatch(base_id: int) -> None:
            look(context, base_id)
            bot.dispatch()

        def roster() -> None:
            wanted = {f"base-{base_id}": base_id for base_id in followed(context)}
            known = {job.id for job in scheduler.get_jobs()} - {"roster"}
            for job_id in known - wanted.keys():
                scheduler.remove_job(job_id)
            for job_id in wanted.keys() - known:
                scheduler.add_job(
                    look_and_dispatch,
                    "interval",
                    args=[wanted[job_id]],
                    id=job_id,
                    seconds=every,
                    jitter=every / 10,
                    coalesce=True,
                    next_run_time=datetime.now(UTC),
                )

        bot.dispatch()
        scheduler.add_job(
            roster,
            "interval",
            id="roster",
            seconds=min(every, ROSTER_SECONDS),
            coalesce=True,
            next_run_time=datetime.now(UTC),
        )
        scheduler.start()
        log.info("Watching, every %g s. Bases: %d.", every, len(followed(context)))
        stop.wait()
        _stop()


def _stop() -> NoReturn:
    log.info("Stopped. What is unfinished goes on when the bot is started again.")
    logging.shutdown()
    # Every step is checkpointed, so nothing is gained by waiting for one that takes minutes.
    os._exit(0)


@contextmanager
def _launched(context: Context) -> Iterator[Bot]:
    context.settings.home.mkdir(parents=True, exist_ok=True)
    with (context.settings.home / "bot.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"Another bot runs on {context.settings.home}.") from error
        configure(context)
        bot = Bot(context)
        bot.launch()
        yield bot
        DBOS.destroy()
