"""Which scale does the loss ask for? Pure: reads a `Slice`."""

from judging.evidence import Slice
from judging.statistics import Estimate, paired


def gains(found: Slice, alpha: float) -> dict[float, Estimate]:
    """By scale, how much less the loss is than at 1, in nats an item.

    The intervals hold together with confidence 1 - `alpha` (Bonferroni).
    """
    whole = found.scales.index(1.0)
    at_one = [row[whole] for row in found.losses]
    others = {scale: column for column, scale in enumerate(found.scales) if column != whole}
    return {
        scale: paired(at_one, [row[column] for row in found.losses], alpha / len(others))
        for scale, column in others.items()
    }


def better(found: Slice, alpha: float) -> float:
    """The scale with the least loss, if it beats 1 by more than noise; else 1."""
    best, gain = max(gains(found, alpha).items(), key=lambda row: row[1].mean)
    return best if gain.low > 0 else 1.0
