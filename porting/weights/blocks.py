"""One file of a base becomes one file of every port: read once, in blocks, by a few threads."""

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from porting.base.layout import TensorInfo
from porting.errors import Refused

if TYPE_CHECKING:  # torch takes seconds to import
    from porting.weights.deltas import Touches

BLOCK = 1 << 20  # bytes, fixed: the result must not depend on the machine
WORKERS = min(os.cpu_count() or 1, 8)
AHEAD = WORKERS + 2  # blocks of a file that may wait to be hashed
SYNC = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
FLUSH_EVERY = 64  # blocks; the disk works while the next ones are computed

TouchesOf = Callable[[TensorInfo], "Touches"]


@dataclass(frozen=True)
class Target:
    """One port's version of a file.

    Attributes:
        path: where it is written.
        touches: what changes in a tensor; empty where nothing does.
        header: of the new file, where it is not the old one's.
        appended: a tensor behind all others; it starts from the values of its range.
    """

    path: Path
    touches: TouchesOf
    header: bytes | None = None
    appended: TensorInfo | None = None


@dataclass(frozen=True)
class _Block:
    """`size` bytes of the source from `start` on, and what every target makes of them.

    `tensor` is the one they belong to, None where no target changes them. A target's `offset` is
    where the block goes in it, None where it doesn't.
    """

    start: int
    size: int
    tensor: TensorInfo | None
    touches: "tuple[Touches, ...]"
    offsets: tuple[int | None, ...]


def write_file(
    source: Path,
    tensors: Sequence[TensorInfo],
    targets: Sequence[Target],
    progress: Callable[[int], object],
    hashed: bool,
) -> list[str]:
    """Write every target from the file `source`, which holds `tensors`, down to the disk.

    Returns:
        sha256 of each target, or empty strings if not `hashed`.

    Raises:
        Refused: a result is not finite, or `source` became shorter.
    """
    begin = min((tensor.start for tensor in tensors), default=0)
    digests = [hashlib.sha256() for _ in targets]
    pending: deque[Future[list[memoryview | None]]] = deque()
    reader = os.open(source, os.O_RDONLY)
    writers = [os.open(t.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for t in targets]

    def finish(contents: Sequence[memoryview | None]) -> None:
        for digest, content in zip(digests, contents, strict=True):
            if content is not None:
                if hashed:
                    digest.update(content)
                progress(len(content))

    try:
        header = os.pread(reader, begin, 0)
        headers = [header if target.header is None else target.header for target in targets]
        for writer, content in zip(writers, headers, strict=True):
            _write(writer, content, 0)
        finish([memoryview(content) for content in headers])
        shifts = [len(content) - begin for content in headers]
        with ThreadPoolExecutor(WORKERS) as pool, ThreadPoolExecutor(1) as disk:
            flushed = disk.submit(_flush, [])
            for number, block in enumerate(_blocks(source, begin, tensors, targets, shifts)):
                if number % FLUSH_EVERY == 0 and flushed.done():
                    flushed.result()  # the disk tells an error only once
                    flushed = disk.submit(_flush, writers)
                pending.append(pool.submit(_move, block, reader, writers, source))
                if len(pending) > AHEAD:
                    finish(pending.popleft().result())
            while pending:
                finish(pending.popleft().result())
            flushed.result()
        _flush(writers)
    finally:
        for descriptor in (reader, *writers):
            os.close(descriptor)
    return [digest.hexdigest() if hashed else "" for digest in digests]


def _write(writer: int, content: bytes | memoryview, offset: int) -> None:
    if os.pwrite(writer, content, offset) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what a write cut short means


def _flush(writers: Sequence[int]) -> None:
    """Bring the content to the disk; names and times follow when the folder is complete."""
    for writer in writers:
        SYNC(writer)


def _blocks(
    source: Path,
    begin: int,
    tensors: Sequence[TensorInfo],
    targets: Sequence[Target],
    shifts: Sequence[int],
) -> Iterator[_Block]:
    """What follows the header, in order; `shifts` is how far each target's data lies further on."""
    nothing: tuple[Touches, ...] = tuple([] for _ in targets)
    size, position = source.stat().st_size, begin
    for tensor in (*sorted(tensors, key=lambda tensor: tensor.start), None):
        touches = tuple(target.touches(tensor) for target in targets) if tensor else nothing
        if tensor is not None and not any(touches):
            continue
        end = tensor.start if tensor else size
        for start in range(position, end, BLOCK):
            offsets = tuple(start + shift for shift in shifts)
            yield _Block(start, min(BLOCK, end - start), None, nothing, offsets)
        if tensor:
            yield from _rows(tensor, touches, [tensor.start + shift for shift in shifts])
            position = tensor.end
    for number, target in enumerate(targets):
        if tensor := target.appended:
            only = tuple(target.touches(tensor) if n == number else [] for n in range(len(targets)))
            ends = [size + shift if n == number else None for n, shift in enumerate(shifts)]
            yield from _rows(tensor, only, ends)


def _rows(
    tensor: TensorInfo, touches: "tuple[Touches, ...]", offsets: Sequence[int | None]
) -> Iterator[_Block]:
    """Blocks of whole rows of a tensor: the same ones, whoever touches which part of it."""
    row = (tensor.end - tensor.start) // tensor.shape[0]
    if len(tensor.shape) == 3:  # a stack of experts, each (rows, columns)
        row //= tensor.shape[1]
    step = max(1, BLOCK // row) * row
    for start in range(tensor.start, tensor.end, step):
        size = min(step, tensor.end - start)
        moved = tuple(None if o is None else o + start - tensor.start for o in offsets)
        yield _Block(start, size, tensor, touches, moved)


def _move(
    block: _Block, reader: int, writers: Sequence[int], source: Path
) -> list[memoryview | None]:
    """Read a block, write what every target makes of it; returns that."""
    raw = bytearray(block.size)
    if os.preadv(reader, [raw], block.start) != block.size:
        raise Refused(f"{source} became shorter while it was read; fetch it again")
    contents: list[memoryview | None] = []
    for writer, touches, offset in zip(writers, block.touches, block.offsets, strict=True):
        if offset is None:
            contents.append(None)
            continue
        content = memoryview(raw)
        if block.tensor is not None and touches:
            from porting.weights.deltas import updated

            own = raw if len(writers) == 1 else bytearray(raw)
            content = updated(own, block.tensor, block.start, touches)
        _write(writer, content, offset)
        contents.append(content)
    return contents
