"""When a base is looked at next, and in which of three ways: pure, from what the registry knows.

- listed: all followed repos of an author in one listing, an `api` request per 1,000 repos;
- resolved: the commit that a HEAD of a file names, one `resolvers` request;
- asked: for tags, patterns, trees and gated repos, by about one `api` request each.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import inf
from zlib import crc32

from registry.models import Rule

MAIN = "main"  # the ref that an author's listing tells of
QUIET = 12  # a base that has not moved for an hour is looked at five minutes later
SPREAD = 4  # the longest interval, in shortest ones
JITTER = 0.1  # of an interval, up or down
PRICE = 5  # an `api` request is as dear as five of the `resolvers`: there are 1,000 and 5,000
PRICE_KEPT = timedelta(days=1)  # authors add and remove repos


@dataclass(frozen=True)
class Followed:
    """A followed base: the commit seen last, when that was, when it last was a new one."""

    id: int
    rule: Rule
    repo: str
    ref: str
    sha: str
    looked_at: datetime | None
    changed_at: datetime | None
    due_at: datetime | None

    @property
    def author(self) -> str:
        return self.repo.partition("/")[0]

    @property
    def listable(self) -> bool:
        return self.rule == Rule.REF and self.ref == MAIN


@dataclass(frozen=True)
class Cadence:
    """Soon again after a change, ever later after that: seconds between two looks at a base."""

    shortest: float = 300.0

    @property
    def longest(self) -> float:
        return SPREAD * self.shortest

    def interval(self, looked_at: datetime | None, changed_at: datetime | None) -> float:
        if looked_at is None or changed_at is None:
            return self.longest
        quiet = (looked_at - changed_at).total_seconds()
        return min(max(quiet / QUIET, self.shortest), self.longest)

    def due_at(self, base_id: int, looked_at: datetime, changed_at: datetime | None) -> datetime:
        """The moment of the next look after this one, with a jitter that is always the same."""
        draw = crc32(f"{base_id} {looked_at.timestamp()}".encode()) / 2**31 - 1
        interval = self.interval(looked_at, changed_at)
        return looked_at + timedelta(seconds=interval * (1 + JITTER * draw))

    def lateness(self, base: Followed, now: datetime) -> float:
        """How overdue the next look is, in intervals; negative if it is not yet due."""
        if base.due_at is None:
            return inf
        late = (now - base.due_at).total_seconds()
        if late < -self.longest * (1 + JITTER):  # the clock was set back
            return inf
        return late / self.interval(base.looked_at, base.changed_at)


@dataclass
class Known:
    """What looks have taught about the Hub, for as long as the process lives.

    `prices`: how many requests an author's listing took, and when. `closed`: repos whose files
    this token may not ask for, so that no HEAD tells their commit.
    """

    prices: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)

    def price(self, author: str, now: datetime) -> int:
        price, since = self.prices.get(author, (1, now))
        return price if now - since < PRICE_KEPT else 1


@dataclass(frozen=True)
class Room:
    """How many requests may be sent now."""

    api: int
    resolvers: int


@dataclass(frozen=True)
class Looks:
    """What is looked at now, and how."""

    listed: dict[str, list[Followed]] = field(default_factory=dict)
    resolved: list[Followed] = field(default_factory=list)
    asked: list[Followed] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.listed.values())) + len(self.resolved) + len(self.asked)


def plan_looks(
    bases: Iterable[Followed], known: Known, now: datetime, room: Room, cadence: Cadence
) -> Looks:
    """What is due and fits into `room`, the most overdue first; the rest stays due.

    Where one listing is cheaper than a look at each of the author's bases, it serves all of them,
    those that are not due yet too.
    """
    late: list[tuple[float, Followed]] = []
    crowds: defaultdict[str, list[Followed]] = defaultdict(list)
    for base in bases:
        if base.listable:
            crowds[base.author].append(base)
        lateness = cadence.lateness(base, now)
        if lateness >= 0:
            late.append((lateness, base))
    late.sort(key=lambda each: each[0], reverse=True)

    looks, api, resolvers = Looks(), room.api, room.resolvers
    for _, base in late:
        author = base.author
        if base.listable and author in looks.listed:
            continue
        price = known.price(author, now)
        if base.listable and len(crowds[author]) >= PRICE * price and api >= price:
            looks.listed[author] = crowds[author]
            api -= price
        elif base.rule != Rule.REF or base.repo in known.closed:
            if api > 0:
                looks.asked.append(base)
                api -= 1
        elif resolvers > 0:
            looks.resolved.append(base)
            resolvers -= 1
    return looks
