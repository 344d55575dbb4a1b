"""The verdict: a pure function of the evidence and the policy. Intervals, not points.

What has to be *proved* for `publish`: the port is better than the new base alone, by more than the
policy's minimum, and it has not lost the margin or more against the patch on its old base. A sure
failure of either is a `reject`, anything between is not clear.

The guard set is an alarm: it takes proof of harm to set it off. Harm is what the patch costs the
new base beyond what it cost the old one, and what its users lose against what they have.
"""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from judging.arms import figure
from judging.evidence import Evidence, Measured
from judging.policy import Action, VerdictPolicy
from judging.scale import better, gains
from judging.statistics import Estimate, Flips, flips, mean, paired, share

FEWEST = 20  # items; below, no interval is worth its name


class Finding(BaseModel):
    """One task, weighed. Differences are such that more is better, whatever the metric.

    `change` is port - old and `gain` port - new; `origin` is old - before, what the patch gave the
    base it was trained on; `needed` is old - new; `cost` is gain - origin, `against refit`
    port - refit. `flips` compares port and old.
    """

    task: str
    metric: str
    items: int
    total: int
    arms: dict[str, Estimate]
    differences: dict[str, Estimate]
    flips: Flips | None


class Findings(BaseModel):
    """All of the evidence, weighed. `scales` has what the loss says of other scales than 1.

    `scale` is the one that it asks for: 1, unless another one is better by more than noise.
    """

    own: Finding
    guard: list[Finding]
    scales: dict[float, Estimate]
    scale: float


class Verdict(BaseModel):
    action: Action
    reason: str


DIFFERENCES = {
    "gain": ("port", "new"),
    "change": ("port", "old"),
    "origin": ("old", "before"),
    "needed": ("old", "new"),
    "against refit": ("port", "refit"),
}


def weigh(measured: Measured, alpha: float) -> Finding:
    """Intervals of confidence 1 - `alpha` on one task's results."""
    count, is_share = len(measured.items), measured.metric == "accuracy"
    results = {arm: values[:count] for arm, values in measured.results.items()}
    signed = {arm: _signed(values, is_share) for arm, values in results.items()}
    differences = {
        name: paired(signed[one], signed[other], alpha, reach=1 if is_share else None)
        for name, (one, other) in DIFFERENCES.items()
        if one in signed and other in signed
    }
    on_new = [a - b for a, b in zip(signed["port"], signed["new"], strict=True)]
    on_old = [a - b for a, b in zip(signed["old"], signed["before"], strict=True)]
    differences["cost"] = paired(on_new, on_old, alpha, reach=2 if is_share else None)
    return Finding(
        task=measured.task,
        metric=measured.metric,
        items=count,
        total=measured.total,
        arms={arm: (share if is_share else mean)(r, alpha) for arm, r in results.items()},
        differences=differences,
        flips=flips(results["port"], results["old"], measured.items) if is_share else None,
    )


def _signed(values: Sequence[float], is_share: bool) -> list[float]:
    return list(values) if is_share else [-value for value in values]


def weigh_all(evidence: Evidence, policy: VerdictPolicy) -> Findings:
    """`evidence`, which has a task, under `policy`.

    Bonferroni over the looks, which were planned before the first, and over the guard's tasks.
    """
    assert evidence.own is not None
    looked = evidence.slice
    return Findings(
        own=weigh(evidence.own, policy.alpha / evidence.looks),
        guard=[weigh(task, policy.alpha / len(evidence.guard)) for task in evidence.guard],
        scales=gains(looked, policy.alpha) if looked else {},
        scale=better(looked, policy.alpha) if looked else 1.0,
    )


def judge(evidence: Evidence, policy: VerdictPolicy) -> Verdict:
    """What is done with the port, and one sentence why."""
    return decide(evidence, weigh_all(evidence, policy) if evidence.own else None, policy)


def decide(evidence: Evidence, weighed: Findings | None, policy: VerdictPolicy) -> Verdict:
    """`judge`, for who has weighed the evidence already; None where it has no task."""
    if fault := _fault(evidence):
        return Verdict(action="reject", reason=fault)
    if weighed is None:
        return unjudged(policy.evaluate)
    verdict = _on_its_task(weighed.own, policy)
    for action, sentence in _alarms(weighed.guard, policy):
        if action == "reject" or verdict.action == "publish":
            gained = _said(weighed.own.differences["gain"], weighed.own.metric)
            return Verdict(action=action, reason=f"{sentence}; on its task: {gained}.")
    return verdict


