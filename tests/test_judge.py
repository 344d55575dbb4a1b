"""The verdict is a pure function of the evidence, and the evidence of the items' results."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from bot.judge import FEWEST, MARGIN, Difference, Evidence, Verdict, judge, unjudged, weigh

RANK = {"reject": 0, "ask": 1, "publish": 2}
BITS = st.integers(0, 1)
FEW = settings(max_examples=15, deadline=None)  # each weighs for some 20 ms


@st.composite
def results(draw: st.DrawFn, fewest: int = 1, most: int = 200) -> dict[str, list[int]]:
    size = draw(st.integers(fewest, most))
    lists = st.lists(BITS, min_size=size, max_size=size)
    return {arm: draw(lists) for arm in ("old", "new", "port")}


def verdict_of(correct: dict[str, list[int]]) -> Verdict:
    return judge(weigh("task", "digest", correct))


@given(right=st.integers(60, 200), wrong=st.integers(0, 40))
@FEW
def test_a_port_as_good_as_the_old_and_far_better_than_the_new_is_published(
    right: int, wrong: int
) -> None:
    patched = [1] * right + [0] * wrong
    verdict = verdict_of({"old": patched, "port": patched, "new": [0] * len(patched)})
    assert verdict.action == "publish"


@given(lost=st.integers(20, 100), same=st.integers(0, 100))
@FEW
def test_a_port_worse_than_the_new_base_is_rejected(lost: int, same: int) -> None:
    port, new = [0] * lost + [1] * same, [1] * (lost + same)
    evidence = weigh("task", "digest", {"old": port, "port": port, "new": new})
    assert evidence.gain.high < 0
    assert judge(evidence).action == "reject"


@given(lost=st.integers(60, 100))
@FEW
def test_a_patch_that_did_not_survive_is_rejected_however_bad_the_new_base(lost: int) -> None:
    port = [0] * lost + [1] * 40
    correct = {"old": [1] * len(port), "port": port, "new": [0] * len(port)}
    verdict = verdict_of(correct)
    assert verdict.action == "reject" and "did not survive" in verdict.reason


@given(correct=results(most=FEWEST - 1))
@FEW
def test_few_items_prove_nothing(correct: dict[str, list[int]]) -> None:
    verdict = verdict_of(correct)
    assert verdict.action == "ask" and f"{len(correct['old'])} items" in verdict.reason


@given(correct=results())
@FEW
def test_intervals_contain_what_was_measured(correct: dict[str, list[int]]) -> None:
    evidence = weigh("task", "digest", correct)
    assert evidence.items == len(correct["port"])
    for name, arm in evidence.arms.items():
        assert math.isclose(arm.accuracy, sum(correct[name]) / evidence.items)
        assert 0 <= arm.low <= arm.accuracy <= arm.high <= 1
        assert evidence.correct[name] == "".join(map(str, correct[name]))
    for difference, other in ((evidence.gain, "new"), (evidence.change, "old")):
        measured = sum(correct["port"]) - sum(correct[other])
        assert math.isclose(difference.mean, measured / evidence.items, abs_tol=1e-12)
        assert -1 <= difference.low <= difference.mean <= difference.high <= 1


@given(correct=results(fewest=100, most=400))
@FEW
def test_bootstrap_agrees_with_the_normal_approximation(correct: dict[str, list[int]]) -> None:
    paired = [a - b for a, b in zip(correct["port"], correct["new"], strict=True)]
    size, mean = len(paired), sum(paired) / len(paired)
    half = 1.96 * math.sqrt(sum((x - mean) ** 2 for x in paired) / size) / math.sqrt(size)
    gain = weigh("task", "digest", correct).gain
    # The bootstrap's ends lie on a grid of 1/size, and are themselves drawn.
    tolerance = 0.1 * half + 2 / size
    assert abs(gain.low - (mean - half)) < tolerance
    assert abs(gain.high - (mean + half)) < tolerance


def test_bootstrap_agrees_with_the_exact_distribution() -> None:
    """Six items, so that every one of the 6^6 resamples can be looked at."""
    paired = [1, 1, 1, 0, 0, -1]
    means = sorted(sum(drawn) / 6 for drawn in itertools.product(paired, repeat=6))
    low, high = means[int(0.025 * len(means))], means[int(0.975 * len(means))]
    port, new = [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]
    gain = weigh("task", "digest", {"old": port, "port": port, "new": new}).gain
    assert abs(gain.low - low) < 1e-9 and abs(gain.high - high) < 1e-9


@given(correct=results(fewest=FEWEST))
@FEW
def test_the_same_results_give_the_same_verdict(correct: dict[str, list[int]]) -> None:
    first, second = (weigh("task", "digest", correct) for _ in range(2))
    assert first == second and judge(first) == judge(second)
    assert judge(Evidence.model_validate(first.model_dump())) == judge(first)


INTERVAL = st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(sorted)


def evidence_of(gain: list[float], change: list[float], items: int = 100) -> Evidence:
    gained, changed = (Difference(low=x[0], mean=x[1], high=x[2]) for x in (gain, change))
    return Evidence(
        task="t", items=items, digest="", arms={}, gain=gained, change=changed, correct={}
    )


@given(gain=INTERVAL, change=INTERVAL, more=st.floats(0, 1), on_gain=st.booleans())
def test_better_evidence_never_makes_a_worse_verdict(
    gain: list[float], change: list[float], more: float, on_gain: bool
) -> None:
    before = judge(evidence_of(gain, change)).action
    better = [x + more for x in (gain if on_gain else change)]
    after = judge(evidence_of(better, change) if on_gain else evidence_of(gain, better)).action
    assert RANK[after] >= RANK[before]


@given(gain=INTERVAL, change=INTERVAL)
def test_only_what_is_sure_is_published_and_only_sure_harm_rejected(
    gain: list[float], change: list[float]
) -> None:
    verdict = judge(evidence_of(gain, change))
    assert (verdict.action == "publish") == (gain[0] > 0 and change[0] > -MARGIN)
    assert (verdict.action == "reject") == (gain[2] < 0 or change[2] < -MARGIN)


@given(gain=INTERVAL, change=INTERVAL)
def test_the_sentence_has_the_numbers_it_rests_on(gain: list[float], change: list[float]) -> None:
    reason = judge(evidence_of(gain, change)).reason
    stated = [
        f"{100 * mean:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
        for low, mean, high in (gain, change)
    ]
    assert any(numbers in reason for numbers in stated)
    assert reason.endswith(".")


def test_without_an_evaluation_somebody_is_asked() -> None:
    assert unjudged().action == "ask" and "eval/portllm-eval.json" in unjudged().reason
