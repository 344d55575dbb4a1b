"""What the weights alone say about a port: how far the base moved, and whether it moved there.

Of one small model, drift over delta ranked the bases by how much of a patch was lost on them; no
other figure told anything (benchmarks/portability).
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from porting.base.layout import TensorInfo
from porting.counterparts import counterparts
from porting.mapping import Touch
from porting.merge import Port, deltas_of
from porting.source import Folder
from porting.weights.compare import Progress
from porting.weights.measure import Piece, Sums, measure


@dataclass(frozen=True)
class Figures:
    """Of one tensor, or of all together; None where it can't be known, or nothing is divided by.

    Only what the patch touches counts: of a fused tensor, its rows. Rows and columns are those of
    the tensor as it is stored, so they change places where a model keeps `(in, out)`.

    Attributes:
        delta: Frobenius norm of dW, what the patch adds; over all tensors, the root of the sum.
        drift: of W_new - W_old.
        ratio: drift / delta, where both are known.
        cosine: of dW and the drift as vectors: whether the base moved the patch's way.
        row_share: how much of the drift's squared norm lies in the row space of dW: in the inputs
            that the patch reads. Only for dW that is a product of two factors; over all tensors,
            weighted by the drift's squared norm.
        row_chance: what is expected of `row_share` of a random drift: rank / columns.
        column_share: the same in the column space of dW: in the outputs that the patch writes.
        column_chance: rank / rows.
        lost: of the entries where dW is not 0, the share that rounding to the base's dtype leaves
            at W_new.
        intruders: see `porting.weights.intruders`; None for a tensor that is not looked at.
    """

    delta: float
    drift: float | None
    ratio: float | None
    cosine: float | None
    row_share: float | None
    row_chance: float | None
    column_share: float | None
    column_chance: float | None
    lost: float | None
    intruders: int | None


@dataclass(frozen=True)
class Forecast:
    """`modules` by the names of the tensors that the patch touches."""

    total: Figures
    modules: dict[str, Figures]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def forecast(port: Port, base: Path, progress: Progress = lambda *_: None) -> Forecast:
    """The figures of a port that would be merged. No model runs; one matrix at a time is held.

    The drift is that from `port.old_base`, where it is given and has the tensor. Of both bases
    only the files with touched tensors must be there.

    Raises:
        Refused: the patch does not fit the old base, or a value is not finite.
    """
    new, touched = Folder(base), port.plan.touched
    old = Folder(port.old_base) if port.old_base else None
    places = counterparts(touched, old) if old else (None,) * len(touched)
    deltas = deltas_of(port, new)
    pieces = _pieces(touched, places)
    sums: dict[str, Sums] = {}
    done, total = 0, sum(piece.size for piece in pieces)
    for piece in pieces:
        name = piece.tensor.name
        sums[name] = sums.get(name, Sums()).added(measure(piece, new, old, deltas))
        done += piece.size
        progress("forecasting, bytes", done, total)
    modules = {name: _figures(found) for name, found in sums.items()}
    return Forecast(_figures(Sums().added(*sums.values())), modules)


def _pieces(touched: tuple[Touch, ...], places: tuple[TensorInfo | None, ...]) -> list[Piece]:
    """Touches of the same values are summed: the largest comes first and gives the range."""
    found: list[Piece] = []
    both = sorted(
        zip(touched, places, strict=True),
        key=lambda pair: (pair[0].tensor.name, pair[0].tensor.start, -pair[0].tensor.end),
    )
    for touch, old in both:
        name, start = touch.tensor.name, touch.tensor.start
        if not found or found[-1].tensor.name != name or found[-1].tensor.end <= start:
            found.append(Piece(touch.tensor, old))
        found[-1].touches.append(touch)
    return found


def _figures(found: Sums) -> Figures:
    known = found.compared > 0
    return Figures(
        delta=math.sqrt(found.delta),
        drift=math.sqrt(found.drift) if known else None,
        ratio=_over(math.sqrt(found.drift), math.sqrt(found.compared_delta)) if known else None,
        cosine=_over(found.dot, math.sqrt(found.compared_delta) * math.sqrt(found.drift)),
        row_share=_over(found.row_share, found.shared),
        row_chance=_over(found.row_chance, found.shared),
        column_share=_over(found.column_share, found.shared),
        column_chance=_over(found.column_chance, found.shared),
        lost=_over(found.lost, found.changed),
        intruders=found.intruders if found.examined else None,
    )


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole else None
