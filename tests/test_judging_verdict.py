"""The verdict: what it rests on, what moves it, and how often it is wrong."""

import itertools
import math
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from judging import statistics, verdict
from judging.evidence import Evidence, Measured, Probe, Slice
from judging.policy import VerdictPolicy, parse_policy
from judging.statistics import Estimate
from judging.verdict import FEWEST, is_settled, judge, unjudged, weigh, weigh_all
from porting.errors import UsageError

RANK = {"reject": 0, "ask": 1, "publish": 2}
ACTIONS = st.sampled_from(list(RANK))
DEFAULT = VerdictPolicy()
FEW = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 99)
        yield


def measured(results: dict[str, list[float]], **changes: Any) -> Measured:
    count = len(results["port"])
    known: dict[str, Any] = {
        "task": "tickets",
        "digest": "",
        "total": count,
        "metric": "accuracy",
        "items": list(range(1, count + 1)),
        "results": results if "before" in results else results | {"before": [0] * count},
    }
    return Measured(**known | changes)


def rights(count: int, **right: int) -> dict[str, list[float]]:
    """Arms that have this many items of `count` right, the first ones."""
    return {arm: [1.0] * each + [0.0] * (count - each) for arm, each in right.items()}


GOOD = rights(200, old=180, new=60, port=180)


def evidence(results: dict[str, list[float]], **changes: Any) -> Evidence:
    return Evidence(own=measured(results), **changes)


def guard(metric: str = "accuracy", **arms: list[float]) -> Measured:
    return measured(arms, task="guard-x", metric=metric)


@st.composite
def some_results(draw: st.DrawFn, fewest: int = FEWEST, most: int = 120) -> dict[str, list[float]]:
    """Arms of any quality, that agree on any share of the items."""
    size, seed = draw(st.integers(fewest, most)), draw(st.integers(0, 2**32))
    rng, shared = np.random.default_rng(seed), draw(st.floats(0, 1))
    luck = rng.random(size)
    arms = {}
    for arm in ("before", "old", "new", "port"):
        own = np.where(rng.random(size) < shared, luck, rng.random(size))
        arms[arm] = [float(right) for right in own < draw(st.floats(0, 1))]
    return arms


POLICIES = st.builds(
    VerdictPolicy,
    margin=st.floats(0, 0.5),
    minimum_gain=st.floats(0, 0.3),
    alpha=st.floats(0.001, 0.5),
    unclear=ACTIONS,
    not_needed=ACTIONS,
)


# What moves it


@given(some_results(), POLICIES, st.randoms(use_true_random=False))
@FEW
def test_a_better_port_never_has_a_worse_verdict(
    results: dict[str, list[float]], policy: VerdictPolicy, chance: random.Random
) -> None:
    assume(RANK[policy.not_needed] <= RANK[policy.unclear])
    wrong = [number for number, right in enumerate(results["port"]) if not right]
    before = RANK[judge(evidence(results), policy).action]
    while wrong:
        for number in chance.sample(wrong, min(8, len(wrong))):
            wrong.remove(number)
            results["port"][number] = 1.0
        after = RANK[judge(evidence(results), policy).action]
        assert after >= before
        before = after


@given(some_results(), POLICIES, st.floats(0, 1))
@FEW
def test_a_stricter_margin_is_never_more_lenient(
    results: dict[str, list[float]], policy: VerdictPolicy, share: float
) -> None:
    stored = evidence(results, guard=[guard(**results)])
    strict = policy.model_copy(update={"margin": policy.margin * share})
    assert RANK[judge(stored, strict).action] <= RANK[judge(stored, policy).action]
    strict = policy.model_copy(update={"guard_margin": policy.guard_margin * share})
    assert RANK[judge(stored, strict).action] <= RANK[judge(stored, policy).action]


@given(some_results(), POLICIES, st.integers(1, 4), st.lists(st.floats(0, 3), min_size=4))
@FEW
def test_evidence_that_was_stored_is_judged_alike(
    results: dict[str, list[float]], policy: VerdictPolicy, looks: int, bits: list[float]
) -> None:
    texts = {arm: [each + n / 7 for n, each in enumerate(bits)] for arm in results}
    found = evidence(results, looks=looks, guard=[guard("bits per byte", **texts)])
    for stored in (found.model_dump_json(), found.model_dump(), found.model_dump(mode="json")):
        read = Evidence.model_validate_json if isinstance(stored, str) else Evidence.model_validate
        assert (again := read(stored)) == found
        assert judge(again, policy) == judge(found, policy)


