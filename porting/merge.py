"""Write merged models: one pass over the base for any number of patches, safe to interrupt."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from porting.base.layout import TensorInfo, read_layout
from porting.errors import Refused, UsageError
from porting.mapping import Touch
from porting.patch.adapter import read_adapter
from porting.patch.updates import Operator
from porting.plan import Plan, plan
from porting.source import Folder
from porting.weights.blocks import Target, write_file
from porting.weights.rewrite import edited_files, header_with
from porting.weights.staging import staged, sync

if TYPE_CHECKING:  # torch takes seconds to import
    from porting.weights.deltas import Deltas, Touches

Progress = Callable[[int], object]
Finished = Callable[[str], object]
FILES_AT_ONCE = 2  # each holds a few blocks in memory, and is hashed by one thread


@dataclass(frozen=True)
class Port:
    """One patch on its way to a base, and the base it was trained on where `plan` needed it."""

    plan: Plan
    patch: Path
    old_base: Path | None = None


def merge(
    plan: Plan,
    base: Path,
    patch: Path,
    out: Path,
    progress: Progress = lambda _: None,
    *,
    old_base: Path | None = None,
    hashed: bool = True,
    finished: Finished = lambda _: None,
) -> dict[str, str]:
    """Write `base` with the updates of `patch` to `out`, as `plan` says.

    Names, order and headers of the shards stay, and untouched tensors are copied as bytes. `out`
    appears whole or not at all; after a crash, the same call keeps the files that are finished.

    Args:
        progress: called with the number of bytes done since the last call, from any thread.
        old_base: the base that the plan was made with, if it was.
        hashed: whether to hash what is written.
        finished: called with the name of every file that is done, from any thread.

    Returns:
        sha256 of every file written, by name; empty strings if not `hashed`.

    Raises:
        Refused: the files are not those of the plan, or a value is not finite.
        UsageError: `plan` is not that of a merge, or `out` exists and is not empty.
    """
    [digests] = merge_all(
        [Port(plan, patch, old_base)], base, [out], progress, hashed=hashed, finished=finished
    )
    return digests


def merge_all(
    ports: Sequence[Port],
    base: Path,
    outs: Sequence[Path],
    progress: Progress = lambda _: None,
    *,
    hashed: bool = True,
    finished: Finished = lambda _: None,
) -> list[dict[str, str]]:
    """`merge` for several patches on one base, which is read once; the same bytes as one by one."""
    from porting.weights.deltas import one_thread

    merger = Merger(ports, base, hashed)
    keep = [*merger.files, *map(_marker, merger.files)]
    with ExitStack() as stack:
        stages = [stack.enter_context(staged(out, keep)) for out in outs]
        with one_thread(), ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            waiting = [
                pool.submit(_once, merger, file, stages, progress, finished)
                for file in merger.files
            ]
            try:
                digests = [future.result() for future in waiting]
            finally:
                pool.shutdown(cancel_futures=True)
        for stage in stages:
            for file in merger.files:
                (stage / _marker(file)).unlink()
    return [dict(zip(merger.files, of_port, strict=True)) for of_port in zip(*digests, strict=True)]


class Merger:
    """Checked ports on one base, ready to write any of its files.

    Raises:
        Refused: the files are not those of the plans, or a patch holds NaN or an infinity.
        UsageError: a plan is not that of a merge.
    """

    def __init__(self, ports: Sequence[Port], base: Path, hashed: bool = True) -> None:
        self.ports, self.base, self.hashed = ports, Folder(base), hashed
        self.files = ports[0].plan.written_files
        self._deltas: list[Deltas] = []
        self._inputs = [_stats(*filter(None, (port.patch, port.old_base))) for port in ports]
        self._edited = [edited_files(port.plan, self.base) for port in ports]
        for port in ports:
            _check(port, self.base)
            self._deltas.append(deltas_of(port, self.base))

    def write(self, file: str, paths: Sequence[Path], progress: Progress) -> list[str]:
        """Write `file` of every port to its path; returns the sha256 of each.

        Torch must be told to use one thread (`deltas.one_thread`), as this runs in several.
        """
        if any(file in edited for edited in self._edited):
            return self._small(file, paths, progress)
        layout = self.ports[0].plan.layout
        tensors = [tensor for tensor in layout.tensors.values() if tensor.file == file]
        targets = []
        for port, deltas, path in zip(self.ports, self._deltas, paths, strict=True):
            new = port.plan.appended
            head = new if new and new.file == file else None
            by_name: dict[str, list[Touch]] = {}
            for touch in port.plan.touches_of(file):
                by_name.setdefault(touch.tensor.name, []).append(touch)
            targets.append(
                Target(
                    path=path,
                    touches=partial(_touches, by_name, deltas),
                    header=header_with(head, self.base, layout) if head else None,
                    appended=head,
                )
            )
        return write_file(self.base.locate(file), tensors, targets, progress, self.hashed)

    def _small(self, file: str, paths: Sequence[Path], progress: Progress) -> list[str]:
        own = self.base.read(file, 0, self.base.files()[file].size)
        digests = []
        for edited, path in zip(self._edited, paths, strict=True):
            content = edited.get(file, own)
            path.write_bytes(content)
            sync(path)
            progress(len(content))
            digests.append(hashlib.sha256(content).hexdigest() if self.hashed else "")
        return digests

    def identity(self, file: str, number: int) -> str:
        """What port `number` makes `file` of: another base, patch or plan gives another answer."""
        port = self.ports[number]
        stats = [_stat(self.base.locate(file)), *self._inputs[number]]
        made_of = (stats, port.plan.touches_of(file), port.plan.head, port.plan.policy)
        return hashlib.sha256(repr(made_of).encode()).hexdigest()


def _stats(*folders: Path) -> list[tuple[str, int, int]]:
    return [_stat(Folder(f).locate(name)) for f in folders for name in Folder(f).files()]


def _stat(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns


def deltas_of(port: Port, base: Folder) -> "Deltas":
    """What makes the delta of every touch; Refused if the patch holds NaN or an infinity."""
    from porting.weights.deltas import Deltas, check_finite

    patch = Folder(port.patch)
    found = read_adapter(patch)
    check_finite(patch, [t for update in found.updates for t in update.tensors])
    old = Folder(port.old_base) if port.old_base else None
    return Deltas(patch, found.config, base, old, port.plan.policy, _shapes(port.plan))


def _check(port: Port, base: Folder) -> None:
    if port.plan.as_ != "merged":
        raise UsageError("This plan is for an adapter: make one with as_='merged'")
    if read_layout(base) != port.plan.layout:
        raise Refused(f"{base.name}: its tensors are not those of the plan; plan again")
    patch = Folder(port.patch)
    again = plan(
        base,
        patch,
        as_="merged",
        old_base=Folder(port.old_base) if port.old_base else None,
        policy=port.plan.policy,
    )
    if again.touched != port.plan.touched:
        raise Refused(f"{patch.name}: its updates are not those of the plan; plan again")


def _shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """`(out, in)` of the layer of every operator, also where only its bias is touched."""
    shapes = {}
    for touch in plan.touched:
        if isinstance(touch.update, Operator):
            name = touch.tensor.name.removesuffix(touch.update.parameter) + "weight"
            shape = plan.layout.tensors.get(name, touch.tensor).shape
            shapes[touch.update.module] = shape[::-1] if touch.transposed else shape
    return shapes


def _touches(by_name: Mapping[str, list[Touch]], deltas: "Deltas", tensor: TensorInfo) -> "Touches":
    return [(touch, deltas.of(touch)) for touch in by_name.get(tensor.name, [])]


def _once(
    merger: Merger, file: str, stages: Sequence[Path], progress: Progress, finished: Finished
) -> list[str]:
    """Write a file of every port under a temporary name, and rename it; not if that was done."""
    made_of = [merger.identity(file, number) for number in range(len(stages))]
    found = [_finished(stage, file, inputs) for stage, inputs in zip(stages, made_of, strict=True)]
    if all(digest is not None and bool(digest) >= merger.hashed for digest in found):
        for stage in stages:
            progress((stage / file).stat().st_size)
        finished(file)
        return [digest or "" for digest in found]
    for stage in stages:
        (stage / _marker(file)).unlink(missing_ok=True)
    parts = [stage / f".{file}.part" for stage in stages]
    digests = merger.write(file, parts, progress)
    for stage, part, inputs, digest in zip(stages, parts, made_of, digests, strict=True):
        part.rename(stage / file)
        (stage / _marker(file)).write_text(f"{inputs} {digest}", encoding="ascii")
    finished(file)
    return digests


def _marker(file: str) -> str:
    return f".{file}.done"


def _finished(stage: Path, file: str, inputs: str) -> str | None:
    """What an earlier call found as the sha256 of `file`, made of the same inputs."""
    marker = stage / _marker(file)
    if not (stage / file).exists() or not marker.exists():
        return None
    made_of, _, digest = marker.read_text(encoding="ascii").partition(" ")
    return digest if made_of == inputs else None
