"""The arithmetic of a merge, on blocks of rows. The only module here that imports torch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from porting.adapter import WEIGHTS
from porting.errors import Refused
from porting.layout import TensorInfo
from porting.mapping import Touch
from porting.source import Folder

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Update:
    """`W' = W + scale B A` (arXiv 2410.10870) for one tensor, in place, in float64, rounded once.

    float64 for every dtype: the last bits of a float32 product depend on the processor, and a few
    in a million results would then round to another bf16. It costs less than the sha256 does.

    Raises:
        Refused: A or B holds NaN or an infinity.
    """

    def __init__(self, touch: Touch, patch: Folder) -> None:
        a, b = _load(touch.pair.a, patch), _load(touch.pair.b, patch) * touch.pair.scale
        self._left, self._right = (a.T, b.T) if touch.transposed else (b, a)
        self._tensor = touch.tensor
        self._dtype = DTYPES[touch.tensor.dtype]

    def apply(self, block: bytearray, row: int) -> None:
        """Update whole rows of W, the first being number `row`, held in `block`.

        Raises:
            Refused: a result is not finite in the dtype of W.
        """
        narrow = torch.frombuffer(block, dtype=self._dtype).view(-1, self._right.shape[1])
        wide = narrow.to(torch.float64)
        wide.addmm_(self._left[row : row + len(wide)], self._right)
        narrow.copy_(wide)
        if not torch.stack(torch.aminmax(narrow)).isfinite().all():
            raise Refused(
                f"{self._tensor.file}: {self._tensor.name!r} with its update overflows "
                f"{self._tensor.dtype} or is not a number; ask for an adapter"
            )


def _load(info: TensorInfo, patch: Folder) -> torch.Tensor:
    data = bytearray(patch.read(info.file, info.start, info.end))
    tensor = torch.frombuffer(data, dtype=DTYPES[info.dtype]).view(info.shape).to(torch.float64)
    if not tensor.isfinite().all():
        raise Refused(
            f"{WEIGHTS} in {patch.name}: {info.name!r} holds NaN or an infinity; the training "
            "diverged, save an earlier checkpoint"
        )
    return tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Blocks are too small to share between threads; also, one way of adding gives one result."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
