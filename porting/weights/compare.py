"""A tuned model beside the base that it was made from: the same tensors, other values."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from porting.base.classify import HARMLESS
from porting.base.layout import FLOATS, Layout, TensorInfo, read_layout
from porting.errors import Refused
from porting.files import TRAVEL, matches
from porting.source import Folder, Source, read_json, sha256
from porting.weights.deltas import load, slice_of

# Fields of config.json that say nothing about what is computed from the weights.
IGNORED = {*HARMLESS, "dtype", "torch_dtype", "use_cache"}
BLOCK = 1 << 22  # elements; bytes where nothing but bytes is looked at
Progress = Callable[[str, int, int], object]  # what (it ends with the unit), done, total


class Compared:
    """Both models, read a block or a matrix at a time.

    Raises:
        Refused: their tensors differ in name or shape.
    """

    def __init__(self, tuned: Folder, base: Folder) -> None:
        self.tuned, self.base = tuned, base
        self.after, self.before = check_same(tuned, base)

    def changed(self, progress: Progress) -> list[str]:
        """The names of the tensors whose bytes differ (whose values, where the dtypes do).

        Raises:
            Refused: there is none, or one of a dtype that can't be subtracted.
        """
        total = self.size(self.after.tensors)
        done, found = 0, []
        for name in self.after.tensors:
            if not self._is_same(name):
                found.append(name)
            done += self.size([name])
            progress("comparing, bytes", done, total)
        if not found:
            raise Refused(
                f"No tensor of {self.tuned.name} differs from {self.base.name}; name the model "
                "that was trained, and the base that it started from"
            )
        return found

    def _is_same(self, name: str) -> bool:
        after, before = self.after.tensors[name], self.before.tensors[name]
        if after.dtype == before.dtype:
            both = zip(raw(self.tuned, after), raw(self.base, before), strict=True)
            same = all(new == old for new, old in both)
        else:
            same = _is_number(after, before) and all(
                torch.equal(new, old) for new, old in self.blocks(name)
            )
        if not same and not _is_number(after, before):
            raise Refused(
                f"{after.file} in {self.tuned.name}: {name!r} is {after.dtype}, and {before.dtype} "
                f"in {self.base.name}, and only {', '.join(FLOATS)} can be subtracted; give both "
                "models unquantised"
            )
        return same

    def size(self, names: Iterable[str]) -> int:
        """The bytes of some tensors of the tuned model."""
        tensors = [self.after.tensors[name] for name in names]
        return sum(tensor.end - tensor.start for tensor in tensors)

    def blocks(self, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Both values of one tensor, flat float64, block by block: tuned, base."""
        after, before = self.after.tensors[name], self.before.tensors[name]
        count = math.prod(after.shape)
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            yield (
                load(self.tuned, slice_of(after, start, size)),
                load(self.base, slice_of(before, start, size)),
            )

    def difference(self, name: str) -> torch.Tensor:
        """W_tuned - W_base in float64, whole; raises Refused if it is not finite."""
        delta = load(self.tuned, self.after.tensors[name])
        delta -= load(self.base, self.before.tensors[name])
        self.check_finite(name, delta)
        return delta

    def check_finite(self, name: str, delta: torch.Tensor) -> None:
        if not delta.isfinite().all():
            raise Refused(
                f"{self.after.tensors[name].file} in {self.tuned.name}: {name!r}, or its "
                "difference to the base, holds NaN or an infinity; the training diverged, take an "
                "earlier checkpoint"
            )

    def finish(self, stage: Path) -> dict[str, Any]:
        """Put the tuned model's tokenizer, chat template and licence beside a patch in `stage`.

        Returns:
            `config`: the fields of config.json in which the two models differ, and which no patch
            can change; `files`: the sha256 of everything in `stage`, by name.
        """
        for file in self.tuned.files():
            if matches(file, TRAVEL):
                shutil.copyfile(self.tuned.locate(file), stage / file)
        after, before = read_json(self.tuned, "config.json"), read_json(self.base, "config.json")
        return {
            "config": sorted(
                field
                for field in after.keys() | before.keys()
                if field not in IGNORED and after.get(field) != before.get(field)
            ),
            "files": {file.name: sha256(file) for file in sorted(stage.iterdir())},
        }


def raw(folder: Folder, tensor: TensorInfo) -> Iterator[bytes]:
    """The bytes of a tensor, block by block."""
    for start in range(tensor.start, tensor.end, BLOCK):
        yield folder.read(tensor.file, start, min(start + BLOCK, tensor.end))


def _is_number(*tensors: TensorInfo) -> bool:
    return all(tensor.dtype in FLOATS for tensor in tensors)


def check_same(tuned: Source, base: Source) -> tuple[Layout, Layout]:
    """The layouts of both models, whose tensors have the same names and shapes, or Refused."""
    after, before = read_layout(tuned), read_layout(base)
    for name in sorted(after.tensors.keys() ^ before.tensors.keys()):
        has, lacks = (tuned, base) if name in after.tensors else (base, tuned)
        raise Refused(
            f"{has.name} has {name!r} and {lacks.name} does not; give two models of one "
            "architecture, saved by the same class"
        )
    for name, tensor in after.tensors.items():
        shape, was = tensor.shape, before.tensors[name].shape
        if shape != was and shape[1:] == was[1:]:
            raise Refused(
                f"{name!r} has {shape[0]} rows in {tuned.name} and {was[0]} in {base.name}; where "
                "tokens were added, bring both to one size first (resize_token_embeddings)"
            )
        if shape != was:
            raise Refused(
                f"{name!r} has shape {shape} in {tuned.name} and {was} in {base.name}; give two "
                "models of one architecture"
            )
    return after, before
