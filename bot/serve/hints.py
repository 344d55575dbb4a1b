"""Looks, soon, at what events hint at. Each once, however often and in whatever order it is said.

An event is never believed: all it does is to have something looked at that is looked at anyway.
So one that is lost, late or forged changes nothing but when. Nothing is kept: what a restart loses,
the poll finds.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import NamedTuple, TypeVar

from anyio import CapacityLimiter, to_thread

log = logging.getLogger("portllm")
T = TypeVar("T")

PAUSE, LONGEST = 1.0, 300.0  # seconds until the same is looked at again, after news and without
WINDOW, MOST_LOOKS = 300.0, 100  # a tenth of what the Hub's free tier allows
MOST_HINTS = 10_000  # that are remembered
THREADS = 8


class Topic(StrEnum):
    REPO = "repo"
    DISCUSSION = "discussion"


class Hint(NamedTuple):
    topic: Topic
    repo: str


Look = Callable[[], bool]  # whether there was news


class Hints:
    """Runs in an event loop; looks run in threads.

    Each hint has a task from when it is first given until it has been looked at and has rested. It
    rests for twice as long each time that there was no news, so that a storm costs a few looks. A
    first look without news is repeated: a Hub may answer with what was.
    """

    def __init__(self, looks: Callable[[Hint], list[Look]]) -> None:
        """`looks` says what a hint is about: nothing, if nobody follows it."""
        self._looks = looks
        self._wanted: set[Hint] = set()
        self._tasks: dict[Hint, asyncio.Task[None]] = {}
        self._spent: deque[float] = deque(maxlen=MOST_LOOKS)
        self._threads = CapacityLimiter(THREADS)
        self.outcomes: Counter[str] = Counter()

    def add(self, hint: Hint) -> None:
        """Let it be looked at: at once, or when it has rested."""
        if hint in self._wanted:
            self.outcomes["coalesced"] += 1
        elif hint not in self._tasks and len(self._tasks) >= MOST_HINTS:
            self.outcomes["dropped"] += 1
        else:
            self.outcomes["heard"] += 1
            self._wanted.add(hint)
            if hint not in self._tasks:
                self._tasks[hint] = asyncio.create_task(self._follow(hint))

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _follow(self, hint: Hint) -> None:
        pause, is_first = PAUSE, True
        try:
            while hint in self._wanted:
                self._wanted.discard(hint)
                news = await self._look(hint)
                if news is False and is_first:
                    self._wanted.add(hint)
                pause = PAUSE if news else min(2 * pause, LONGEST)
                is_first = False
                await asyncio.sleep(pause)
        finally:
            self._wanted.discard(hint)
            del self._tasks[hint]

    async def _look(self, hint: Hint) -> bool | None:
        """Whether there was news; None where there was nothing to look at."""
        news = False
        try:
            looks = await self._in_thread(partial(self._looks, hint))
            if not looks:
                self.outcomes["ignored"] += 1
                return None
            for look in looks:
                await self._turn()
                self.outcomes["looked"] += 1
                news |= await self._in_thread(look)
        except Exception:  # such as a database that is away; the next event, or the poll, comes
            log.exception("%s: could not be looked at after an event.", hint.repo)
        return news

    async def _turn(self) -> None:
        """Wait until one more look is within what events may cost."""
        clock = asyncio.get_running_loop().time
        while len(self._spent) == MOST_LOOKS and (wait := self._spent[0] + WINDOW - clock()) > 0:
            await asyncio.sleep(wait)
        self._spent.append(clock())

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)