def test_results_are_one_line_and_nan_can_be_stored_where_it_may_be() -> None:
    found = evidence(
        GOOD,
        probe=Probe(difference=math.nan, bound=0.1),
        slice=Slice(scales=[0, 1], losses=[[0.5, math.inf]], slope=math.nan),
    )
    assert found.model_dump()["own"]["results"]["new"] == " ".join(["1"] * 60 + ["0"] * 140)
    again = Evidence.model_validate_json(found.model_dump_json())
    assert again.probe is not None and math.isnan(again.probe.difference)
    assert again.slice is not None and again.slice.losses == [[0.5, math.inf]]
    assert judge(again, DEFAULT).action == "reject"


@pytest.mark.parametrize(
    "changes",
    [
        {"results": GOOD},  # without `before`
        {"results": {"before": [0.0] * 199} | GOOD},
        {"results": {"before": [0.5] * 200} | GOOD},
        {"results": {"before": [math.nan] * 200} | GOOD, "metric": "bits per byte"},
        {"items": []},
    ],
)
def test_evidence_that_is_not_whole_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Measured.model_validate(measured(GOOD).model_dump() | changes)


def test_only_the_items_of_this_look_are_weighed() -> None:
    longer = {arm: [*GOOD[arm], *[0.0] * 50] for arm in GOOD} | {"before": [0.0] * 200}
    assert weigh(measured(longer, items=list(range(1, 201))), 0.05) == weigh(
        measured(GOOD), 0.05
    ).model_copy(update={"total": 250})


# What it rests on: every branch, with the numbers that decided

FROM_THE_OLD = rights(200, before=40, old=120, new=40, port=120)
CASES: list[tuple[dict[str, list[float]], dict[str, Any], str, str, list[str]]] = [
    (GOOD, {}, "publish", "The patch survived", ["+60.0 points", "+0.0 points"]),
    (rights(19, old=19, new=0, port=19), {}, "ask", "Only 19 items", ["+100.0 points"]),
    (rights(200, old=150, new=150, port=100), {}, "reject", "harms the new base", ["-25.0"]),
    (rights(200, old=90, new=150, port=152), {}, "reject", "No longer needed",
     ["which is 30.0", "+1.0"]),
    (rights(200, old=180, new=60, port=140), {}, "reject", "did not survive the", ["-20.0"]),
    (rights(200, old=80, new=60, port=80), {"minimum_gain": 0.3}, "reject", "gains too little",
     ["+10.0"]),
    (rights(200, old=62, new=60, port=62), {}, "ask", "No sure gain on 200 items", ["+1.0"]),
    (rights(200, old=180, new=60, port=176), {"margin": 0.02}, "ask", "may have lost too much",
     ["-2.0", "+58.0"]),
]  # fmt: skip


@pytest.mark.parametrize(("results", "policy", "action", "words", "numbers"), CASES)
def test_the_sentence_has_the_numbers_it_rests_on(
    results: dict[str, list[float]],
    policy: dict[str, Any],
    action: str,
    words: str,
    numbers: list[str],
) -> None:
    said = judge(evidence(results), VerdictPolicy(**policy))
    assert said.action == action and words in said.reason
    for number in numbers:
        assert re.search(rf"{re.escape(number)}\S* (points )?\(interval [+-]?\d", said.reason)
    assert said.reason.endswith(".") and said.reason.count("..") == 0


@pytest.mark.parametrize("action", list(RANK))
def test_the_policy_says_what_is_done_where_nothing_is_sure(action: str) -> None:
    policy = VerdictPolicy.model_validate({"unclear": action, "not_needed": action})
    for results, changes, _, words, _ in CASES:
        if "sure" in words or "may have" in words or "needed" in words:
            changed = policy.model_copy(update=changes)
            assert judge(evidence(results), changed).action == action
            assert not is_settled(evidence(results), changed)


def test_without_an_evaluation_somebody_is_asked() -> None:
    assert judge(Evidence(), DEFAULT) == unjudged()
    assert unjudged().action == "ask" and "eval/portllm-eval.json" in unjudged().reason


@pytest.mark.parametrize("difference", [0.11, math.inf, math.nan])
def test_a_merged_model_that_is_another_one_is_rejected(difference: float) -> None:
    found = evidence(GOOD, probe=Probe(difference=difference, bound=0.1))
    said = judge(found, DEFAULT)
    assert said.action == "reject" and f"{difference:.2g}, more than 0.1" in said.reason
    good = found.model_copy(update={"probe": Probe(difference=0.1, bound=0.1)})
    assert judge(good, DEFAULT).action == "publish"
    faulty = good.model_copy(update={"faults": ["its chat template is not the new base's"]})
    assert judge(faulty, DEFAULT).reason == (
        "The artefact is not as it should be: its chat template is not the new base's."
    )


