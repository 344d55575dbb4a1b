"""Never lost, never twice: the bot killed again and again, on a Hub that fails, lies and changes.

    python -m benchmarks.faults --runs 200 --seed 1

Each run is a world of its own: a Hub, a base that moves, some subscriptions. The bot lives a few
lives there, most of which end by SIGKILL, at a named boundary or at any instant, while the Hub
answers with errors, breaks off and tells what was, and others commit to the same repos. Then the
faults end, the bot may live in peace, and `tests.ledger` says what is not as it should be.

A run is a line of the file `--results`; started again, only the runs that it lacks are made.
"""

import argparse
import json
import logging
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from bot.running.controls import retry
from registry.models import Port, PortState
from registry.ports import overtaken
from tests.faulty import SUBSCRIBED, FaultyWorld, Life, Template, make_template
from tests.ledger import violations

STEPS = (
    "classify", "create ports", "plan", "choose scale", "make", "validate", "judge", "publish",
    "send", "tidy", "fail", "announce",
)  # fmt: skip
CALLS = ("state", "create", "commit", "tag")
# Everything that has a name in `tests.mortal`, and how often a life may well come there.
OFTEN = {
    **{f"step {step}": 3 for step in STEPS},
    **{f"publisher {call}": 2 for call in CALLS},
    "sandbox": 4,
    "registry commit": 60,
    "memory commit": 200,
    "request GET": 80,
    "request HEAD": 30,
    "request POST": 12,
}
FILES = {"os.rename": 4, "os.remove": 20, "os.mkdir": 30, "os.rmdir": 4, "shutil.rmtree": 6}
BOUNDARIES = {
    f"{when} {what}": most for what, most in OFTEN.items() for when in ("before", "after")
}
BOUNDARIES |= {f"before file {name}": most for name, most in FILES.items()}

PATHS = (
    ".", ".", "/api/models/vendor", "/api/models/owner", "/resolve/", "/tree/", "/commits/",
    "/commit/", "/refs", "/discussions", "/preupload/", "/lfs", "/tag/", "/paths-info/", "/create",
)  # fmt: skip
LIMITED = {"Retry-After": "1", "RateLimit": '"api";r=0;t=1'}
HOUR = 3600.0


@dataclass
class Outcome:
    """What a run was, and what was wrong after it."""

    seed: int
    lives: int = 0
    killed: Counter[str] = field(default_factory=Counter)  # by where
    faults: Counter[str] = field(default_factory=Counter)  # requests hit, by kind
    others: Counter[str] = field(default_factory=Counter)  # what else happened
    ports: Counter[str] = field(default_factory=Counter)  # by state
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Unkind:
    """Orders faults of a Hub, and counts the requests that they hit."""

    def __init__(self, world: FaultyWorld, draw: random.Random) -> None:
        self._faults, self._draw = world.server.faults, draw
        self._ordered: list[tuple[str, int]] = []

    def order(self) -> None:
        draw = self._draw
        kinds: dict[str, dict[str, Any]] = {
            "429": {"status": 429, "headers": LIMITED},
            "500": {"status": draw.choice([500, 502, 503, 504])},
            "cut": {"cut": draw.choice([0, 1, 50, 500, 20000])},
            "stale": {"stale": draw.randint(1, 3)},
            "slow": {"delay": draw.uniform(0.1, 1.0)},
        }
        kind, times = draw.choice(list(kinds)), draw.choice([1, 2, 3, 4, 12])
        self._faults.add(draw.choice(PATHS), times=times, **kinds[kind])
        self._ordered.append((kind, times))

    def end(self) -> Counter[str]:
        """Order no more. Returns how many requests were hit, by kind."""
        hit: Counter[str] = Counter()
        for (kind, times), rule in zip(self._ordered, self._faults._rules, strict=True):
            hit[kind] += times - rule.times
        self._faults.clear()
        return hit


