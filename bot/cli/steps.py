"""A step that takes a while, shown: a spinner on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bot.cli.output import console, message

EVERY = 5.0  # seconds between two plain lines of one step


@contextmanager
def step(title: str) -> Iterator[None]:
    """Show `title` while the block runs, and how long it took once it is done."""
    start = time.monotonic()
    if console.is_terminal:
        with console.status(title):
            yield
    else:
        message(f"{title} ...")
        done = threading.Event()
        ticker = threading.Thread(target=_tick, args=(done, start), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            done.set()
            ticker.join()
    message(f"{title}: {time.monotonic() - start:.1f} s")


def _tick(done: threading.Event, start: float) -> None:
    while not done.wait(EVERY):
        message(f"  ... {time.monotonic() - start:.0f} s")