def is_settled(evidence: Evidence, policy: VerdictPolicy) -> bool:
    """Whether more items would be a waste: a `publish` or `reject` that is not for want of them."""
    assert evidence.own is not None
    strict = policy.model_copy(update={"unclear": "ask", "not_needed": "ask"})
    weighed = weigh_all(evidence, strict)
    fatal = any(action == "reject" for action, _ in _alarms(weighed.guard, strict))
    return fatal or _on_its_task(weighed.own, strict).action != "ask"


def unjudged(wanted: bool = True) -> Verdict:
    """The verdict on a patch that names no evaluation, or is not wanted to be measured."""
    lacks = "The patch names no evaluation (eval/portllm-eval.json)"
    why = lacks if wanted else "The subscription asks for no evaluation"
    return Verdict(action="ask", reason=f"{why}, so nothing was measured.")


def _fault(evidence: Evidence) -> str | None:
    if evidence.faults:
        return f"The artefact is not as it should be: {evidence.faults[0]}."
    probe = evidence.probe
    if probe is not None and not probe.difference <= probe.bound:
        return (
            f"The merged model is not what base and adapter are: their logits differ by "
            f"{probe.difference:.2g}, more than {probe.bound:.2g}."
        )
    return None


def _on_its_task(found: Finding, policy: VerdictPolicy) -> Verdict:
    gain, change = found.differences["gain"], found.differences["change"]
    gained = f"{_said(gain, found.metric)} against the new base alone"
    kept = f"{_said(change, found.metric)} against the old base with the patch"
    action: Action = "reject"
    if found.items < FEWEST:
        action = "ask"
        reason = f"Only {found.items} items, fewer than {FEWEST}: {gained}, and {kept}"
    elif gain.high < 0:
        reason = f"The patch harms the new base: {gained}"
    elif found.differences["needed"].high <= 0 and gain.low <= policy.minimum_gain:
        action = policy.not_needed
        needed = _said(found.differences["needed"], found.metric, -1)
        reason = (
            "No longer needed: the new base alone does as well as the patch did on the old one, "
            f"which is {needed} below it; the port has {gained}"
        )
    elif change.high < -policy.margin:
        reason = f"The patch did not survive the move: {kept}"
    elif gain.high < policy.minimum_gain:
        reason = f"It gains too little: {gained}"
    elif gain.low <= policy.minimum_gain:
        action = policy.unclear
        reason = f"No sure gain on {found.items} items: {gained}"
    elif change.low <= -policy.margin:
        action = policy.unclear
        reason = f"It may have lost too much on {found.items} items: {kept}; {gained}"
    else:
        action = "publish"
        reason = f"The patch survived: {gained}, and {kept}"
    return Verdict(action=action, reason=f"{reason}.")


def _alarms(guards: list[Finding], policy: VerdictPolicy) -> Iterator[tuple[Action, str]]:
    """What the guard set says, the worst first."""
    harms: dict[str, tuple[Action, str, int]] = {
        "cost": ("reject", "The upgrade did not survive the patch: beyond what the patch cost the "
                 "old base, it costs the new one", -1),
        "change": ("ask", "General ability was lost with the new base: against the old one with "
                   "the patch", 1),
    }  # fmt: skip
    for name, (action, what, sign) in harms.items():
        for guard in guards:
            margin = policy.guard_margin if guard.metric == "accuracy" else policy.guard_bits
            found = guard.differences[name]
            if found.high < -margin:
                said = _said(found, guard.metric, sign)
                yield action, f"{what} {said} on the guard task {guard.task}"


def _said(found: Estimate, metric: str, sign: int = 1) -> str:
    """The difference; with `sign` -1, how large the loss is, for a sentence that calls it one."""
    unit = "points" if metric == "accuracy" else metric
    ends = sorted((sign * found.low, sign * found.high))
    mean, low, high = (
        figure(value + 0.0, metric, "+" if sign > 0 else "")  # + 0.0: a loss of 0.0, not of -0.0
        for value in (sign * found.mean, *ends)
    )
    return f"{mean} {unit} (interval {low} to {high})"
