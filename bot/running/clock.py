"""A clock that is set back while the bot runs.

APScheduler goes by it, and would begin nothing until it is again as late as it was.
"""

import logging
import threading
import time
from datetime import UTC, datetime

from apscheduler.schedulers.background import BackgroundScheduler

log = logging.getLogger("portllm")

EVERY = 1.0  # seconds between two looks
LEAST = 1.0  # seconds; smaller steps are those of a clock that is kept right


def heed(scheduler: BackgroundScheduler, stop: threading.Event) -> None:
    """Have every job run now whenever the clock was set back, until told to stop."""
    before = _ahead()
    while not stop.wait(EVERY):
        ahead = _ahead()
        if before - ahead > LEAST:
            log.warning("The clock was set back by %.0f s.", before - ahead)
            for job in scheduler.get_jobs():
                job.modify(next_run_time=datetime.now(UTC))
        before = ahead


def _ahead() -> float:
    """Seconds by which the clock is ahead of one that is never set."""
    return time.time() - time.monotonic()
