"""Prometheus metrics, made from the database when they are asked for.

So any process may be asked, and a restart loses nothing. What is open is counted by index; what was
done is read from the releases and events of the last hour, however many millions there are before
it: gauges of the last hour, where others count since a process's start. Prometheus keeps the past.
No label has the name of a repo or of a user.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from importlib.metadata import version

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from bot.context import Context
from bot.running.memory import Memory
from registry.models import Base, Event, Port, Release, Subscription, now
from registry.scene import LATE, SILENCE, paused
from registry.workers import traffic_of

HOUR = timedelta(hours=1)
OPEN = ("waiting", "queued", "running", "judged", "asked")
Outcomes = Mapping[str, Mapping[str, int]]  # counts of a process, by metric and outcome
Labels = tuple[str, ...]
QUANTILES = (0.5, 0.95, 1)


def registry_of(context: Context, outcomes: Outcomes) -> CollectorRegistry:
    """What `/metrics` shows."""
    shown = CollectorRegistry()
    shown.register(_Now(context, outcomes))
    return shown


class _Now(Collector):
    def __init__(self, context: Context, outcomes: Outcomes) -> None:
        self._context, self._outcomes = context, outcomes
        self._memory = Memory(context.settings)

    def describe(self) -> Iterable[Metric]:
        return ()  # otherwise it would be collected to be registered

    def collect(self) -> Iterator[Metric]:
        at = now()
        with self._context.database.session() as session:
            yield from _bases(session, at)
            yield from _releases(session, at)
            yield from _ports(session, at)
            moved = traffic_of(session, SILENCE)
            is_paused = paused(session) is not None
        yield _gauge("workers", "Workers whose pulse is felt.", (), [((), len(moved))])
        yield _gauge("paused", "1 while everything is paused.", (), [((), is_paused)])
        told = "Workflows on the queues: enqueued (they wait), pending (at work)."
        yield _gauge("queue_depth", told, ("queue", "status"), self._memory.queues().items())
        yield from _steps(self._memory.steps(at - HOUR))
        for name, counts in self._outcomes.items():
            told = "Of this process, by outcome."
            yield _counter(name, told, ("outcome",), (((key,), n) for key, n in counts.items()))
        told = "Bytes of files that a worker read from the Hub or sent to it, since its start."
        ways = (((who, way), n) for who, each in moved.items() for way, n in each.items())
        yield _counter("bytes", told, ("worker", "way"), ways)
        yield _gauge("info", "What runs.", ("version",), [((version("portllm"),), 1)])


def _bases(session: Session, at: datetime) -> Iterator[Metric]:
    active = exists().where(Subscription.base_id == Base.id, Subscription.ended_at.is_(None))
    columns = (Base.looked_at, Base.due_at, Base.problem.is_not(None))
    rows = session.execute(select(*columns).where(active)).all()
    late = [at - due for _, due, _ in rows if due is not None and due <= at]
    states = {
        ("followed",): len(rows),
        ("due",): len(late),
        ("overdue",): sum(each > LATE for each in late),
        ("blocked",): sum(blocked for _, _, blocked in rows),
    }
    told = "Bases: all that are followed; of these due, overdue by 15 minutes, or blocked."
    yield _gauge("bases", told, ("state",), states.items())
    ages = [(at - looked).total_seconds() for looked, _, _ in rows if looked is not None]
    told = (
        "Time since the last look at a followed base. What is released now is seen at the next "
        "look, or by a webhook: the longest detection delay so far. The Hub dates no release."
    )
    yield _gauge("look_age_seconds", told, ("quantile",), _quantiles(ages).items())


def _releases(session: Session, at: datetime) -> Iterator[Metric]:
    since = _last_before(session, Release.id, Release.seen_at, at - HOUR)
    counted = select(Release.change, func.count()).where(Release.id > since)
    rows = session.execute(counted.group_by(Release.change))
    changes = {(change or "unclassified",): count for change, count in rows}
    yield _gauge("releases_last_hour", "Releases seen, by change.", ("change",), changes.items())
    waiting = select(func.count()).select_from(Release).where(Release.change.is_(None))
    told = "Releases that are still to be classified."
    yield _gauge("releases_waiting", told, (), [((), session.scalar(waiting) or 0)])


def _ports(session: Session, at: datetime) -> Iterator[Metric]:
    counted = select(Port.state, func.count()).where(Port.state.in_(OPEN)).group_by(Port.state)
    open_ones = dict.fromkeys(OPEN, 0) | {str(s): count for s, count in session.execute(counted)}
    told = "Ports that are not at an end, by state."
    yield _gauge(
        "ports", told, ("state",), (((state,), count) for state, count in open_ones.items())
    )

    since = _last_before(session, Event.id, Event.at, at - HOUR)
    failed = select(Event.blame, Event.step, func.count()).where(Event.id > since)
    rows = session.execute(failed.where(Event.blame.is_not(None)).group_by(Event.blame, Event.step))
    errors = {(str(blame), step or ""): count for blame, step, count in rows}
    told = "Attempts that failed, by whose fault it was (theirs: the Hub's) and the step."
    yield _gauge("errors_last_hour", told, ("blame", "step"), errors.items())

    keys = select(Event.port_key).where(Event.id > since)
    columns = (Port.state, Port.action, Port.published_at)
    touched = session.execute(select(*columns).where(Port.key.in_(keys))).all()
    states = Counter((str(state),) for state, _, _ in touched)
    verdicts = Counter((verdict,) for _, verdict, _ in touched if verdict is not None)
    pushes = sum(pushed is not None and at - pushed <= HOUR for _, _, pushed in touched)
    told = "Ports that something was done for, by the state that they are in now."
    yield _gauge("ports_last_hour", told, ("state",), states.items())
    yield _gauge("verdicts_last_hour", "The verdicts on these.", ("action",), verdicts.items())
    yield _gauge("pushes_last_hour", "Of these, those pushed to the Hub.", (), [((), pushes)])


def _steps(ended: Sequence[tuple[str, float]]) -> Iterator[Metric]:
    took: defaultdict[str, list[float]] = defaultdict(list)
    for step, seconds in ended:
        took[step].append(seconds)
    told = "Steps of workflows that ended, by name."
    counts = {(step,): len(times) for step, times in took.items()}
    yield _gauge("steps_last_hour", told, ("step",), counts.items())
    seconds_of = {
        (step, *quantile): value
        for step, times in took.items()
        for quantile, value in _quantiles(times).items()
    }
    yield _gauge("step_seconds", "How long these took.", ("step", "quantile"), seconds_of.items())


def _last_before(
    session: Session,
    row_id: InstrumentedAttribute[int],
    at: InstrumentedAttribute[datetime],
    since: datetime,
) -> int:
    """An id up to which all rows are older than `since`, and after which none is.

    Ids grow with time, which has no index: some twenty rows are looked at, of any number.
    """
    low, high = 0, session.scalar(select(func.max(row_id))) or 0
    while low < high:
        middle = (low + high) // 2
        after = select(row_id, at).where(row_id > middle).order_by(row_id).limit(1)
        found, found_at = session.execute(after).one()
        low, high = (found, high) if found_at < since else (low, middle)
    return low


def _quantiles(values: list[float]) -> dict[Labels, float]:
    """The median, the 95th percentile and the largest; of nothing, none."""
    ordered = sorted(values)
    at = {f"{q:g}": round(q * (len(ordered) - 1)) for q in QUANTILES if ordered}
    return {(quantile,): ordered[index] for quantile, index in at.items()}


def _gauge(name: str, told: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> Metric:
    gauge = GaugeMetricFamily(f"portllm_{name}", told, labels=labels)
    for key, value in sorted(values):
        gauge.add_metric(key, value)
    return gauge


def _counter(name: str, told: str, labels: Labels, values: Iterable[tuple[Labels, int]]) -> Metric:
    counter = CounterMetricFamily(f"portllm_{name}", told, labels=labels)
    for key, value in sorted(values):
        counter.add_metric(key, value)
    return counter
