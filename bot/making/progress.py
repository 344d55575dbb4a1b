"""How far a port is, as log lines."""

import logging
import time

from bot.making.sandbox import Report

log = logging.getLogger("portllm")

EVERY = 2.0  # seconds between two lines


def reporter(key: str) -> Report:
    """Tells of the first and the last of every stage, and once in two seconds."""
    stage, last = "", 0.0

    def report(what: str, done: int, total: int, file: str = "") -> None:
        nonlocal stage, last
        if what == stage and done < total and time.monotonic() - last < EVERY:
            return
        stage, last = what, time.monotonic()
        log.info("%s: %s: %s of %s", key, what, f"{done:,}", f"{total:,}")

    return report
