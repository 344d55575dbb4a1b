"""How long the bot's questions take to a registry of a million subscriptions and ten million ports.

    python -m benchmarks.records --scale 1
    python -m benchmarks.records --scale 1 --postgres
    python -m benchmarks.records --scale 1 --pages

Each draw is a transaction of its own, as in the bot, and asks about another base, owner or repo
where there is one. What a draw writes is written and taken back; only the ports that are begun for
the most popular base stay.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from benchmarks import records_pages
from benchmarks.records_inputs import Sizes, World, base_repo, fill, owner_name, patch_repo, sha
from bot.context import Context
from bot.running.dispatch import _ready
from bot.running.manners import Hold
from bot.running.workflow import Bot
from porting import Change
from registry import following, ports, records
from registry.database import Database
from registry.models import Port, PortState, Release, now
from registry.status import chosen, statuses
from tests.postgres import running

DRAWS, FEW = 200, 30  # the few are of what is slow, or about one thing only
OPEN = (PortState.WAITING, PortState.QUEUED, PortState.RUNNING, PortState.JUDGED)
Ask = Callable[[Session, Any], object]


class Bench:
    """Asks one database, and prints a row of the table per question."""

    def __init__(self, database: Database) -> None:
        self.database = database
        print("| what | answers | first ms | median ms | p99 ms | median of CPU |")
        print("|---|---|---|---|---|---|")

    def __call__(self, name: str, ask: Ask, of: Iterable[Any] = range(FEW)) -> None:
        times, busy, answers = [], [], []
        for each in of:
            began, worked = time.perf_counter(), time.process_time()
            with Session(self.database.engine, expire_on_commit=False) as session:
                answers.append(_count(ask(session, each)))
                session.flush()
                times.append((time.perf_counter() - began) * 1000)
                busy.append((time.process_time() - worked) * 1000)
                session.rollback()
        first, *rest = times
        median, p99 = np.percentile(rest, (50, 99))
        figures = f"{np.median(answers):.0f} | {first:.1f} | {median:.1f} | {p99:.1f}"
        print(f"| {name} | {figures} | {np.median(busy):.1f} |", flush=True)


def _count(answer: object) -> int:
    if isinstance(answer, dict):
        return sum(map(_count, answer.values()))
    return len(answer) if isinstance(answer, list) else 1


def run(database: Database, world: World) -> None:
    ask, sizes, draw = Bench(database), world.sizes, np.random.default_rng(2)
    popularity = np.bincount(world.base, minlength=sizes.bases)
    popularity[99::100] = 0  # the trees, which have releases of another kind
    ranks = [int(base) for base in np.argsort(-popularity) if popularity[base]]
    few = min(DRAWS, len(ranks) // 4)
    for name, bases in (
        ("the most popular base", ranks[:1]),
        ("a median base", ranks[len(ranks) // 2 :][:few]),
        ("a rare base", ranks[-few:]),
    ):
        ask(f"a new commit of {name} is seen", observe, (bases * FEW)[: max(FEW, len(bases))])
        with database.session() as session:
            releases = [released(session, base) for base in bases]
        draws = (releases * DRAWS)[:DRAWS]
        ask(f"**a release of {name} finds its subscriptions**", subscribers, draws)
        if len(bases) == 1:
            begin_ports(database, releases[0])

    ask("the ports that are due, 500 at most", due_ports)
    ask("which of 500 due ports may begin", lambda s, _: _ready(s, now(), PortState.WAITING))
    ask("the same, and all are held: each is told why", held)
    with database.session() as session:
        group(session)
    ask("which of 500 judged ports in groups of five may be published",
        lambda s, _: _ready(s, now(), PortState.JUDGED))  # fmt: skip
    ask("how many ports are open, by state", open_ports)

    repos = [base_repo(int(base)) for base in draw.integers(sizes.bases, size=DRAWS)]
    ask("the bases that an event may concern", following.bases_touched, repos)

    counts = np.bincount(world.owner[world.patch], minlength=sizes.owners)
    near = [owner_name(int(owner)) for owner in np.argsort(abs(counts - 200))[:DRAWS]]
    ask("**`status` of an owner of 200 subscriptions**", status, near)
    patches = draw.integers(sizes.patches, size=DRAWS).tolist()
    names = [patch_repo(int(world.owner[number]), number) for number in patches]
    done = PortState.PUBLISHED
    ask("`ports`, the last 50", lambda s, _: listed(s))
    ask("`ports --state published`, the last 50", lambda s, _: listed(s, done))
    ask("`ports --state published --patch ...`", lambda s, name: listed(s, done, name), names)
    ask("a patch by its name", records.find_patch, names)


def observe(session: Session, base: int) -> list[Release]:
    head = following.Head(base_repo(base), "main", sha("new", base))
    return following.observe(session, base + 1, [head])


def released(session: Session, base: int) -> int:
    (release,) = observe(session, base)
    release.change, release.reason = "weights", "Other weights."
    return release.id


def subscribers(session: Session, release: int) -> object:
    return following.subscribers(session, session.get_one(Release, release))


def begin_ports(database: Database, release: int) -> None:
    """The whole step, but for what the Hub is asked: what changed since each settled commit."""
    bot = Bot(cast(Context, SimpleNamespace(database=database)))
    began = time.perf_counter()
    with patch(
        "bot.watching.classify._change", return_value=Change("weights", "Other weights.", ())
    ):
        bot.begin_ports(release, {"change": "weights"})
    seconds = time.perf_counter() - began
    with database.session() as session:
        begun = session.scalar(select(func.count()).where(Port.release_id == release))
    print(f"| its ports are begun, in one transaction | {begun} | {seconds * 1000:.0f} | | | |")


def due_ports(session: Session, _: object) -> object:
    return ports.due_ports(session, PortState.WAITING, now())


def held(session: Session, _: object) -> object:
    with patch("bot.running.dispatch.held", return_value=Hold("A test.")):
        return _ready(session, now(), PortState.WAITING)


def group(session: Session) -> None:
    """500 of the waiting ports are judged, and in groups."""
    for number, port in enumerate(ports.due_ports(session, PortState.WAITING, now())):
        port.state, port.verdict = PortState.JUDGED, {"action": "publish", "reason": "Survived."}
        port.subscription.group_name = f"night-{number // 5}"


def open_ports(session: Session, _: object) -> object:
    counted = select(Port.state, func.count()).where(Port.state.in_(OPEN))
    return list(session.execute(counted.group_by(Port.state)))


def status(session: Session, owner: str) -> object:
    return statuses(session, chosen(session, owner=owner))


def listed(session: Session, state: PortState | None = None, patch: str | None = None) -> object:
    return list(session.scalars(ports.newest_ports(50, state, patch)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--subscriptions", type=int, help="so many, whatever the scale")
    parser.add_argument("--pages", action="store_true", help="only the pages of portllm serve")
    parser.add_argument("--postgres", action="store_true", help="default: SQLite")
    options = parser.parse_args()
    with opened(options.postgres) as database:
        sizes = Sizes.scaled(options.scale)
        world = World(replace(sizes, subscriptions=options.subscriptions or sizes.subscriptions))
        began = time.perf_counter()
        fill(database, world)
        print(f"{world.sizes}, written in {time.perf_counter() - began:.0f} s.", file=sys.stderr)
        gc.freeze()  # what was made is nothing of the bot's
        if options.pages:
            begin_popular(database, world)
            records_pages.run(database, world)
        else:
            run(database, world)


def begin_popular(database: Database, world: World) -> None:
    """The ports of a release of the most popular base wait."""
    popularity = np.bincount(world.base, minlength=world.sizes.bases)
    popularity[99::100] = 0  # the trees
    with database.session() as session:
        release = released(session, int(popularity.argmax()))
    begin_ports(database, release)


@contextmanager
def opened(in_postgres: bool) -> Iterator[Database]:
    """An empty registry, gone at the end; it lies where TMPDIR says."""
    if in_postgres:
        with running() as server:
            database = Database(server.url().replace("postgresql:", "postgresql+psycopg:"))
            yield database
            database.close()
    else:
        with tempfile.TemporaryDirectory() as folder:
            database = Database(f"sqlite:///{folder}/registry.db")
            yield database
            database.close()


if __name__ == "__main__":
    main()