def draw_life(draw: random.Random, turn: int, real: bool) -> tuple[Life, float | None]:
    """A life, and after how many seconds it is killed. Every boundary has its turn.

    Args:
        real: whether models judge: in all lives of a run or in none, scores being kept.
    """
    boundaries = list(BOUNDARIES)
    where = boundaries[turn % len(boundaries)] if draw.random() < 0.65 else ""
    forever = draw.random() < 0.3
    life = Life(
        where=where,
        number=draw.randint(1, BOUNDARIES[where]) if where else 1,
        forever=forever,
        skew=draw.uniform(-30, 30) * HOUR if draw.random() < 0.15 else 0.0,
        real=real,
        fresh=draw.random() < 0.03,
        slain=draw.choice([0] * 9 + [1]),
        rival=draw.choice([0.0, 0.4]),
        xet=draw.random() < 0.2,
    )
    if where and not forever:
        return life, None
    return life, draw.uniform(0.5, 8.0) if forever or draw.random() < 0.9 else None


@contextmanager
def others(world: FaultyWorld, draw: random.Random, unkind: Unkind) -> Iterator[Counter[str]]:
    """While this lasts, others act at random instants; yields what they did."""
    acts: dict[str, tuple[float, Callable[[], object]]] = {
        "release": (0.15, lambda: world.release(draw.randint(1, 3))),
        "tag": (0.15, lambda: world.tag(f"v1.{int(time.time() * 1000)}")),
        "words of the vendor": (0.1, world.readme),
        "words of the owner": (0.2, lambda: world.edit(draw.choice(world.subscribed).to)),
        "fault": (0.4, unkind.order),
    }
    weights = [share for share, _ in acts.values()]
    done: Counter[str] = Counter()
    over = threading.Event()

    def act() -> None:
        while not over.wait(draw.expovariate(0.7)):
            [name] = draw.choices(list(acts), weights)
            if name != "release" or world.releases < 4:
                acts[name][1]()
                done[name] += 1

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


def one_run(template: Template, folder: Path, seed: int, lives: int | None = None) -> Outcome:
    """The run of this seed, in `folder`, which is removed if nothing was wrong."""
    draw, outcome, begun = random.Random(seed), Outcome(seed), time.monotonic()
    kept, real = draw.sample(SUBSCRIBED, draw.choice([1, 2, 2, 3])), draw.random() < 0.03
    with template.world(folder, kept) as world:
        unkind = Unkind(world, draw)
        number = lives or draw.randint(3, 6)
        for turn in range(number):
            if turn == 0 or draw.random() < 0.5:
                world.release()
                world.tag(f"v1.{int(time.time() * 1000)}")
            for _ in range(draw.randint(0, 5)):
                unkind.order()
            life, seconds = draw_life(draw, 5 * seed + turn, real)
            world.tell(f"life {turn + 1}: {life}, {seconds}")
            with others(world, draw, unkind) as did:
                code = world.live(life, seconds)
            world.tell(f"life {turn + 1} ended: {code}")
            outcome.others.update(did)
            _count_end(world, outcome, life, code)
        outcome.faults = unkind.end()
        outcome.others["words just before a push"] = world.history().count("just before the bot")
        world.tell("peace")
        world.until_done(real)
        outcome.others["retried by hand"] = _retry(world, real)
        stopped = [each for each in world.history().splitlines() if "stopped: " in each]
        outcome.wrong += [*stopped, *violations(world)]
        with world.registry() as registry:
            states = registry.execute("SELECT state, count(*) FROM ports GROUP BY state")
            outcome.ports = Counter(dict(states.fetchall()))
        if outcome.wrong:
            print("\n".join([f"seed {seed}:", *outcome.wrong, story(world)]), file=sys.stderr)
    if not outcome.wrong:
        shutil.rmtree(folder)
    outcome.seconds = time.monotonic() - begun
    return outcome


def _count_end(world: FaultyWorld, outcome: Outcome, life: Life, code: int) -> None:
    outcome.lives += 1
    last = world.history().splitlines()[-2]
    if code == -9:
        outcome.killed[life.where if last.endswith(f"killed {life.where}") else "any instant"] += 1
    elif code not in (0, 255):  # 255: the fork server died, of one that was killed as it asked
        outcome.wrong.append(f"a life ended with {code}: {life}")
    for name in ("skew", "real", "fresh", "slain", "xet", "forever"):
        outcome.others[f"lives: {name}"] += bool(getattr(life, name))


