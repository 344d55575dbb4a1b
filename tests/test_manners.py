"""When a port is begun: never before its time, and whoever waits is told until when."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bot.running.manners import MINUTE, Manners, hold, is_open, moment, next_opening

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2032, 1, 1), timezones=st.just(UTC))
SPANS = st.timedeltas(timedelta(0), timedelta(weeks=3))
Field = tuple[str, frozenset[int]]


def field(low: int, high: int) -> st.SearchStrategy[Field]:
    """A field of a crontab line, and the numbers that it stands for."""
    number = st.integers(low, high)
    every = frozenset(range(low, high + 1))
    return st.one_of(
        st.just(("*", every)),
        st.integers(1, high).map(lambda step: (f"*/{step}", frozenset(range(low, high + 1, step)))),
        st.tuples(number, number).map(lambda pair: between(min(pair), max(pair))),
        st.sets(number, min_size=1, max_size=3).map(
            lambda chosen: (",".join(map(str, sorted(chosen))), frozenset(chosen))
        ),
    )


def between(low: int, high: int) -> Field:
    return f"{low}-{high}", frozenset(range(low, high + 1))


WEEKDAYS = st.one_of(
    st.just(("*", frozenset(range(7)))),
    st.sets(st.integers(0, 6), min_size=1).map(
        lambda chosen: (",".join(DAYS[day] for day in sorted(chosen)), frozenset(chosen))
    ),
)


class Schedule:
    """A crontab line, read by another program: this one. It opens every week."""

    def __init__(self, minutes: Field, hours: Field, days: Field) -> None:
        self.text = f"{minutes[0]} {hours[0]} * * {days[0]}"
        self.minutes, self.hours, self.days = minutes[1], hours[1], days[1]

    def __repr__(self) -> str:
        return self.text

    def opens(self, at: datetime) -> bool:
        return at.minute in self.minutes and at.hour in self.hours and at.weekday() in self.days

    def next(self, at: datetime) -> datetime:
        at = at.replace(second=0, microsecond=0) + MINUTE
        while not self.opens(at):
            skips = at.hour not in self.hours or at.weekday() not in self.days
            at = at.replace(minute=0) + timedelta(hours=1) if skips else at + MINUTE
        return at


SCHEDULES = st.builds(Schedule, field(0, 59), field(0, 23), WEEKDAYS)


@given(schedule=SCHEDULES, at=MOMENTS)
def test_a_window_is_open_when_its_line_says_so_and_the_next_one_is_the_next(
    schedule: Schedule, at: datetime
) -> None:
    assert is_open(schedule.text, at) == schedule.opens(at)
    assert next_opening(schedule.text, at) == schedule.next(at)


@given(
    schedule=st.none() | SCHEDULES,
    age=SPANS,
    waited=SPANS,
    at=MOMENTS,
    all_paused=st.none() | st.just("moving"),
    paused_at=st.none() | MOMENTS,
)
def test_nothing_begins_before_its_time_and_each_wait_says_until_when_or_how_to_go_on(
    schedule: Schedule | None,
    age: timedelta,
    waited: timedelta,
    at: datetime,
    all_paused: str | None,
    paused_at: datetime | None,
) -> None:
    line = schedule.text if schedule else None
    manners, released_at = Manners(minimum_release_age=age, schedule=line), at - waited
    held = hold(at, manners, released_at, all_paused, paused_at)
    in_time = waited >= age and (schedule is None or schedule.opens(at))
    assert (held is None) == (in_time and all_paused is None and paused_at is None)
    if held is None:
        return
    if held.until is None:
        assert all_paused or paused_at
        assert "portllm resume" in held.reason and ("moving" in held.reason) == bool(all_paused)
        return
    assert all_paused is paused_at is None
    assert held.until > at and moment(held.until) in held.reason
    for _ in range(2):  # its age, then its hour
        if (next_one := hold(held.until, manners, released_at, None, None)) is None:
            break
        assert next_one.until is not None and next_one.until > held.until
        held = next_one
    else:
        pytest.fail("it is never begun")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0 9 * * 1", "name the weekdays"),
        ("0 9 31 2 *", "no minute ever matches"),
        ("0 9 * *", "number of fields"),
        ("0 25 * * *", "25"),
    ],
)
def test_a_line_that_is_ambiguous_or_never_matches_is_not_taken(given: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Manners(schedule=given)


@given(number=st.integers(0, 9999), unit=st.sampled_from("mhdw"))
def test_a_span_is_what_its_unit_says(number: int, unit: str) -> None:
    minutes = {"m": 1, "h": 60, "d": 1440, "w": 10080}[unit]
    made = Manners.model_validate({"minimum_release_age": f"{number}{unit}"})
    assert made.minimum_release_age == timedelta(minutes=number * minutes)
    kept = Manners.model_validate(made.model_dump(mode="json", exclude_defaults=True))
    assert kept == made
