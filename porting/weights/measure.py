"""What is measured of one tensor that a patch changes, read in blocks of rows, in float64."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from porting.base.layout import TensorInfo
from porting.errors import Refused
from porting.mapping import Touch
from porting.source import Folder
from porting.weights.deltas import DTYPES, Delta, Deltas, LowRank, load, slice_of
from porting.weights.intruders import examined, intruders

BLOCK = 1 << 20  # elements
NO_RANK = 1e-12  # of the sum of the singular values


class Sums(NamedTuple):
    """What adds up, over blocks and over tensors: squared norms and counts, nothing divided yet.

    `compared` elements have a known drift, `compared_delta` is dW over them; `shared` is the drift
    of the tensors that have shares, and chances are weighted by it.
    """

    delta: float = 0.0
    compared: int = 0
    compared_delta: float = 0.0
    drift: float = 0.0
    dot: float = 0.0
    shared: float = 0.0
    row_share: float = 0.0
    row_chance: float = 0.0
    column_share: float = 0.0
    column_chance: float = 0.0
    changed: int = 0
    lost: int = 0
    examined: int = 0
    intruders: int = 0

    def added(self, *others: "Sums") -> "Sums":
        return Sums(*(sum(column) for column in zip(self, *others, strict=True)))


@dataclass(frozen=True)
class Piece:
    """A tensor, or a range of its rows, and what touches it; the largest touch gives the range.

    `old` is the same in the old base, where it is known.
    """

    tensor: TensorInfo
    old: TensorInfo | None
    touches: list[Touch] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.tensor.end - self.tensor.start

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns; a vector is one column."""
        return math.prod(self.tensor.shape[:1]), math.prod(self.tensor.shape[1:])


def measure(piece: Piece, base: Folder, old: Folder | None, deltas: Deltas) -> Sums:
    """All sums of one piece. Raises Refused if a value of a base is not finite."""
    made = [(touch, deltas.of(touch)) for touch in piece.touches]
    low_rank = made[0][1] if len(made) == 1 and isinstance(made[0][1], LowRank) else None
    basis = _Basis(low_rank) if low_rank is not None and piece.old else None
    pair = torch.empty(2, *piece.matrix) if examined(piece.tensor.shape) else None
    found, row = Sums(), 0
    for new, moved, change in _blocks(piece, made, base, old):
        found = found.added(_sums(new, moved, change, DTYPES[piece.tensor.dtype]))
        end = row + len(new)
        if pair is not None:
            pair[0, row:end], pair[1, row:end] = new, new + change
        if basis and moved is not None:
            basis.add(moved, row)
        row = end
    if basis:
        found = basis.completed(found)
    if pair is not None:
        found = found._replace(examined=1, intruders=intruders(*pair))
    return found


Block = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]


def _blocks(
    piece: Piece, made: list[tuple[Touch, Delta]], base: Folder, old: Folder | None
) -> Iterator[Block]:
    """W_new, W_new - W_old where it is known, and dW of some rows each, float64."""
    tensor, (rows, columns) = piece.tensor, piece.matrix
    step = max(1, BLOCK // max(columns, 1))
    for row in range(0, rows, step):
        start, count = row * columns, min(step, rows - row) * columns
        new, moved = load(base, slice_of(tensor, start, count)), None
        if piece.old and old:
            moved = new - load(old, slice_of(piece.old, start, count))
        if not (new if moved is None else moved).sum().isfinite():
            raise Refused(
                f"{tensor.file}: {tensor.name!r} holds NaN or an infinity, in the new base or in "
                "the old one; fetch both again"
            )
        change = _change(made, tensor, start, count).view(-1, columns)
        yield new.view(-1, columns), None if moved is None else moved.view(-1, columns), change


def _change(
    made: list[tuple[Touch, Delta]], tensor: TensorInfo, start: int, count: int
) -> torch.Tensor:
    """dW of `count` elements of `tensor` from number `start` on, flat."""
    change, width = torch.zeros(count, dtype=torch.float64), DTYPES[tensor.dtype].itemsize
    for touch, delta in made:
        first, end = ((at - tensor.start) // width for at in (touch.tensor.start, touch.tensor.end))
        low, high = max(start, first), min(start + count, end)
        if low < high:
            delta.add_to(change[low - start : high - start], low - first)
    return change


def _sums(
    new: torch.Tensor, moved: torch.Tensor | None, change: torch.Tensor, dtype: torch.dtype
) -> Sums:
    delta = _dot(change, change)
    kept = (new + change).to(dtype) == new.to(dtype)
    found = Sums(
        delta=delta,
        changed=int(change.count_nonzero()),
        lost=int((kept & (change != 0)).sum()),
    )
    if moved is None:
        return found
    return found._replace(
        compared=moved.numel(),
        compared_delta=delta,
        drift=_dot(moved, moved),
        dot=_dot(moved, change),
    )


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one.flatten() @ other.flatten())


class _Basis:
    """How much of the drift lies in the row and column space of dW, a product of two factors.

    Orthonormal bases `(columns, rank)` and `(rows, rank)` come from the factors. A dense dW has
    none here: its rank is mostly full, and then every drift lies in it.
    """

    def __init__(self, delta: LowRank) -> None:
        left, small = torch.linalg.qr(delta.left)
        right, other = torch.linalg.qr(delta.right.T)
        u, values, v = torch.linalg.svd(small @ other.T, full_matrices=False)
        kept = values > NO_RANK * values.sum()
        self.column, self.row = left @ u[:, kept], right @ v.T[:, kept]
        self.in_rows = 0.0
        self.in_columns = torch.zeros(self.column.shape[1], len(self.row), dtype=torch.float64)

    def add(self, moved: torch.Tensor, row: int) -> None:
        inside = moved @ self.row
        self.in_rows += _dot(inside, inside)
        self.in_columns.addmm_(self.column[row : row + len(moved)].T, moved)

    def completed(self, found: Sums) -> Sums:
        rank = self.column.shape[1]
        return found._replace(
            shared=found.drift,
            row_share=self.in_rows,
            row_chance=found.drift * rank / max(len(self.row), 1),
            column_share=_dot(self.in_columns, self.in_columns),
            column_chance=found.drift * rank / max(len(self.column), 1),
        )
