"""Processes forked from one that has imported what they need, for one use at a time."""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

FORKS = multiprocessing.get_context("forkserver")


def forks(preload: str) -> ForkServerContext:
    """Where processes are forked from `preload`; a server of something else is ended before."""
    server = forkserver._forkserver
    if server._preload_modules != [preload]:
        server._stop()
        FORKS.set_forkserver_preload([preload])
    return FORKS
