"""The verdict: a pure function of what was measured. Intervals, not points; the same items, paired.

Two questions. Is the ported patch worth having, that is, better than the new base alone? And did
the patch survive, that is, is it not clearly worse than it was on the old base?
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel
from scipy.stats import binomtest, bootstrap

from bot.arms import ARMS

MARGIN = 0.10  # a loss against old base + patch up to this is borne: the base has moved, after all
FEWEST = 20  # items; below, a bootstrap interval is narrower than what is known


class Arm(BaseModel):
    """Share of items answered right, with Wilson's 95 % interval."""

    accuracy: float
    low: float
    high: float


class Difference(BaseModel):
    """Mean paired difference of two arms, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


class Evidence(BaseModel):
    task: str
    items: int
    digest: str
    arms: dict[str, Arm]
    gain: Difference  # port - new
    change: Difference  # port - old
    correct: dict[str, str]  # one digit per item, so that a later policy can judge again


class Verdict(BaseModel):
    action: Literal["publish", "ask", "reject"]
    reason: str


def weigh(task: str, digest: str, correct: dict[str, Sequence[int]]) -> Evidence:
    """Evidence from 0/1 results per item of the arms `old`, `new` and `port`, equally long."""
    results = {arm: np.asarray(correct[arm], dtype=float) for arm in ARMS}
    return Evidence(
        task=task,
        items=len(results["port"]),
        digest=digest,
        arms={arm: _arm(result) for arm, result in results.items()},
        gain=_difference(results["port"] - results["new"]),
        change=_difference(results["port"] - results["old"]),
        correct={arm: "".join(str(int(item)) for item in correct[arm]) for arm in ARMS},
    )


def judge(evidence: Evidence) -> Verdict:
    gain, change = evidence.gain, evidence.change
    gained = f"{_points(gain)} against the new base alone"
    kept = f"{_points(change)} against the old base with the patch"
    if evidence.items < FEWEST:
        return Verdict(
            action="ask",
            reason=f"Only {evidence.items} items, fewer than {FEWEST}: {gained}, and {kept}.",
        )
    if gain.high < 0:
        return Verdict(action="reject", reason=f"The patch harms the new base: {gained}.")
    if change.high < -MARGIN:
        return Verdict(action="reject", reason=f"The patch did not survive the move: {kept}.")
    if gain.low <= 0:
        return Verdict(action="ask", reason=f"No sure gain on {evidence.items} items: {gained}.")
    if change.low <= -MARGIN:
        return Verdict(action="ask", reason=f"It may have lost too much: {kept}; {gained}.")
    return Verdict(action="publish", reason=f"The patch survived: {gained}, and {kept}.")


def unjudged() -> Verdict:
    """The verdict on a patch that names no evaluation."""
    return Verdict(
        action="ask",
        reason="The patch names no evaluation (eval/portllm-eval.json), so nothing was measured.",
    )


def _arm(result: "np.ndarray[Any, np.dtype[np.float64]]") -> Arm:
    interval = binomtest(int(result.sum()), result.size).proportion_ci(method="wilson")
    return Arm(accuracy=float(result.mean()), low=float(interval.low), high=float(interval.high))


def _difference(paired: "np.ndarray[Any, np.dtype[np.float64]]") -> Difference:
    if paired.size < 2:
        return Difference(mean=float(paired.mean()), low=-1.0, high=1.0)
    drawn = bootstrap(
        (paired,),
        np.mean,
        method="percentile",
        rng=np.random.default_rng(0),
        batch=100,  # not all resamples in memory at once
    )
    low, high = drawn.confidence_interval
    return Difference(mean=float(paired.mean()), low=float(low), high=float(high))


def _points(difference: Difference) -> str:
    return (
        f"{100 * difference.mean:+.1f} points "
        f"(95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
    )
