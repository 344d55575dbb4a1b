"""When bases are looked at, and how: within any room, each in its time, and soon after a change."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.polling import DAY, Bot, make_world
from bot.hub.limiter import Bucket
from bot.watching.cadence import (
    JITTER,
    PRICE,
    PRICE_KEPT,
    Cadence,
    Followed,
    Known,
    Room,
    plan_looks,
)
from registry.models import Rule

NOW = datetime(2027, 1, 1, tzinfo=UTC)
CADENCE = Cadence(shortest=300)
AGES = st.floats(0, 90 * DAY)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


LOOKED = st.none() | st.tuples(st.floats(0, 3000), st.floats(0, 1500))
TRAITS = st.tuples(
    st.sampled_from([Rule.REF] * 12 + [Rule.TAGS, Rule.REPOS, Rule.TREE]),
    st.sampled_from("aaabbbc"),
    st.integers(0, 20),
    st.sampled_from(["main", "main", "main", "v1"]),
    LOOKED,
    st.none() | AGES.map(ago),
)


def made(number: int, traits: tuple[Any, ...]) -> Followed:
    rule, author, name, ref, looked, changed_at = traits
    looked_at = looked and ago(looked[0])
    due_at = looked and looked_at + timedelta(seconds=looked[1])
    return Followed(number, rule, f"{author}/{name}", ref, "", looked_at, changed_at, due_at)


FOLLOWED = st.lists(TRAITS, max_size=40).map(lambda rows: [made(*row) for row in enumerate(rows)])


@st.composite
def lessons(draw: st.DrawFn) -> Known:
    ages = st.floats(0, 2 * PRICE_KEPT.total_seconds()).map(ago)
    prices = st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(1, 6), ages))
    closed = st.sets(st.sampled_from([f"{author}/{name}" for author in "abc" for name in range(9)]))
    return Known(draw(prices), draw(closed))


def is_asked(base: Followed, known: Known) -> bool:
    return base.rule != Rule.REF or base.repo in known.closed


@given(FOLLOWED, lessons(), st.integers(0, 6), st.integers(0, 12))
def test_a_plan_keeps_to_its_room_and_takes_the_most_overdue(
    bases: list[Followed], known: Known, api: int, resolvers: int
) -> None:
    looks = plan_looks(bases, known, NOW, Room(api, resolvers), CADENCE)
    listed = [base for members in looks.listed.values() for base in members]
    taken = [base.id for base in listed + looks.resolved + looks.asked]
    late = {base.id: CADENCE.lateness(base, NOW) for base in bases}
    left = [base for base in bases if late[base.id] >= 0 and base.id not in taken]

    assert len(taken) == len(set(taken)) == len(looks)
    prices = sum(known.price(author, NOW) for author in looks.listed)
    assert prices + len(looks.asked) <= api and len(looks.resolved) <= resolvers
    for author, members in looks.listed.items():
        assert members == [base for base in bases if base.listable and base.author == author]
        assert len(members) >= PRICE * known.price(author, NOW)
        assert any(late[base.id] >= 0 for base in members)
    assert all(late[base.id] >= 0 for base in looks.resolved + looks.asked)
    assert not any(is_asked(base, known) for base in looks.resolved)
    assert all(is_asked(base, known) for base in looks.asked)
    # Nobody is passed over for one who is less late.
    for way in (looks.resolved, looks.asked):
        same = [late[base.id] for base in left if is_asked(base, known) == (way is looks.asked)]
        assert not way or max(same, default=-1) <= min(late[base.id] for base in way)
    if len(looks.resolved) < resolvers:
        assert all(is_asked(base, known) for base in left)


@given(FOLLOWED, lessons())
def test_with_room_for_all_nothing_due_is_left(bases: list[Followed], known: Known) -> None:
    looks = plan_looks(bases, known, NOW, Room(1000, 1000), CADENCE)
    taken = {base.id for members in looks.listed.values() for base in members}
    taken |= {base.id for base in looks.resolved + looks.asked}
    assert {base.id for base in bases if CADENCE.lateness(base, NOW) >= 0} <= taken
    crowds = {base.author for base in bases if base.id in taken and base.listable}
    for author in crowds - looks.listed.keys():
        members = [base for base in bases if base.listable and base.author == author]
        assert len(members) < PRICE * known.price(author, NOW), "a listing was cheaper"


@given(AGES, AGES, AGES, st.integers(0, 10**6))
def test_a_base_is_looked_at_ever_later_until_it_changes(
    age: float, older: float, looked: float, base_id: int
) -> None:
    age, older = sorted((age, older))
    quick, slow = (CADENCE.interval(NOW, ago(seconds)) for seconds in (age, older))
    assert CADENCE.shortest <= quick <= slow <= CADENCE.longest
    assert CADENCE.interval(NOW, NOW) == CADENCE.interval(NOW, ago(3600)) == CADENCE.shortest
    assert CADENCE.interval(NOW, ago(DAY)) == CADENCE.interval(NOW, None) == CADENCE.longest
    due = CADENCE.due_at(base_id, ago(looked), ago(looked + age))
    assert abs((due - ago(looked)).total_seconds() / quick - 1) <= JITTER + 1e-9
    assert due == CADENCE.due_at(base_id, ago(looked), ago(looked + age))


def test_bases_looked_at_together_are_not_due_together() -> None:
    due = sorted(CADENCE.due_at(base_id, NOW, None) for base_id in range(1000))
    spread = 2 * JITTER * CADENCE.longest
    gaps = [(later - sooner).total_seconds() for sooner, later in pairwise(due)]
    assert max(gaps) < spread / 50 and sum(gaps) > 0.95 * spread


@given(
    FOLLOWED,
    st.lists(st.sampled_from([0.0] * 6 + [-900.0, -1e7, 1e6]), min_size=250, max_size=250),
)
def test_every_base_is_looked_at_again_and_again(bases: list[Followed], jumps: list[float]) -> None:
    """A look a minute of each kind, while the clock jumps forward and back."""
    now, tick, offset = NOW, 60.0, 0.0
    waited = dict.fromkeys(range(len(bases)), 0)
    limit = 2 * CADENCE.longest * (1 + JITTER) / tick + 2 * len(bases)
    for number, jump in enumerate(jumps):
        offset += jump if number % 50 == 0 else 0
        now = NOW + timedelta(seconds=number * tick + offset)
        looks = plan_looks(bases, Known(), now, Room(1, 1), CADENCE)
        taken = {base.id for members in looks.listed.values() for base in members}
        taken |= {base.id for base in looks.resolved + looks.asked}
        for base_id in waited:
            waited[base_id] = 0 if base_id in taken else waited[base_id] + 1
            assert waited[base_id] <= limit
            if base_id in taken:
                base = bases[base_id]
                due_at = CADENCE.due_at(base_id, now, base.changed_at)
                bases[base_id] = replace(base, looked_at=now, due_at=due_at)


@pytest.mark.parametrize("seed", [0, 1])
def test_changes_are_seen_within_the_free_tiers_share(seed: int) -> None:
    """A fiftieth of the bases with a fiftieth of the quotas, for two days."""
    world = make_world(bases=200, days=2, seed=seed)
    result = Bot(world, {Bucket.API: 20, Bucket.RESOLVERS: 100}).run(2 * DAY)
    assert result.refused == 0
    delays = sorted(result.delays)
    assert len(delays) > 20 and delays[len(delays) // 2] < 15 * 60
    assert delays[-1] < 30 * 60 and result.missed <= 1


def test_with_too_little_quota_looks_are_late_but_none_is_refused() -> None:
    world = make_world(bases=200, days=2, seed=0)
    result = Bot(world, {Bucket.API: 60, Bucket.RESOLVERS: 24}).run(2 * DAY)
    assert result.refused == 0
    assert 30 * 60 < max(result.delays) < 4 * 3600
