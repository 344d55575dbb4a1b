"""Intervals against formulas written anew, likelihoods, and the truth that they promise to hold."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial, norm

from judging import statistics
from judging.statistics import Estimate, flips, mean, paired, share

ALPHA = st.sampled_from([0.05, 0.025, 0.0125])
COUNTS = st.tuples(st.integers(1, 300), st.integers(0, 40), st.integers(0, 40))


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 999)
        yield


@cache
def of_counts(same: int, lost: int, won: int, alpha: float) -> Estimate:
    one = [0] * lost + [1] * won + [1] * same
    other = [1] * lost + [0] * won + [1] * same
    return paired(one, other, alpha, reach=1)


@given(right=st.integers(0, 200), wrong=st.integers(0, 200), alpha=ALPHA)
def test_the_interval_of_an_arm_is_wilsons(right: int, wrong: int, alpha: float) -> None:
    assume(n := right + wrong)
    found, p, z = share([1.0] * right + [0.0] * wrong, alpha), right / n, norm.isf(alpha / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert [found.mean, found.low, found.high] == pytest.approx([p, centre - half, centre + half])


@given(lost=st.integers(0, 60), won=st.integers(0, 60), same=st.integers(0, 20))
def test_flips_are_named_and_tested_exactly(lost: int, won: int, same: int) -> None:
    one, other = [0] * lost + [1] * (won + same), [1] * lost + [0] * won + [1] * same
    numbers = list(range(100, 100 + len(one)))
    found, differing = flips(one, other, numbers), lost + won
    assert found.lost == numbers[:lost] and found.won == numbers[lost:differing]
    tail = sum(math.comb(differing, k) for k in range(min(lost, won) + 1)) / 2**differing
    assert found.p == pytest.approx(min(1, 2 * tail))


@given(COUNTS, ALPHA)
@settings(max_examples=40, deadline=None)
def test_a_limit_is_where_the_likeliest_explanation_is_just_refuted(
    counts: tuple[int, int, int], alpha: float
) -> None:
    """Tango's interval, with the likelihood maximised by a search instead of his formula."""
    same, lost, won = counts
    n, d = sum(counts), (won - lost) / sum(counts)
    found = of_counts(*counts, alpha)
    assert found.low <= d <= found.high and found.mean == pytest.approx(d, abs=1e-12)
    for limit in (found.low, found.high):
        assert -1 < limit < 1 and limit != d  # as `same` is not 0

        def surprise(losing: float, limit: float = limit) -> float:
            tiny = 1e-300
            return -(
                lost * math.log(losing + tiny)
                + won * math.log(max(losing + limit, 0) + tiny)
                + same * math.log(max(1 - 2 * losing - limit, 0) + tiny)
            )

        ends = (max(0.0, -limit), (1 - limit) / 2)
        losing = minimize_scalar(surprise, bounds=ends, options={"xatol": 1e-10}).x
        z = abs(d - limit) / math.sqrt((2 * losing + limit - limit**2) / n)
        assert z == pytest.approx(norm.isf(alpha / 2), rel=1e-3)


def test_two_intervals_that_were_published() -> None:
    """Fagerland, Lydersen and Laake (2014, doi 10.1002/sim.6148), table of Tango's interval."""
    found = of_counts(13, 7, 1, 0.05)
    assert (round(found.low, 3), round(found.high, 3)) == (-0.517, -0.026)


@given(same=st.integers(0, 2000), alpha=ALPHA)
def test_arms_that_never_differed_may_differ_yet(same: int, alpha: float) -> None:
    assume(same)
    z2 = norm.isf(alpha / 2) ** 2
    found = of_counts(same, 0, 0, alpha)
    assert [found.low, found.high] == pytest.approx([-z2 / (same + z2), z2 / (same + z2)])


@given(lost=st.integers(10, 80), won=st.integers(10, 80), same=st.integers(100, 400))
def test_with_many_differences_it_is_near_the_interval_of_bonett_and_price(
    lost: int, won: int, same: int
) -> None:
    found, n = of_counts(same, lost, won, 0.05), lost + won + same + 2
    p, q = (won + 1) / n, (lost + 1) / n
    half = 1.96 * math.sqrt((p + q - (p - q) ** 2) / n)
    assert abs(found.low - (p - q - half)) < 0.15 * half
    assert abs(found.high - (p - q + half)) < 0.15 * half


@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.0125, 0.0001])
def test_a_better_result_never_lowers_a_limit_and_arms_can_be_swapped(alpha: float) -> None:
    n = 14
    table = {
        (lost, won): of_counts(n - lost - won, lost, won, alpha)
        for lost in range(n + 1)
        for won in range(n + 1 - lost)
    }
    for (lost, won), found in table.items():
        assert -1 <= found.low <= found.mean <= found.high <= 1
        swapped = table[won, lost]
        assert [-swapped.high, -swapped.low] == pytest.approx([found.low, found.high], abs=1e-9)
        for key in ((lost - 1, won), (lost - 1, won + 1), (lost, won + 1)):
            if (better := table.get(key)) is not None:
                assert better.low >= found.low - 1e-9 and better.high >= found.high - 1e-9


