"""Following 10,000 bases within the free tier: a week of looks against a Hub that counts requests.

    python -m benchmarks.polling --bases 10000 --days 7

The Hub and the time are simulated; the planner (`bot.watching.cadence`) and the limiter
(`bot.hub.limiter`) are the real ones. Beside them, on the same bases and changes: each base asked
every five minutes, ±10 %, by `model_info` and by a HEAD, as a bot does that knows nothing of
quotas.
"""

import argparse
import random
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np

from bot.hub.limiter import WINDOW, Bucket, Limiter, Priority
from bot.watching.cadence import MAIN, PRICE, Cadence, Followed, Known, Room, plan_looks
from registry.models import Rule

START = datetime(2027, 1, 1, tzinfo=UTC)
DAY = 86400.0
TICK = 30.0  # seconds between two plans
REQUEST = 0.02  # seconds of the clock per request: eight threads, 160 ms each
LISTED = 1.0  # seconds of the clock per page of a listing, eight at a time
ON_OTHER_REFS = 0.1  # of the bases are followed at a branch or tag, which no listing tells of
WORK = {Bucket.API: 40, Bucket.RESOLVERS: 60}  # requests that the ports to one release take
WORK_SECONDS = 600  # in which they are sent


class SimulatedHub:
    """Counts as the Hub does: a window begins with the first request after the last one ended."""

    def __init__(self, quotas: dict[Bucket, int], window: float = WINDOW) -> None:
        self.quotas, self.window = quotas, window
        self.refused = 0
        self.most: Counter[Bucket] = Counter()  # in one window
        self.total: Counter[Bucket] = Counter()
        self._begun = dict.fromkeys(quotas, float("-inf"))
        self._count: Counter[Bucket] = Counter()

    def left(self, bucket: Bucket, now: float) -> int:
        fresh = now >= self._begun[bucket] + self.window
        return self.quotas[bucket] - (0 if fresh else self._count[bucket])

    def answer(self, bucket: Bucket, now: float) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer to a request."""
        if now >= self._begun[bucket] + self.window:
            self._begun[bucket], self._count[bucket] = now, 0
        self._count[bucket] += 1
        self.total[bucket] += 1
        self.most[bucket] = max(self.most[bucket], self._count[bucket])
        left = self.quotas[bucket] - self._count[bucket]
        self.refused += left < 0
        ends = int(self._begun[bucket] + self.window - now)
        policy = f'"fixed window";"{bucket}";q={self.quotas[bucket]};w={self.window:.0f}'
        told = f'"{bucket}";r={max(left, 0)};t={ends}'
        return (429 if left < 0 else 200), {"ratelimit": told, "ratelimit-policy": policy}


@dataclass
class World:
    """The bases, how many repos their authors have, and when each base changes, in seconds."""

    bases: list[Followed]
    repos: dict[str, int]
    changes: list[tuple[float, int]]  # (when, index of the base), in order


def make_world(bases: int, days: float, seed: int, pace: float = 1.0) -> World:
    """Zipf over authors, and over how often a base changes; `pace` times as often as is likely.

    Author number n is drawn with weight 1/n, of a quarter as many authors as bases. The hundredth
    base of 10,000 changes once a day, base number n 100/n times a day, none more than twice; three
    of ten changes are followed by another within two hours, as vendors fix a release. An author has
    the followed repos and up to thirty times as many others.
    """
    draw = np.random.default_rng(seed)
    authors = max(1, bases // 4)
    weights = 1 / np.arange(1, authors + 1)
    of = draw.choice(authors, size=bases, p=weights / weights.sum())
    refs = np.where(draw.random(bases) < ON_OTHER_REFS, "v1", MAIN)
    followed = [
        Followed(n, Rule.REF, f"author{of[n]}/base{n}", str(refs[n]), "", None, None, None)
        for n in range(bases)
    ]
    counts = Counter(base.author for base in followed)
    repos = {author: int(n * draw.uniform(1, 30)) for author, n in counts.items()}
    ranks = draw.permutation(bases) + 1
    per_day = pace * np.minimum(bases / 100 / ranks, 2.0)
    changes: list[tuple[float, int]] = []
    for n in range(bases):
        for when in draw.uniform(0, days * DAY, size=draw.poisson(per_day[n] * days)):
            changes.append((float(when), n))
            if draw.random() < 0.3:
                changes.append((float(when + draw.uniform(300, 7200)), n))
    changes = sorted(change for change in changes if change[0] < days * DAY)
    return World(followed, repos, changes)


@dataclass
class Result:
    name: str
    most: dict[Bucket, int]
    total: int
    refused: int
    delays: list[float] = field(default_factory=list)
    missed: int = 0

    def row(self) -> str:
        spread = np.percentile(self.delays, [50, 90, 99, 100]) / 60
        times = " | ".join(f"{minutes:.1f}" for minutes in spread)
        most = " | ".join(f"{self.most.get(bucket, 0):,}" for bucket in list(Bucket)[:2])
        counts = f"{most} | {self.total:,} | {self.refused:,}"
        return f"| {self.name} | {counts} | {times} | {self.missed} |"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Bot:
    """Our looks, one request after the other, with the ports' own requests in between."""

    def __init__(self, world: World, quotas: dict[Bucket, int]) -> None:
        self.world, self.hub, self.clock = world, SimulatedHub(quotas), Clock()
        self.limiter = Limiter(self.clock, self.clock.sleep)
        self.cadence, self.known = Cadence(), Known()
        self.bases = list(world.bases)
        self.members: defaultdict[str, list[int]] = defaultdict(list)
        for n, base in enumerate(self.bases):
            if base.listable:
                self.members[base.author].append(n)
        self.due = np.full(len(self.bases), -np.inf)
        self.pending: defaultdict[int, list[float]] = defaultdict(list)
        self.delays: list[float] = []
        self.work: list[tuple[float, Bucket]] = []
        self.draw = random.Random(0)

    def run(self, seconds: float) -> Result:
        changes = iter(self.world.changes)
        change = next(changes, None)
        tick = 0.0
        while self.clock.now < seconds:
            while change is not None and change[0] <= self.clock.now:
                self.pending[change[1]].append(change[0])
                change = next(changes, None)
            self.send_work()
            self.look()
            tick = max(tick + TICK, self.clock.now)
            self.clock.now = tick
        total = sum(self.hub.total.values())
        missed = sum(map(len, self.pending.values()))
        return Result("ours", self.hub.most, total, self.hub.refused, self.delays, missed)

    def send(self, bucket: Bucket, priority: Priority, seconds: float = REQUEST) -> None:
        self.limiter.acquire(bucket, priority)
        self.limiter.learn(bucket, *self.hub.answer(bucket, self.clock.now))
        self.clock.now += seconds

    def send_work(self) -> None:
        for _, bucket in (each for each in self.work if each[0] <= self.clock.now):
            self.send(bucket, Priority.WORK)
        self.work = [each for each in self.work if each[0] > self.clock.now]

    def look(self) -> None:
        # The others have no part in the plan: neither due, nor listed with one that is.
        due = np.nonzero(self.due <= self.clock.now)[0]
        authors = {self.bases[n].author for n in due}
        numbers = {int(n) for n in due}.union(*(self.members[author] for author in authors))
        room = Room(*(self.limiter.room(bucket, Priority.POLL) for bucket in list(Bucket)[:2]))
        now = START + timedelta(seconds=self.clock.now)
        looks = plan_looks(
            [self.bases[n] for n in sorted(numbers)], self.known, now, room, self.cadence
        )
        for author, members in looks.listed.items():
            pages = -(-self.world.repos[author] // 1000)
            most = len(members) // PRICE
            for _ in range(min(pages, most)):
                self.send(Bucket.API, Priority.POLL, LISTED / 8)
            self.known.prices[author] = (min(pages, most + 1), now)
            for base in members:
                if pages > most or self.pending[base.id]:  # not believed: looked up alone
                    self.send(Bucket.RESOLVERS, Priority.POLL)
                self.see(base)
        for base in looks.resolved:
            self.send(Bucket.RESOLVERS, Priority.POLL)
            self.see(base)

    def see(self, base: Followed) -> None:
        now = START + timedelta(seconds=self.clock.now)
        changed = self.pending.pop(base.id, [])
        self.delays += [self.clock.now - when for when in changed]
        for bucket, number in WORK.items() if changed else ():
            later = (self.clock.now + self.draw.uniform(0, WORK_SECONDS) for _ in range(number))
            self.work += [(when, bucket) for when in later]
        changed_at = now if changed else base.changed_at
        due_at = self.cadence.due_at(base.id, now, changed_at)
        self.bases[base.id] = replace(base, looked_at=now, changed_at=changed_at, due_at=due_at)
        self.due[base.id] = (due_at - START).total_seconds()


def naive(world: World, bucket: Bucket, quota: int, seconds: float, name: str) -> Result:
    """Each base every five minutes, ±10 %; what the Hub refuses is tried again next time."""
    draw = np.random.default_rng(0)
    following = draw.uniform(0, 1, len(world.bases))
    result = Result(name, {bucket: 0}, 0, 0)
    pending: defaultdict[int, list[float]] = defaultdict(list)
    changes = iter(world.changes)
    change = next(changes, None)
    for end in np.arange(WINDOW, seconds + 1, WINDOW):
        while change is not None and change[0] < end:
            pending[change[1]].append(change[0])
            change = next(changes, None)
        times, numbers = [], []
        while len(which := np.nonzero(following < end)[0]):
            times.append(following[which])
            numbers.append(which)
            following[which] += WINDOW * draw.uniform(0.9, 1.1, len(which))
        when, who = np.concatenate(times), np.concatenate(numbers)
        order = np.argsort(when)[:quota]
        result.total += len(when)
        result.most[bucket] = max(result.most[bucket], len(when))
        result.refused += max(0, len(when) - quota)
        served = [n for n in order if pending.get(int(who[n]))]
        for n in served:
            seen = [at for at in pending[int(who[n])] if at <= when[n]]
            result.delays += [float(when[n] - at) for at in seen]
            pending[int(who[n])] = [at for at in pending[int(who[n])] if at > when[n]]
    result.missed = sum(map(len, pending.values()))
    return result


HEAD = """\
| {title} | api, most in a window | resolvers, most in a window | requests | 429s \
| delay, median | 90 % | 99 % | longest, min | not seen by the end |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", type=int, default=10_000)
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    quotas = {Bucket.API: 1000, Bucket.RESOLVERS: 5000}
    world, seconds = make_world(options.bases, options.days, options.seed), options.days * DAY
    ours = Bot(world, quotas).run(seconds)
    results = [
        ours,
        naive(world, Bucket.API, 1000, seconds, "model_info of each, every 5 min"),
        naive(world, Bucket.RESOLVERS, 5000, seconds, "HEAD of each, every 5 min"),
    ]
    print(HEAD.format(title=f"{options.bases:,} bases, {options.days:g} days"))
    for result in results:
        print(result.row())
    crowds = Counter(base.author for base in world.bases if base.ref == MAIN)
    many = sum(members >= PRICE for members in crowds.values())
    print(
        f"{len(world.changes):,} changes; {len(crowds):,} authors, {many} with {PRICE} or more",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
