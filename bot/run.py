"""The bot as a process: it watches, begins what is due, works, and hands work back at the end."""

import fcntl
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NoReturn

from apscheduler.schedulers.background import BackgroundScheduler
from dbos import DBOS

from bot.context import Context
from bot.dispatch import dispatch, is_busy, recover, register_queues
from bot.watch import look
from bot.workflow import Bot, configure
from porting.errors import UsageError
from registry.following import followed_bases

log = logging.getLogger("portllm")

DISPATCH_SECONDS = 0.5
ROSTER_SECONDS = 5.0  # how soon a new subscription's base is watched


def run_once(context: Context) -> None:
    """Look at every base once, and return when everything that follows from it is done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _stop())
    wait = threading.Event()
    with _launched(context) as bot:
        for base_id in followed(context):
            look(context, base_id)
        dispatch(context, bot)
        while is_busy(context):
            wait.wait(0.2)
            dispatch(context, bot)


def followed(context: Context) -> list[int]:
    """Ids of the bases that anybody follows."""
    with context.database.session() as session:
        return [base.id for base in followed_bases(session)]


def run_forever(context: Context) -> None:
    """Watch until told to stop (Ctrl-C, SIGTERM). Unfinished work goes on at the next start."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    every = context.settings.poll_seconds
    scheduler = BackgroundScheduler(timezone=UTC)

    with _launched(context) as bot:

        def roster() -> None:
            wanted = {f"base-{base_id}": base_id for base_id in followed(context)}
            known = {job.id for job in scheduler.get_jobs()} - {"roster", "dispatch"}
            for job_id in known - wanted.keys():
                scheduler.remove_job(job_id)
            for job_id in wanted.keys() - known:
                scheduler.add_job(
                    look,
                    "interval",
                    args=[context, wanted[job_id]],
                    id=job_id,
                    seconds=every,
                    jitter=every / 10,
                    coalesce=True,
                    next_run_time=datetime.now(UTC),
                )

        for job_id, job, seconds in (
            ("roster", roster, min(every, ROSTER_SECONDS)),
            ("dispatch", lambda: dispatch(context, bot), DISPATCH_SECONDS),
        ):
            scheduler.add_job(
                job,
                "interval",
                id=job_id,
                seconds=seconds,
                coalesce=True,
                max_instances=1,
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
        DBOS.launch()
        register_queues(context)
        recover(context)
        yield bot
        DBOS.destroy()