# Chances that the port loses, and wins, an item; from none to many that differ.
PORTS = [(0, 0), (0.01, 0.01), (0.02, 0), (0.03, 0.005), (0.05, 0), (0.1, 0), (0.07, 0.02),
         (0.05, 0.05), (0.15, 0.05), (0.3, 0.02)]  # fmt: skip


@pytest.mark.parametrize("alpha", [0.05, 0.0125])
@pytest.mark.parametrize("n", [20, 60, 200, 320])
def test_the_truth_is_missed_no_more_often_than_promised(n: int, alpha: float) -> None:
    """Exact: every outcome with its chance. Discrete results keep no promise to the digit."""
    for losing, winning in PORTS:
        outcomes = np.array(list(likely(n, losing, winning)))
        rest = n - outcomes.sum(axis=1, keepdims=True)
        chances = multinomial.pmf(
            np.hstack([outcomes, rest]), n, [losing, winning, 1 - losing - winning]
        )
        assert chances.sum() > 0.999
        too_good = too_bad = 0.0
        for (lost, won), chance in zip(map(tuple, outcomes.tolist()), chances, strict=True):
            found = of_counts(n - lost - won, lost, won, alpha)
            too_good += chance * (found.low > winning - losing + 1e-9)
            too_bad += chance * (found.high < winning - losing - 1e-9)
        assert too_good < 1.15 * alpha / 2, (losing, winning)  # what would be published wrongly
        assert too_good + too_bad < 1.6 * alpha, (losing, winning)


def likely(n: int, losing: float, winning: float) -> Iterator[tuple[int, int]]:
    ranges = []
    for chance in (losing, winning):
        centre, reach = n * chance, 4 * math.sqrt(n * chance) + 3 if chance else 0
        ranges.append(range(max(0, int(centre - reach)), min(n, int(centre + reach)) + 1))
    return ((lost, won) for lost, won in itertools.product(*ranges) if lost + won <= n)


def five_valued(rng: np.random.Generator) -> np.ndarray:
    return rng.choice([-2, -1, 0, 1, 2], 200, p=[0.01, 0.12, 0.8, 0.06, 0.01])


@pytest.mark.parametrize(
    ("draw", "truth", "reach"),
    [
        (lambda rng: rng.normal(-0.05, 0.1, 40), -0.05, None),
        (lambda rng: rng.normal(0, 0.01, 20), 0, None),
        (lambda rng: rng.uniform(-0.1, 0.3, 40), 0.1, None),
        (five_valued, -0.06, 2),
    ],
)
def test_the_bootstrap_holds_the_truth_as_often_as_promised(
    draw: Callable[[np.random.Generator], np.ndarray], truth: float, reach: float | None
) -> None:
    rng, missed = np.random.default_rng(3), 0
    for _ in range(250):
        values = draw(rng)
        found = paired(values, np.zeros(len(values)), 0.05, reach)
        missed += not found.low <= truth <= found.high
    assert missed <= 0.05 * 250 + 2.5 * math.sqrt(0.05 * 0.95 * 250)


def test_the_bootstrap_agrees_with_the_exact_distribution() -> None:
    """Four items and the two made-up ones: every one of the 6^6 resamples is looked at."""
    values = [2, 1, 1, -1]
    drawn = itertools.product([*values, 2, -2], repeat=6)
    means = sorted(sum(each) / 6 for each in drawn)
    found = paired(values, [0] * 4, 0.2, reach=2)
    step = 1 / 6
    assert found.low == pytest.approx(means[int(0.1 * len(means))], abs=step)
    assert found.high == pytest.approx(means[int(0.9 * len(means))], abs=step)
    assert found.mean == 0.75


BITS = st.lists(st.floats(-1, 1), min_size=1, max_size=40)


@given(values=BITS, seed=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_bootstrap_is_the_same_in_any_order(values: list[float], seed: random.Random) -> None:
    found = paired(values, [0.0] * len(values), 0.05)
    shuffled = list(values)
    seed.shuffle(shuffled)
    again = paired(shuffled, [0.0] * len(values), 0.05)
    assert [again.low, again.high] == [found.low, found.high]
    assert again.mean == pytest.approx(found.mean)
    assert found.low <= found.mean <= found.high


@given(value=st.floats(-5, 5), size=st.integers(1, 5))
def test_texts_that_are_all_alike_have_an_interval_without_width(value: float, size: int) -> None:
    found = mean([value] * size, 0.05)
    assert found.low == found.high == found.mean == pytest.approx(value)
    found = paired([value] * size, [value] * size, 0.05)
    assert found.low == found.high == found.mean == 0