def _retry(world: FaultyWorld, real: bool) -> int:
    """What failed too often is begun again by its owner, as its sentence says."""
    with world.context.database.session() as session:
        lost = select(Port.key, Port.reason).where(
            Port.state.in_((PortState.FAILED, PortState.REFUSED))
        )
        told = {key: reason for key, reason in session.execute(lost)}
        newer = overtaken(session, [session.get_one(Port, key) for key in told])
        wanted = told.keys() - newer.keys()
        for key in wanted:
            retry(session, re.findall(r"portllm retry (\S+)", told[key])[-1])
    if wanted:
        world.tell(f"owner: retried {', '.join(wanted)}")
        world.until_done(real)
    return len(wanted)


def story(world: FaultyWorld) -> str:
    """What happened in the world, and what the ports' own logs say."""
    with world.registry() as registry:
        ports = registry.execute("SELECT key, state, attempt, reason, url FROM ports").fetchall()
        events = registry.execute("SELECT at, port_key, attempt, step, blame, text FROM events")
        lines = [" ".join(map(str, row)) for row in [*ports, *events]]
    return "\n".join([world.history(), *lines, f"All of it: {world.folder}"])


def table(outcomes: list[Outcome]) -> str:
    """What was done and found, as Markdown."""
    total = sum((each.killed for each in outcomes), Counter[str]())
    groups: Counter[str] = Counter()
    for where, count in total.items():
        words = where.split()
        groups[" ".join(words[1:2]) if where != "any instant" else where] += count
    rows: list[tuple[str, object]] = [
        ("runs", len(outcomes)),
        ("lives of the bot", sum(each.lives for each in outcomes)),
        ("of these killed", sum(total.values())),
        *((f"- {name}", count) for name, count in sorted(groups.items())),
        (
            "boundaries at which it was killed",
            f"{len(total.keys() & BOUNDARIES)} of {len(BOUNDARIES)}",
        ),
        *((f"requests: {k}", n) for k, n in sorted(_sum(outcomes, "faults").items())),
        *sorted(_sum(outcomes, "others").items()),
        *((f"ports: {k}", n) for k, n in sorted(_sum(outcomes, "ports").items())),
        ("seconds", round(sum(each.seconds for each in outcomes))),
        ("runs with a violation", sum(bool(each.wrong) for each in outcomes)),
    ]
    missed = sorted(BOUNDARIES.keys() - total.keys())
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
        + ([f"\nNever killed: {', '.join(missed)}."] if missed else [])
    )


def _sum(outcomes: list[Outcome], name: str) -> Counter[str]:
    return sum((getattr(each, name) for each in outcomes), Counter[str]())


def load(results: Path) -> dict[int, Outcome]:
    """The runs that were made, by seed."""
    if not results.exists():
        return {}
    lines = map(json.loads, results.read_text().splitlines())
    counted = ("killed", "faults", "others", "ports")
    return {
        each["seed"]: Outcome(**each | {name: Counter(each[name]) for name in counted})
        for each in lines
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first run; the next has one more"
    )
    parser.add_argument("--results", type=Path, default=Path("faults.jsonl"))
    given = parser.parse_args()
    logging.getLogger("uvicorn.error").addFilter(lambda _: False)  # what it says of broken answers
    done = load(given.results)
    seeds = range(given.seed, given.seed + given.runs)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    template = make_template(folder / "template")
    for seed in seeds:
        if seed not in done:
            done[seed] = one_run(template, folder / str(seed), seed)
            with given.results.open("a") as results:
                results.write(json.dumps(vars(done[seed])) + "\n")
            what = "; ".join(done[seed].wrong) or "all well"
            print(f"{seed}: {done[seed].seconds:.0f} s: {what}", file=sys.stderr)
    outcomes = [done[seed] for seed in seeds]
    print(table(outcomes))
    return int(any(each.wrong for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
