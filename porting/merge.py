"""Write the merged model: one file at a time, in blocks, hashed on the way, safe to interrupt."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path

from porting import adapter
from porting.adapter import read_adapter
from porting.errors import Refused, UsageError
from porting.layout import read_layout
from porting.mapping import Touch
from porting.plan import Plan
from porting.source import Folder
from porting.staging import staged

BLOCK = 1 << 20  # bytes, fixed: the result must not depend on the machine


def merge(
    plan: Plan,
    base: Path,
    patch: Path,
    out: Path,
    progress: Callable[[int], object] = lambda _: None,
) -> dict[str, str]:
    """Write `base` with the updates of `patch` to `out`, as `plan` says.

    Names, order and headers of the shards stay, and untouched tensors are copied as bytes. `out`
    appears whole or not at all; after a crash, the same call keeps the files that are finished.

    Args:
        progress: called with the number of bytes done since the last call.

    Returns:
        sha256 of every file written, by name.

    Raises:
        Refused: the files are not those of the plan, or a value is not finite.
        UsageError: `plan` is not that of a merge, or `out` exists and is not empty.
    """
    from porting.update import one_thread  # torch takes seconds to import: only merges pay

    if plan.as_ != "merged":
        raise UsageError("This plan is for an adapter: make one with as_='merged'")
    base_folder, patch_folder = Folder(base), Folder(patch)
    _check_unchanged(plan, base_folder, patch_folder)
    files = sorted({*plan.copied_files, *(touch.tensor.file for touch in plan.touched)})
    digests = {}
    with staged(out, keep=[*files, *map(_marker, files)]) as stage, one_thread():
        for file in files:
            touches = [touch for touch in plan.touched if touch.tensor.file == file]
            path, marker = base_folder.locate(file), stage / _marker(file)
            inputs = _identity(path, patch_folder.locate(adapter.WEIGHTS), touches)
            digest = _finished(stage / file, marker, inputs)
            if digest:
                progress(path.stat().st_size)
            else:
                marker.unlink(missing_ok=True)
                digest = _write(path, stage / file, touches, patch_folder, progress)
                marker.write_text(f"{inputs} {digest}", encoding="ascii")
            digests[file] = digest
        for file in files:
            (stage / _marker(file)).unlink()
    return digests


def _check_unchanged(plan: Plan, base: Folder, patch: Folder) -> None:
    if read_layout(base) != plan.layout:
        raise Refused(f"{base.name}: its tensors are not those of the plan; plan again")
    if set(read_adapter(patch).pairs) != {touch.pair for touch in plan.touched}:
        raise Refused(f"{patch.name}: its updates are not those of the plan; plan again")


def _marker(file: str) -> str:
    return f".{file}.done"


def _identity(base: Path, patch: Path, touches: list[Touch]) -> str:
    """What a finished file was made of: another base, patch or plan makes it unfinished."""
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in (base, patch)]
    return hashlib.sha256(repr((stats, touches)).encode()).hexdigest()


def _finished(target: Path, marker: Path, inputs: str) -> str | None:
    """The sha256 of `target` if an earlier call finished it from the same inputs."""
    if not target.exists() or not marker.exists():
        return None
    made_of, _, digest = marker.read_text(encoding="ascii").partition(" ")
    return digest if made_of == inputs and len(digest) == 64 else None


def _write(
    path: Path,
    target: Path,
    touches: list[Touch],
    patch: Folder,
    progress: Callable[[int], object],
) -> str:
    """Write one file under a temporary name, rename it, and return its sha256."""
    part = target.with_name(f".{target.name}.part")
    digest = hashlib.sha256()
    with path.open("rb") as reader, part.open("wb") as writer, ThreadPoolExecutor(1) as hasher:
        hashed = hasher.submit(digest.update, b"")
        for block in _blocks(reader, path.stat().st_size, touches, patch):
            hashed.result()  # at most one block waits, so memory stays small
            hashed = hasher.submit(digest.update, block)
            writer.write(block)
            progress(len(block))
        writer.flush()
        os.fsync(writer.fileno())
    part.rename(target)
    return digest.hexdigest()


def _blocks(
    reader: BufferedReader, size: int, touches: list[Touch], patch: Folder
) -> Iterator[bytearray]:
    """The new content of a file of `size` bytes, from its old content."""
    position = 0
    for touch in sorted(touches, key=lambda touch: touch.tensor.start):
        yield from _copied(reader, touch.tensor.start - position)
        yield from _updated(reader, touch, patch)
        position = touch.tensor.end
    yield from _copied(reader, size - position)


def _copied(reader: BufferedReader, size: int) -> Iterator[bytearray]:
    for start in range(0, size, BLOCK):
        yield _read(reader, min(BLOCK, size - start))


def _updated(reader: BufferedReader, touch: Touch, patch: Folder) -> Iterator[bytearray]:
    from porting.update import Update

    update = Update(touch, patch)
    rows = touch.tensor.shape[0]
    row_bytes = (touch.tensor.end - touch.tensor.start) // rows
    step = max(1, BLOCK // row_bytes)
    for row in range(0, rows, step):
        block = _read(reader, min(step, rows - row) * row_bytes)
        update.apply(block, row)
        yield block


def _read(reader: BufferedReader, size: int) -> bytearray:
    block = bytearray(size)
    if reader.readinto(block) != size:
        raise Refused(f"{reader.name} became shorter while it was read; fetch it again")
    return block
