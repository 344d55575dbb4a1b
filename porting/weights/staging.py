"""Write a folder beside its final place, then move it there whole."""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from porting.errors import Refused, UsageError


@contextmanager
def staged(out: Path, keep: Collection[str] = ()) -> Iterator[Path]:
    """Yield `.<out>.partial` beside `out`, and rename it to `out` at the end.

    After a crash the staging folder stays; the next call yields it again, with nothing left in it
    but the names in `keep`. A refusal removes it.

    Raises:
        UsageError: `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty: give a new folder")
    stage = out.parent / f".{out.name}.partial"
    stage.mkdir(parents=True, exist_ok=True)
    for file in stage.iterdir():
        if file.name not in keep:
            file.unlink()
    try:
        yield stage
    except Refused:
        shutil.rmtree(stage)
        raise
    for file in stage.iterdir():
        sync(file)
    sync(stage)
    stage.rename(out)
    sync(out.parent)


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
