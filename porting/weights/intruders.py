"""Intruder dimensions: large singular vectors that a patch brings and the base does not have.

Shuttleworth et al., arXiv 2410.21228, algorithm 1, without the decomposition of a whole matrix.
"""

import torch

LARGEST = 10  # k of the paper: how many singular vectors of the patched matrix are looked at
SIMILAR = 0.6  # epsilon of the paper
SPARE = 6  # more vectors to begin with than are wanted, so that the last of them converge too
STEPS, MORE_STEPS = 12, 24
ZERO = 1e-10  # of the largest squared singular value, where float32 ends
MOST_ELEMENTS = 1 << 27  # of a matrix; two of them are held in float32


def examined(shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a matrix that is large enough to have intruders, and small enough."""
    return len(shape) == 2 and min(shape) > LARGEST and shape[0] * shape[1] <= MOST_ELEMENTS


def intruders(before: torch.Tensor, after: torch.Tensor) -> int:
    """How many of the `LARGEST` left singular vectors of `after` no left one of `before` is like.

    Both are `(rows, columns)` in float32. Up to 208 rows it is exact. Above, singular vectors are
    those of a block Krylov space: the top of `after` converges to about 1e-4. Of `before` those
    converge that hold much of one of these vectors; where one half follows a single vector from
    deep in the spectrum, that one may stay unseen, and an intruder be counted that is none.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(LARGEST + SPARE, len(after), generator=generator)
    top = _left_vectors(after, start, STEPS)[-LARGEST:]
    cosines = _left_vectors(before, top, MORE_STEPS) @ top.T
    return int((cosines.abs().amax(0) < SIMILAR).sum())


def _left_vectors(matrix: torch.Tensor, start: torch.Tensor, steps: int) -> torch.Tensor:
    """Left singular vectors `(count, rows)` in the Krylov space of `start`, the largest last.

    Rayleigh-Ritz on start, M Mᵀ start, (M Mᵀ)² start, ... (Musco and Musco, arXiv 1504.05477).
    """
    if len(matrix) <= (LARGEST + SPARE) * (STEPS + 1):
        basis = torch.eye(len(matrix))
    else:
        basis = _orthonormal(start)
        block = basis
        for _ in range(steps):
            block = (block @ matrix) @ matrix.T
            block = _orthonormal(block - (block @ basis.T) @ basis)
            basis = torch.cat([basis, block])
        basis = _orthonormal(basis)
    small = (basis @ matrix).double()
    squares, vectors = torch.linalg.eigh(small @ small.T)
    found: torch.Tensor = vectors.T[squares > ZERO * squares[-1]].float() @ basis
    return found


def _orthonormal(rows: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.linalg.qr(rows.T)[0].T.contiguous()
    return found
