"""Evidence and its verdict, as people read them."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from bot.cli.forecasting import meaning
from bot.cli.output import message, print_table
from judging.arms import ARMS, figure
from judging.evidence import Evidence, Slice
from judging.policy import VerdictPolicy

if TYPE_CHECKING:
    from judging.statistics import Estimate, Flips
    from judging.verdict import Finding

PAIRS = {
    "gain": "port - new base alone",
    "change": "port - old base + patch",
    "origin": "old base + patch - old base alone",
    "needed": "old base + patch - new base alone",
    "cost": "gain of the patch on the new base - on the old one",
    "against refit": "port - refit",
}
LISTED = 20  # flips


def print_evidence(evidence: Evidence, policy: VerdictPolicy) -> None:
    """Tables of arms and differences, then what else was found, then the verdict."""
    from judging.verdict import decide, weigh_all  # SciPy takes a second to import

    weighed = weigh_all(evidence, policy) if evidence.own else None
    if weighed is not None:
        found = [weighed.own, *weighed.guard]
        _print_table(found, "arm", ARMS, lambda each: each.arms)
        print()
        _print_table(found, "difference", PAIRS, lambda each: each.differences)
        message(
            "The truth lies between low and high, as surely as the policy asks. Of bits per byte, "
            "less is better; a difference above 0 is for the better always."
        )
        if weighed.own.flips is not None:
            _print_flips(weighed.own.flips)
        if evidence.slice is not None:
            _print_slice(evidence.slice, weighed.scale)
    if (probe := evidence.probe) is not None:
        print(
            f"merged model: its logits are {probe.difference:.2g} of their spread away from base + "
            f"adapter (at most {probe.bound:g})"
        )
    if evidence.forecast is not None:
        print(f"forecast: {meaning(evidence.forecast['total'])}")
    verdict = decide(evidence, weighed, policy)
    print(f"verdict: {verdict.action}. {verdict.reason}")


def _print_table(
    found: "list[Finding]",
    heading: str,
    names: dict[str, str],
    of: "Callable[[Finding], dict[str, Estimate]]",
) -> None:
    rows = []
    for each in found:
        unit = "% right" if each.metric == "accuracy" else each.metric
        for name, text in names.items():
            if (found_of := of(each).get(name)) is not None:
                numbers = (found_of.mean, found_of.low, found_of.high)
                shown = (figure(number, each.metric) for number in numbers)
                rows.append((each.task, f"{each.items}/{each.total}", text, *shown, unit))
    print_table(("task", "items", heading, "mean", "low", "high", "unit"), rows)


def _print_flips(flips: "Flips") -> None:
    listed = ", ".join(map(str, flips.lost[:LISTED])) or "none"
    more = ", ..." if len(flips.lost) > LISTED else ""
    print(
        f"flips: {len(flips.lost)} lost and {len(flips.won)} won against the old base with the "
        f"patch (McNemar p = {flips.p:.3g}); lost items: {listed}{more}"
    )


def _print_slice(found: Slice, scale: float) -> None:
    best = (
        "none has a surely smaller loss than 1" if scale == 1 else f"{scale:g} has the least loss"
    )
    tried = ", ".join(f"{each:g}" for each in found.scales)
    print(
        f"scale: of {tried} times the patch, {best} ({len(found.losses)} items; at 0 the loss "
        f"{'falls' if found.slope > 0 else 'does not fall'}: <-grad, dW> = {found.slope:+.3g})"
    )