def test_a_plain_text_task_is_judged_in_bits_per_byte() -> None:
    texts = {"before": 1.5, "old": 1.0, "new": 1.4, "port": 1.01}
    spread = {arm: [bits + n / 1000 for n in range(40)] for arm, bits in texts.items()}
    found = Evidence(own=measured(spread, metric="bits per byte"))
    said = judge(found, DEFAULT)
    assert said.action == "publish"
    assert "+0.390 bits per byte" in said.reason and "-0.010 bits per byte" in said.reason
    assert "points" not in said.reason
    assert judge(found, VerdictPolicy(margin=0.005)).action != "publish"


COSTLY = guard(**rights(200, before=150, old=150, new=190, port=120))
POORER = guard(**rights(200, before=190, old=190, new=120, port=120))
COSTLY_TEXT = guard("bits per byte", before=[1.0] * 40, old=[1.0] * 40, new=[0.9] * 40,
                    port=[1.2] * 40)  # fmt: skip
FINE = guard(**rights(200, before=150, old=140, new=150, port=138))


@pytest.mark.parametrize(
    ("guards", "action", "numbers"),
    [
        ([FINE], "publish", ""),
        ([FINE, POORER], "ask", "-35.0 points (interval -4"),
        ([POORER, COSTLY], "reject", "costs the new one 35.0 points (interval 2"),
        ([COSTLY_TEXT], "reject", "costs the new one 0.300 bits per byte (interval 0."),
    ],
)
def test_the_guard_set_is_an_alarm(guards: list[Measured], action: str, numbers: str) -> None:
    said = judge(evidence(GOOD, guard=guards), DEFAULT)
    assert said.action == action and numbers in said.reason
    if action != "publish":
        assert "guard-x; on its task: +60.0 points" in said.reason
    # More items of the patch's own can't put an alarm out.
    assert is_settled(evidence(GOOD, guard=guards), DEFAULT)
    # Nor does a policy that publishes what is not clear.
    weak = evidence(rights(200, old=62, new=60, port=62), guard=guards)
    assert judge(weak, VerdictPolicy(unclear="publish")).action == action


@given(some_results(most=60), st.data())
@FEW
def test_a_better_answer_never_sets_off_an_alarm(
    results: dict[str, list[float]], data: st.DataObject
) -> None:
    lenient = VerdictPolicy(guard_margin=data.draw(st.floats(0, 0.3)))
    wrong = [number for number, right in enumerate(results["port"]) if not right]
    assume(wrong)
    better = results | {"port": list(results["port"])}
    better["port"][data.draw(st.sampled_from(wrong))] = 1.0
    before, after = (
        judge(evidence(GOOD, guard=[guard(**arms)]), lenient) for arms in (results, better)
    )
    assert RANK[after.action] >= RANK[before.action]


def test_differences_are_named_and_signed() -> None:
    arms = rights(100, before=10, old=40, new=20, port=35, refit=38)
    found = weigh(measured(arms), 0.05)
    wanted = {"gain": 15, "change": -5, "origin": 30, "needed": 20, "cost": -15,
              "against refit": -3}  # fmt: skip
    got = {name: round(100 * each.mean) for name, each in found.differences.items()}
    assert got == wanted
    assert found.flips is not None and found.flips.lost == [36, 37, 38, 39, 40]
    text = weigh(measured(arms, metric="bits per byte"), 0.05)
    assert text.flips is None and round(100 * text.differences["gain"].mean) == -15


def test_the_scale_that_the_loss_asks_for_beats_one_by_more_than_noise() -> None:
    noise = [0.001 * (n % 5) for n in range(32)]
    sure = Slice(scales=[0.5, 1, 1.25], losses=[[1 + n, 2, 3] for n in noise], slope=1)
    unsure = Slice(scales=[0.5, 1], losses=[[1.9 + 100 * n, 2] for n in noise], slope=1)
    for found, wanted in ((sure, 0.5), (unsure, 1)):
        weighed = weigh_all(evidence(GOOD, slice=found), DEFAULT)
        assert weighed.scale == wanted and set(weighed.scales) == set(found.scales) - {1}


# The policy


