"""The arithmetic of a merge, on blocks of rows, in float64. Of the engine, only this needs torch.

float64 for every dtype: the last bits of a float32 product depend on the processor and on how the
rows are cut into blocks, and a few in a million results would then round to another bf16.
"""

import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

import torch

from porting.base.layout import TensorInfo
from porting.errors import Refused
from porting.mapping import Touch
from porting.patch.updates import Absolute, Addend, LoraPair, Operator
from porting.source import Folder

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INDICES = {"U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}
SCAN = 1 << 23  # bytes
KEPT_PAIRS = 4


class Delta(Protocol):
    """What one touch adds to its tensor."""

    def add_to(self, wide: torch.Tensor, start: int) -> None:
        """Add to `wide`, flat float64, the elements from number `start` on."""


Touches = list[tuple[Touch, Delta]]


class LowRank:
    """`left @ right`, `(rows, rank)` and `(rank, columns)`; works on whole rows only."""

    def __init__(self, left: torch.Tensor, right: torch.Tensor) -> None:
        self.left, self.right = left, right

    def add_to(self, wide: torch.Tensor, start: int) -> None:
        columns = self.right.shape[1]
        row, rows = start // columns, len(wide) // columns
        wide.view(rows, columns).addmm_(self.left[row : row + rows], self.right)


class Stored:
    """`scale` times a tensor that lies in a file, read block by block."""

    def __init__(self, folder: Folder, tensor: TensorInfo, scale: float) -> None:
        self.folder, self.tensor, self.scale = folder, tensor, scale

    def add_to(self, wide: torch.Tensor, start: int) -> None:
        part = replace(slice_of(self.tensor, start, len(wide)), shape=(len(wide),))
        wide.add_(load(self.folder, part), alpha=self.scale)


class Dense:
    """A whole delta in memory, for kinds that only PEFT can compute."""

    def __init__(self, delta: torch.Tensor) -> None:
        self.delta = delta.reshape(-1)

    def add_to(self, wide: torch.Tensor, start: int) -> None:
        wide.add_(self.delta[start : start + len(wide)])


class Rows:
    """A delta of a few rows, `delta` being `(len(rows), columns)`."""

    def __init__(self, rows: tuple[int, ...], delta: torch.Tensor) -> None:
        self.rows, self.delta = rows, delta

    def add_to(self, wide: torch.Tensor, start: int) -> None:
        columns = self.delta.shape[1]
        first, count = start // columns, len(wide) // columns
        table = wide.view(count, columns)
        for number, row in enumerate(self.rows):
            if first <= row < first + count:
                table[row - first].add_(self.delta[number])


class Sum:
    """Several deltas of one touch."""

    def __init__(self, *deltas: Delta) -> None:
        self.deltas = deltas

    def add_to(self, wide: torch.Tensor, start: int) -> None:
        for delta in self.deltas:
            delta.add_to(wide, start)


class Deltas:
    """Makes the delta of every touch of one patch.

    Args:
        patch: the patch's folder, and its config.
        base: the new base, which `reapply` computes with.
        old_base: the base the patch was trained on, where the plan says that it is needed.
        policy: what an operator (class C) means here: `reapply` or `freeze`.
        shapes: `(out, in)` of every module of the patch that only PEFT can compute.
    """

    def __init__(
        self,
        patch: Folder,
        config: dict[str, Any],
        base: Folder,
        old_base: Folder | None,
        policy: str | None,
        shapes: dict[str, tuple[int, ...]],
    ) -> None:
        self.patch, self.config, self.base, self.policy = patch, config, base, policy
        self.shapes = shapes
        self._old = old_base
        self._factors = lru_cache(KEPT_PAIRS)(self._read_pair)  # one pair serves many experts

    def of(self, touch: Touch) -> Delta:
        """The delta of `touch`, in the layout of `touch.tensor`."""
        update = touch.update
        if isinstance(update, LoraPair):
            return LowRank(*low_rank(touch, update, *self._factors(update)))
        if isinstance(update, Addend):
            return Stored(self.patch, update.value, update.scale)
        if isinstance(update, Absolute):
            return self._difference(update, touch)
        return self._operator(update, touch)

    def _read_pair(self, pair: LoraPair) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = load(self.patch, pair.a), load(self.patch, pair.b)
        return a.flatten(1), b.flatten(1) * pair.scale

    def _difference(self, update: Absolute, touch: Touch) -> Delta:
        assert touch.old is not None and self._old is not None
        if update.rows is None:
            return Sum(Stored(self.patch, update.value, 1.0), Stored(self._old, touch.old, -1.0))
        columns = update.value.shape[1]
        before = [
            load(self._old, slice_of(touch.old, row * columns, columns)) for row in update.rows
        ]
        return Rows(update.rows, load(self.patch, update.value) - torch.stack(before))

    def _operator(self, update: Operator, touch: Touch) -> Delta:
        from porting.weights.peft_layer import PeftLayer  # PEFT takes seconds to import

        tensors = {tensor.name: load(self.patch, tensor) for tensor in update.tensors}
        layer = PeftLayer(self.config, update, tensors, self.shapes)
        if update.meaning == "additive":
            return Dense(oriented(layer.delta(), touch))
        if update.meaning == "initialised":
            assert touch.old is not None and self._old is not None
            weight = oriented(load(self._old, touch.old), touch)
            a, b = converted_pair(tensors, layer.initial(weight))
            left, right = (a.T, b.T) if touch.transposed else (b, a)
            return LowRank(left.contiguous() * update.scale, right.contiguous())
        folder, tensor = (
            (self.base, touch.tensor) if self.policy == "reapply" else (self._old, touch.old)
        )
        assert folder is not None and tensor is not None
        value = oriented(load(folder, tensor), touch)
        return Dense(oriented(layer.operated(value) - value, touch))


def converted_pair(
    tensors: dict[str, torch.Tensor], initial: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A `(2 rank, in)` and B `(out, 2 rank)` of the plain LoRA that equals a class B adapter.

    Training began with `W - scale B0 A0` in the place of W, so what it learned is
    `scale (B A - B0 A0)`; as PEFT's `path_initial_model_for_weight_conversion` writes it.
    """
    a = next(value for name, value in tensors.items() if name.endswith("lora_A.weight"))
    b = next(value for name, value in tensors.items() if name.endswith("lora_B.weight"))
    return torch.cat([a, initial[0]]), torch.cat([b, -initial[1]], dim=1)


def low_rank(
    touch: Touch, pair: LoraPair, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(rows, rank)` and `(rank, columns)` whose product is the update of `touch.tensor`.

    `a` `(experts * rank, in)` and `b` `(out, rank * experts)` are the pair's, b times the scale.
    """
    if touch.expert is not None:
        a = a.view(pair.experts, pair.rank, -1)[touch.expert]
        b = b[:, touch.expert :: pair.experts]
    left, right = (a.T, b.T) if touch.transposed else (b, a)
    rows = touch.tensor.shape[0]
    return left[touch.first_row : touch.first_row + rows].contiguous(), right.contiguous()


def oriented(value: torch.Tensor, touch: Touch) -> torch.Tensor:
    return value.T.contiguous() if touch.transposed and value.dim() == 2 else value


def slice_of(tensor: TensorInfo, start: int, count: int) -> TensorInfo:
    """`count` elements of a tensor from number `start` on, as a flat tensor of its own."""
    size = DTYPES[tensor.dtype].itemsize
    begin = tensor.start + start * size
    return replace(tensor, shape=(count,), start=begin, end=begin + count * size)


def load(folder: Folder, tensor: TensorInfo) -> torch.Tensor:
    """A stored tensor in float64; indices, too, which stay what they are up to 2^53."""
    data = bytearray(folder.read(tensor.file, tensor.start, tensor.end))
    dtype = (DTYPES | INDICES)[tensor.dtype]
    if not data:
        return torch.empty(tensor.shape, dtype=torch.float64)
    return torch.frombuffer(data, dtype=dtype).view(tensor.shape).double()


def check_finite(patch: Folder, tensors: list[TensorInfo]) -> None:
    """Raises Refused if a tensor of the patch holds NaN or an infinity."""
    for tensor in tensors:
        if tensor.dtype in INDICES:
            continue
        step = SCAN // DTYPES[tensor.dtype].itemsize
        count = (tensor.end - tensor.start) // DTYPES[tensor.dtype].itemsize
        for start in range(0, count, step):
            part = load(patch, slice_of(tensor, start, min(step, count - start)))
            if not part.isfinite().all():
                raise Refused(
                    f"{tensor.file} in {patch.name}: {tensor.name!r} holds NaN or an infinity; "
                    "the training diverged, save an earlier checkpoint"
                )


class _Scratch(threading.local):
    """A float64 buffer of each thread; a new one for every block would cost more than the sums."""

    buffer = torch.empty(0, dtype=torch.float64)

    def of(self, count: int) -> torch.Tensor:
        if len(self.buffer) < count:
            self.buffer = torch.empty(count, dtype=torch.float64)
        return self.buffer[:count]


_scratch = _Scratch()


def updated(raw: bytearray, tensor: TensorInfo, start: int, touches: Touches) -> memoryview:
    """The new bytes of a block of whole rows of `tensor`, which begins at byte `start` of its file.

    `W' = W + dW` (arXiv 2410.10870), summed in float64 and rounded once.

    Raises:
        Refused: a result is not finite in the dtype of W.
    """
    old = torch.frombuffer(raw, dtype=DTYPES[tensor.dtype])
    size = old.itemsize
    wide = _scratch.of(len(old)).copy_(old)
    for touch, delta in touches:
        low, high = max(start, touch.tensor.start), min(start + len(raw), touch.tensor.end)
        if low < high:
            part = wide[(low - start) // size : (high - start) // size]
            delta.add_to(part, (low - touch.tensor.start) // size)
    old.copy_(wide)
    if not torch.stack(torch.aminmax(old)).isfinite().all():
        raise Refused(
            f"{tensor.file}: {tensor.name!r} with its update overflows {tensor.dtype} or is not a "
            "number; ask for an adapter"
        )
    return memoryview(raw)


@contextmanager
def one_thread() -> Any:
    """Blocks are too small to share between threads; also, one way of adding gives one result."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
