"""Which rows of which tensors make up a parameter: what Transformers' operations come to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from porting.base.layout import TensorInfo

if TYPE_CHECKING:  # it takes seconds to import
    from transformers.core_model_loading import ConversionOps


@dataclass(frozen=True)
class Part:
    """A contiguous piece of a parameter in a checkpoint.

    Attributes:
        tensor: a whole tensor, or a view of rows of it: its shape, start and end are the piece's.
        first_row: the row of the parameter (of the expert's matrix) that the piece starts with,
            counted as the piece lies.
        expert: its number in a stack of experts, 0 for one matrix in pieces; None where the
            parameter is one tensor, which may be a stack that is not cut into experts yet.
        transposed: whether an expert lies as (in, out), as PEFT 0.21 tells them apart; None where
            only the shape can tell.
    """

    tensor: TensorInfo
    first_row: int = 0
    expert: int | None = None
    transposed: bool | None = None


@dataclass(frozen=True)
class Matrix:
    """A matrix or a bias of a model: `pieces` side by side along `axis`, transposed if `turned`."""

    pieces: tuple[TensorInfo, ...]
    turned: bool = False
    axis: int = 0


Value = Matrix | tuple[Matrix, ...]  # the tuple is a stack of experts


class NotRowsError(Exception):
    """An operation does more than to put rows side by side, so an update has no place."""


def value_of(tensor: TensorInfo) -> Value:
    if not tensor.shape or 0 in tensor.shape:
        raise NotRowsError
    if len(tensor.shape) != 3:
        return Matrix((tensor,))
    return tuple(Matrix((matrix,)) for matrix in unstacked(tensor))


def parts_of(value: Value, is_transposed: bool) -> Iterator[Part]:
    """The parts of a parameter; `is_transposed` is the attribute of its module that PEFT reads."""
    if isinstance(value, Matrix) and len(value.pieces) == 1 and not value.turned:
        yield Part(value.pieces[0])
        return
    for expert, matrix in enumerate(value if isinstance(value, tuple) else (value,)):
        if len(matrix.pieces) > 1 and matrix.axis != int(matrix.turned):
            raise NotRowsError
        row = 0
        for piece in matrix.pieces:
            yield Part(piece, row, expert, matrix.turned != is_transposed)
            row += piece.shape[0]


def applied(
    operation: "ConversionOps", values: list[list[Value]], shapes: Sequence[tuple[int, ...]]
) -> list[list[Value]]:
    """What an operation of a `WeightConverter` makes of the values that every source gave.

    Args:
        shapes: of the converter's targets, as the model has them.

    Raises:
        NotRowsError: it can't be followed.
    """
    from transformers.core_model_loading import (
        Chunk,
        Concatenate,
        MergeModulelist,
        Split,
        Transpose,
    )

    match operation:
        case MergeModulelist(dim=0):
            return [[_stacked(group)] for group in values]
        case Concatenate(dim=dim, num_shards_attribute=None):
            return [[_joined([value for group in values for value in group], dim)]]
    if [len(group) for group in values] != [1]:
        raise NotRowsError
    value = values[0][0]
    match operation:
        case Transpose(check_dims=True) if _shape(value) == shapes[0]:
            return values
        case Transpose(dim0=dim0, dim1=dim1):
            return [[_flipped(value, {dim0, dim1})]]
        case Chunk(dim=0, num_shards_attribute=None):
            rows = _shape(value)[0] // len(shapes)
            return [[piece] for piece in _cut(value, [rows] * len(shapes))]
        case Split(dim=0):
            return [[piece] for piece in _cut(value, [shape[0] for shape in shapes])]
    raise NotRowsError


def unstacked(tensor: TensorInfo) -> list[TensorInfo]:
    """The matrices of a 3-D tensor, one after the other in its file."""
    count, *shape = tensor.shape
    size = (tensor.end - tensor.start) // count
    starts = [tensor.start + number * size for number in range(count)]
    return [replace(tensor, shape=tuple(shape), start=at, end=at + size) for at in starts]


def _stacked(values: Sequence[Value]) -> Value:
    matrices = tuple(value for value in values if isinstance(value, Matrix))
    if len(matrices) != len(values):
        raise NotRowsError
    return matrices


def _joined(values: Sequence[Value], dim: int) -> Value:
    stacks = [value for value in values if isinstance(value, tuple)]
    if not stacks:
        return _beside([value for value in values if isinstance(value, Matrix)], dim)
    if len({len(stack) for stack in stacks}) > 1 or len(stacks) != len(values) or dim == 0:
        raise NotRowsError
    return tuple(_beside(matrices, dim - 1) for matrices in zip(*stacks, strict=True))


def _beside(matrices: Sequence[Matrix], axis: int) -> Matrix:
    turned = matrices[0].turned
    for matrix in matrices:
        if matrix.turned != turned or (len(matrix.pieces) > 1 and matrix.axis != axis):
            raise NotRowsError
    return Matrix(tuple(piece for matrix in matrices for piece in matrix.pieces), turned, axis)


def _flipped(value: Value, dims: set[int]) -> Value:
    if isinstance(value, Matrix) and dims == {0, 1}:
        return Matrix(value.pieces, not value.turned, 1 - value.axis)
    if isinstance(value, tuple) and dims == {1, 2}:
        return tuple(Matrix(m.pieces, not m.turned, 1 - m.axis) for m in value)
    raise NotRowsError


def _cut(value: Value, sizes: list[int]) -> list[Value]:
    """The rows of one tensor, shared out."""
    if not isinstance(value, Matrix) or len(value.pieces) > 1 or value.turned:
        raise NotRowsError
    [tensor] = value.pieces
    if sum(sizes) != tensor.shape[0]:
        raise NotRowsError
    row = (tensor.end - tensor.start) // tensor.shape[0]
    cut: list[Value] = []
    start = tensor.start
    for size in sizes:
        shape, end = (size, *tensor.shape[1:]), start + size * row
        cut.append(Matrix((replace(tensor, shape=shape, start=start, end=end),)))
        start = end
    return cut


def _shape(value: Value) -> tuple[int, ...]:
    """Of a tensor that nothing was done to."""
    if isinstance(value, tuple):
        return (len(value), *value[0].pieces[0].shape)
    return value.pieces[0].shape