@given(st.integers(20, 3000), st.integers(20, 3000), st.integers(1, 5000))
def test_looks_at_least_double_and_end_with_all(first: int, most: int, total: int) -> None:
    looks = VerdictPolicy(first_items=first, most_items=most).looks(total)
    assert looks[-1] == min(most, total) and looks[0] >= min(first, most, total)
    assert all(2 * a <= b for a, b in itertools.pairwise(looks))
    assert len(looks) == 1 or looks[-1] < 4 * looks[-2]


def test_looks_of_the_default_policy() -> None:
    assert [DEFAULT.looks(total) for total in (71, 240, 872, 9000)] == [
        [71], [240], [200, 400, 872], [200, 400, 800, 1600]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ('{"surprise": 1}', "surprise: "),
        ('{"margin": 5}', "margin: Input should be less than or equal to 1"),
        ('{"alpha": NaN}', "alpha: "),
        ('{"alpha": 0}', "alpha: "),
        ('{"unclear": "maybe"}', "unclear: Input should be 'publish', 'ask' or 'reject'"),
        ('{"scale": 3}', "scale: Input should be 'auto', or Input should be less than or equal"),
        ('{"first_items": 5}', "first_items: "),
        ("[]", "Input should be an object"),
        ("{", "Invalid JSON"),
    ],
)
def test_a_policy_that_is_wrong_is_refused_by_field(raw: str, wanted: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"strict.json: {wanted}")) as refusal:
        parse_policy(raw, "strict.json")
    assert "literal[" not in str(refusal.value)
    assert parse_policy("{}", "empty.json") == DEFAULT


# How often it is wrong: ports whose truth is known, judged look by look


@pytest.fixture
def what_decides_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is spent on what is only shown."""
    monkeypatch.setattr(verdict, "share", lambda *_: Estimate(mean=0, low=0, high=0))
    monkeypatch.setattr(verdict, "flips", lambda *_: None)
    monkeypatch.setattr(statistics, "RESAMPLES", 9)


def share_of(
    action: str,
    *,
    times: int,
    items: int,
    change: tuple[float, float],
    gain: tuple[float, float],
) -> float:
    """How often a port ends so, if it loses and wins items with these chances.

    `change` against the old base with the patch, `gain` against the new base alone.
    """
    rng, ended = np.random.default_rng(7), 0
    for _ in range(times):
        port = (rng.random(items) < 0.6).astype(int)
        arms = {"port": port, "before": np.zeros(items, int)}
        for arm, (lost, won) in (("old", change), ("new", gain)):
            luck = rng.random(items)
            # Chances are of all items: an item can be won only where the port is right.
            flips = np.where(port == 1, luck < won / 0.6, luck < lost / 0.4)
            arms[arm] = np.where(flips, 1 - port, port)
        known = {arm: [float(right) for right in each] for arm, each in arms.items()}
        looks = DEFAULT.looks(items)
        for look, count in enumerate(looks, start=1):
            now = {arm: each[:count] for arm, each in known.items()}
            found = evidence(now, looks=len(looks), look=look)
            if is_settled(found, DEFAULT):
                break
        ended += judge(found, DEFAULT).action == action
    return ended / times


def allowed(share: float, times: int) -> float:
    return share + 3 * math.sqrt(share * (1 - share) / times)


@pytest.mark.usefixtures("what_decides_only")
@pytest.mark.parametrize("items", [240, 800])
def test_a_port_without_a_gain_is_hardly_ever_published(items: int) -> None:
    found = share_of("publish", times=160, items=items, change=(0, 0.02), gain=(0.06, 0.06))
    assert found <= allowed(0.025, 120)


@pytest.mark.usefixtures("what_decides_only")
@pytest.mark.parametrize("change", [(0.05, 0), (0.09, 0.04)])
def test_a_port_that_lost_the_margin_is_hardly_ever_published(change: tuple[float, float]) -> None:
    found = share_of("publish", times=120, items=800, change=change, gain=(0.02, 0.32))
    assert found <= allowed(0.025, 120)


@pytest.mark.usefixtures("what_decides_only")
def test_a_harmful_port_is_never_published_and_mostly_rejected() -> None:
    port = {"times": 50, "items": 1600, "change": (0.04, 0.04), "gain": (0.08, 0.03)}
    assert share_of("publish", **port) == 0
    assert share_of("reject", **port) > 0.9


@pytest.mark.usefixtures("what_decides_only")
def test_a_harmless_port_is_never_rejected_and_mostly_published() -> None:
    port = {"times": 80, "items": 400, "change": (0.015, 0.015), "gain": (0.02, 0.32)}
    assert share_of("reject", **port) == 0
    assert share_of("publish", **port) > 0.9
