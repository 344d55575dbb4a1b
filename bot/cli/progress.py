"""How far a port is, on stderr: a bar of bytes on a terminal, else a line per finished file."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from bot.cli.output import console, message
from bot.making.sandbox import Report

BYTES = ", bytes"  # how `what` ends where bytes are counted


@contextmanager
def progress() -> Iterator[Report]:
    """A `Report` that shows what it is told until the block ends."""
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        yield _Bar(shown)


class _Lines:
    def __init__(self) -> None:
        self.last = ""

    def __call__(self, what: str, done: int, total: int, file: str = "") -> None:
        if file:
            message(f"  {file} ({what}: {done:,} of {total:,})")
        elif what != self.last and not what.endswith(BYTES):
            message(f"{what}: {total:,}")
        self.last = what


class _Bar:
    def __init__(self, shown: Progress) -> None:
        self.shown, self.tasks = shown, dict[str, TaskID]()

    def __call__(self, what: str, done: int, total: int, file: str = "") -> None:
        if not what.endswith(BYTES):
            message(f"{what}: {total:,}")
            return
        if what not in self.tasks:
            self.tasks[what] = self.shown.add_task(what.removesuffix(BYTES), total=total)
        self.shown.update(self.tasks[what], completed=done)
