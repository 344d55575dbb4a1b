"""The same against the local Hub: the real client, planner and limiter, and the Hub's own limits.

    python -m benchmarks.polling_hub --bases 300 --hours 6 --speed 100 --pace 20

Time runs `speed` times as fast for both sides. Bases change `pace` times as often as in the long
simulation, to have some changes. The quotas are the free tier's share: of 10,000
bases' 1,000 and 5,000 requests, as many as there are bases here.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import parse_ratelimit_headers

from benchmarks.polling import HEAD, START, TICK, Result, World, make_world
from bot.hub import Hub
from bot.hub.limiter import Bucket, Limiter, Priority, install
from bot.hub.lookups import look
from bot.watching.cadence import MAIN, Cadence, Followed, Known, Room, plan_looks
from localhub.limits import Limits
from localhub.server import Server
from porting.errors import PortllmError
from registry.following import Head

COMMITS = 12  # that every base can move through


class FastClock:
    def __init__(self, speed: float) -> None:
        self.speed, self.begun = speed, time.monotonic()

    def __call__(self) -> float:
        return (time.monotonic() - self.begun) * self.speed

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / self.speed)


class CountedLimits(Limits):
    """Keeps the most requests that any window had."""

    most: Counter[str]

    def take(self, caller: str, bucket: str) -> tuple[bool, dict[str, str]]:
        allowed, headers = super().take(caller, bucket)
        told = parse_ratelimit_headers(headers)
        if told is not None and told.limit is not None:
            self.most[bucket] = max(self.most[bucket], told.limit - told.remaining)
        return allowed, headers


def fill(server: Server, world: World) -> list[str]:
    """A repo for every base, all at the first of a row of commits, which is returned."""
    owners = sorted({base.author for base in world.bases})
    api = HfApi(endpoint=server.endpoint, token=server.add_user("vendor", orgs=["first", *owners]))
    api.create_repo("first/base")
    row = [
        api.create_commit(
            "first/base", [CommitOperationAdd("notes", bytes([n]))], commit_message=f"Commit {n}"
        ).oid
        for n in range(COMMITS)
    ]
    api.create_tag("first/base", tag="v1", revision=row[0])
    server.copy("first/base", [base.repo for base in world.bases])
    for base in world.bases:
        server.force(base.repo, f"refs/heads/{MAIN}", row[0])
    return row


class Run:
    def __init__(self, server: Server, world: World, clock: FastClock, row: list[str]) -> None:
        self.server, self.clock, self.row = server, clock, row
        self.hub = Hub(server.endpoint, server.add_user("bot"))
        self.limiter = Limiter(clock, clock.sleep)
        install(self.limiter, server.endpoint)
        self.bases = [replace(base, sha=row[0]) for base in world.bases]
        self.changes = [change for change in world.changes if world.bases[change[1]].ref == MAIN]
        self.at = [0] * len(self.bases)
        self.pending: defaultdict[int, list[float]] = defaultdict(list)
        self.result = Result("ours, local Hub", {}, 0, 0)
        self.failed = 0

    def run(self, seconds: float) -> Result:
        cadence, known, tick = Cadence(), Known(), 0.0
        while self.clock() < seconds:
            self.move()
            room = Room(*(self.limiter.room(each, Priority.POLL) for each in list(Bucket)[:2]))
            now = START + timedelta(seconds=self.clock())
            looks = plan_looks(self.bases, known, now, room, cadence)
            for base, heads in look(self.hub, looks, known, now, self.ask):
                self.see(base, heads, cadence)
            tick = max(tick + TICK, self.clock())
            self.clock.sleep(max(0.0, tick - self.clock()))
        self.result.missed = sum(map(len, self.pending.values()))
        return self.result

    def move(self) -> None:
        while self.changes and self.changes[0][0] <= self.clock():
            _, number = self.changes.pop(0)
            self.at[number] += 1
            sha = self.row[self.at[number] % COMMITS]
            self.server.force(self.bases[number].repo, f"refs/heads/{MAIN}", sha)
            self.pending[number].append(self.clock())

    def see(self, base: Followed, heads: list[Head] | PortllmError, cadence: Cadence) -> None:
        if isinstance(heads, PortllmError):
            print(heads, file=sys.stderr)
            self.failed += 1
            return
        seconds, changed = self.clock(), heads[0].sha != base.sha
        if changed:
            self.result.delays += [seconds - when for when in self.pending.pop(base.id)]
        now = START + timedelta(seconds=seconds)
        changed_at = now if changed else base.changed_at
        due_at = cadence.due_at(base.id, now, changed_at)
        self.bases[base.id] = replace(
            base, sha=heads[0].sha, looked_at=now, changed_at=changed_at, due_at=due_at
        )

    def ask(self, base: Followed) -> list[Head]:
        return [Head(base.repo, base.ref, self.hub.head(base.repo, base.ref))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", type=int, default=300)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--speed", type=float, default=100.0)
    parser.add_argument("--pace", type=float, default=20.0)
    options = parser.parse_args()
    clock = FastClock(options.speed)
    world = make_world(options.bases, options.hours / 24, seed=0, pace=options.pace)
    share = options.bases / 10_000
    limits = CountedLimits(api=round(1000 * share), resolvers=round(5000 * share), clock=clock)
    limits.most = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with Server(Path(folder)) as server:
            row = fill(server, world)
        with Server(Path(folder), limits=limits) as server:
            clock.begun = time.monotonic()
            run = Run(server, world, clock, row)
            result = run.run(options.hours * 3600)
    result.most = {bucket: limits.most[bucket] for bucket in Bucket}
    result.total, result.refused = limits.asked.total(), limits.refused.total()
    quotas = f"{limits.api} and {limits.resolvers} in 300 s"
    print(HEAD.format(title=f"{options.bases:,} bases, {options.hours:g} hours, {quotas}"))
    print(result.row())
    print(f"{len(result.delays)} changes seen, {run.failed} looks failed", file=sys.stderr)


if __name__ == "__main__":
    main()
