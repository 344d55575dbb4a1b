"""A full-weight delta: what was done to every tensor of a base, kept to the last bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from porting.patch.adapter import DELTA_CONFIG
from porting.patch.full import FORMAT, WEIGHTS
from porting.source import Folder
from porting.weights.compare import Compared, Progress
from porting.weights.deltas import DTYPES
from porting.weights.staging import staged
from porting.weights.writing import data, tensor_file


def extract_full(
    tuned: Path, base: Path, out: Path, address: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Write W_tuned - W_base of every tensor that changed to `out`, for `porting.patch.full`.

    Differences are rounded to F32. Added to the base in float64 and rounded once, one that F32
    holds exactly gives the tuned value back to the bit. It does for bf16 and fp16 unless tuning
    took a weight close to zero, by a factor of thousands; and for fp32 where the difference is no
    larger than both values. The others are counted, and so are negative zeros that were no zeros.

    Args:
        address: the base's `base_model_name_or_path` and `revision`, or None for both.

    Returns:
        `tensors`: `name`, `elements`, and `inexact` (how many do not come back to the bit) of
        each; `config`: fields that a patch can't change; `files`: sha256 by name.

    Raises:
        Refused: the models do not have the same tensors, or the same values; one is not finite.
    """
    both = Compared(Folder(tuned), Folder(base))
    shapes = {name: both.after.tensors[name].shape for name in both.changed(progress)}
    tensors, done = [], 0
    with staged(out) as stage:
        with tensor_file(stage / WEIGHTS, shapes) as add:
            for name, shape in shapes.items():
                difference = _Difference(both, name)
                add(name, "F32", shape, difference)
                tensors.append(
                    {"name": name, "elements": difference.elements, "inexact": difference.inexact}
                )
                done += both.size([name])
                progress("subtracting, bytes", done, both.size(shapes))
        text = json.dumps({"format": FORMAT} | address, indent=2)
        (stage / DELTA_CONFIG).write_text(text, encoding="utf-8")
        return {"tensors": tensors} | both.finish(stage)


class _Difference:
    """The blocks of one tensor's difference; counts those elements that do not lead back."""

    def __init__(self, both: Compared, name: str) -> None:
        self.both, self.name, self.elements, self.inexact = both, name, 0, 0

    def __iter__(self) -> Iterator[bytes]:
        dtype = DTYPES[self.both.before.tensors[self.name].dtype]
        for new, old in self.both.blocks(self.name):
            # -0.0 is the one number that leaves every other as it is, -0.0 too.
            delta = torch.where(_same_bits(new, old), -0.0, new - old).float()
            self.both.check_finite(self.name, delta)
            back, wanted = (old + delta.double()).to(dtype), new.to(dtype)
            self.elements += len(new)
            self.inexact += int((~_same_bits(back, wanted)).sum())
            yield data(delta)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one == other) & (one.signbit() == other.signbit())
