"""A clock that is set back while the bot runs."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.schedulers.background import BackgroundScheduler

from bot.running import clock


@pytest.fixture
def scheduler() -> Iterator[BackgroundScheduler]:
    made = BackgroundScheduler(timezone=UTC)
    made.start()
    yield made
    made.shutdown()


@pytest.mark.parametrize("back", [0.0, 0.5, 3600.0])
def test_jobs_run_though_the_clock_was_set_back(
    scheduler: BackgroundScheduler, monkeypatch: pytest.MonkeyPatch, back: float
) -> None:
    ran, looked, over = threading.Event(), threading.Event(), threading.Event()
    # As it stands when the clock was an hour ahead, and is right again.
    later = datetime.now(UTC) + timedelta(hours=1)
    scheduler.add_job(ran.set, "interval", hours=1, next_run_time=later)
    ahead = iter([0.0, -back])

    def told() -> float:
        if (here := next(ahead, None)) is not None:
            return here
        looked.set()
        return -back

    monkeypatch.setattr(clock, "_ahead", told)
    monkeypatch.setattr(clock, "EVERY", 0.01)
    thread = threading.Thread(target=clock.heed, args=(scheduler, over))
    thread.start()
    assert looked.wait(10) and ran.wait(10 if back > clock.LEAST else 0.1) == (back > clock.LEAST)
    over.set()
    thread.join()
