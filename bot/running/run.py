"""The bot as a process: it watches, begins what is due, works, and hands work back at the end.

With Postgres there may be many. All of them work; of those that can watch, one does.
"""

import fcntl
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import NoReturn

from apscheduler.schedulers.background import BackgroundScheduler
from dbos import DBOS
from sqlalchemy.exc import OperationalError

from bot.config.discovery import look_for_configs
from bot.context import Context
from bot.hub.limiter import Limiter, install
from bot.publishing.requests import follow_up
from bot.running.clock import heed
from bot.running.dispatch import dispatch, is_busy, register_queues
from bot.running.recovery import recover
from bot.running.workers import LIMIT, Claims, Pulse, hand_back, sweep, take_over
from bot.running.workflow import Bot, configure
from bot.settings import Settings
from bot.showcase.show import keep_current
from bot.trust.audit import audit
from bot.trust.signing import check_key
from bot.watching.watch import Lookout, look
from porting.errors import UsageError
from registry.following import followed_bases
from registry.workers import watches

log = logging.getLogger("portllm")

DISPATCH_SECONDS = 0.5
TURN_SECONDS = 5.0  # how soon a new subscription's base is watched, and a dead worker missed
TIDY_SECONDS = 60.0
AUDIT_SECONDS = 600.0
CONFIG_SECONDS = 300.0
STOP_SECONDS = 9.0  # in which a process that is told to stop is gone, whatever hangs


def run_once(context: Context) -> None:
    """Look at every base and all that was asked, and return when what follows is done."""
    stop = _told_to_stop()
    with _launched(context) as running:
        look_for_configs(context)
        for base_id in followed(context):
            if stop.is_set():
                running.end()
            look(context, base_id)
        follow_up(context, whenever=True)
        recover(context)
        audit(context)
        dispatch(context, running.bot)
        while is_busy(context):
            if stop.wait(0.2):
                running.end()
            take_over(context)
            dispatch(context, running.bot)
        keep_current(context)
        log.info("Looked at everything once. Where each stands: portllm status")


def run_forever(context: Context) -> None:
    """Watch and work until told to stop (Ctrl-C, SIGTERM). What is unfinished goes on elsewhere,
    or at the next start."""
    stop = _told_to_stop()
    with _launched(context) as running:
        watch = _Watch(context)
        watch.turn()
        settings, repeat = context.settings, partial(_repeat, running.scheduler)
        soon = min(TURN_SECONDS, settings.poll_seconds)
        repeat("turn", watch.turn, soon)
        for name, job, seconds in (
            ("look", Lookout(context, running.limiter).look_at_due, soon),
            ("dispatch", partial(dispatch, context, running.bot), DISPATCH_SECONDS),
            ("recover", partial(recover, context), TIDY_SECONDS),
            ("follow up", partial(follow_up, context), TIDY_SECONDS),
            ("audit", partial(audit, context), AUDIT_SECONDS),
            ("look for configs", partial(look_for_configs, context), CONFIG_SECONDS),
            ("show", partial(keep_current, context), settings.showcase_seconds),
        ):
            repeat(name, watch.only(job), seconds)
        stop.wait()
        running.end()


def work(context: Context) -> None:
    """Work until told to stop, on what others begin. Raises UsageError where there can't be any."""
    if not context.settings.is_shared:
        raise UsageError(
            "A worker shares a database with others: set PORTLLM_DATABASE_URL=postgresql://... "
            "Alone, portllm bot run does all the work."
        )
    stop = _told_to_stop()
    with _launched(context) as running:
        log.info("Working, as %s.", context.settings.worker)
        stop.wait()
        running.end()


def followed(context: Context) -> list[int]:
    """Ids of the bases that anybody follows."""
    with context.database.session() as session:
        return [base.id for base in followed_bases(session)]


@dataclass
class _Watch:
    """Whether this process is the one that looks at the bases, and begins what is due, for all."""

    context: Context
    is_ours: bool = False

    def turn(self) -> None:
        """Watch where nobody else does, and see to it that every followed base is looked at."""
        settings = self.context.settings
        with self.context.database.session() as session:
            ours = watches(session, settings.worker, LIMIT)
        if ours and not self.is_ours:
            recover(self.context)
            count = len(followed(self.context))
            log.info("Watching, every %g s. Bases: %d.", settings.poll_seconds, count)
        elif self.is_ours and not ours:
            log.warning("Another bot watches now; this one goes on working.")
        self.is_ours = ours
        if ours:
            take_over(self.context)

    def only(self, job: Callable[[], object]) -> Callable[[], None]:
        """The job, done while it is this process that watches."""

        def done() -> None:
            if self.is_ours:
                job()

        return done


def _repeat(
    scheduler: BackgroundScheduler,
    name: str,
    job: Callable[[], None],
    seconds: float,
) -> None:
    """Do it now and every so many seconds."""

    def done() -> None:
        try:
            job()
        except OperationalError as error:
            log.warning("The database can't be used: %s It is tried again.", error.orig)

    scheduler.add_job(
        done,
        "interval",
        id=name,
        seconds=seconds,
        coalesce=True,
        next_run_time=datetime.now(UTC),
    )


def _told_to_stop() -> threading.Event:
    """Set by Ctrl-C and SIGTERM. If nobody heeds it in time, the process ends all the same."""
    stop = threading.Event()

    def told(*_: object) -> None:
        stop.set()
        late = threading.Timer(STOP_SECONDS, os._exit, [0])
        late.daemon = True
        late.start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, told)
    return stop


@dataclass
class _Running:
    """What runs in this process."""

    context: Context
    bot: Bot
    dbos: DBOS
    pulse: Pulse
    scheduler: BackgroundScheduler
    limiter: Limiter

    def end(self) -> NoReturn:
        """Hand back what is begun, and end the process.

        Every step is checkpointed, so nothing is gained by waiting for one that takes minutes.
        """
        hand_back(self.context, self.dbos, self.pulse)
        goes_on = "elsewhere" if self.context.settings.is_shared else "at the next start"
        log.info("Stopped. What is unfinished goes on %s.", goes_on)
        logging.shutdown()
        os._exit(0)


@contextmanager
def _launched(context: Context) -> Iterator[_Running]:
    settings = context.settings
    if settings.signing_key is not None:
        check_key(settings.signing_key)
    settings.home.mkdir(parents=True, exist_ok=True)
    with nullcontext() if settings.is_shared else _alone(settings):
        shutil.rmtree(settings.scratch, ignore_errors=True)
        settings.scratch.mkdir(parents=True)
        tempfile.tempdir = str(settings.scratch)
        pulse = Pulse(context)
        pulse.start()
        dbos = configure(context)
        limiter = Limiter()
        install(limiter, context.hub.endpoint)
        scheduler = BackgroundScheduler(timezone=UTC)
        running = _Running(context, Bot(context), dbos, pulse, scheduler, limiter)
        DBOS.launch()
        register_queues(context)
        sweep(context)
        scheduler.start()
        is_over = threading.Event()
        threading.Thread(target=heed, args=(scheduler, is_over), daemon=True).start()
        _repeat(scheduler, "sweep", partial(sweep, context), TIDY_SECONDS)
        _repeat(scheduler, "claims", partial(Claims().check, context), TIDY_SECONDS)
        yield running
        is_over.set()
        scheduler.shutdown()
        sweep(context)
        DBOS.destroy()
        pulse.leave()
        tempfile.tempdir = None
        shutil.rmtree(settings.scratch)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Raises UsageError where another bot works with the same files."""
    with (settings.home / "bot.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"Another bot runs on {settings.home}.") from error
        yield
