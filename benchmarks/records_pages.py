"""How long the pages of `portllm serve` take: the whole answer, in this process, without a network.

Each draw is of another patch, base or port where there is one; one patch of fifty is private.
"""

import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import cast

import numpy as np
from fastapi.testclient import TestClient
from sqlalchemy import select, text

from benchmarks.records_inputs import World, base_repo, patch_repo
from bot.context import Context
from bot.serve.app import create_app
from bot.settings import Settings
from registry.database import Database
from registry.models import Port, Subscription
from tests.web import evidence

DRAWS = 30
PREPARED = (
    "UPDATE patches SET private = (id % 50 = 0), task = 'task-' || (id % 200)",
    "INSERT INTO events (port_key, at, attempt, text) "
    "SELECT key, created_at, attempt, reason FROM ports WHERE subscription_id <= 1000",
)


def run(database: Database, world: World) -> None:
    """A row of the table for each kind of page."""
    settings = Settings(database_url=str(database.engine.url))
    hub = SimpleNamespace(endpoint="https://huggingface.co", traffic=SimpleNamespace())
    context = SimpleNamespace(database=database, settings=settings, hub=hub)
    web = TestClient(create_app(cast(Context, context), None))
    draw = np.random.default_rng(3)
    numbers = [int(n) for n in draw.integers(world.sizes.patches, size=DRAWS) if (n + 1) % 50]
    patches = [patch_repo(int(world.owner[number]), number) for number in numbers]
    keys = _prepare(database, numbers)
    followers = np.bincount(world.base, minlength=world.sizes.bases)
    popularity = [int(base) for base in np.argsort(-followers) if followers[base] > 9]
    followed = [base for base in popularity if base % 10 != 7 and base % 100 != 99]
    bases = [base_repo(base) for base in followed[:: max(len(followed) // DRAWS, 1)]]
    first = bases[0]
    print("\n| page | KB | first ms | median ms | p99 ms | median of CPU |")
    print("|---|---|---|---|---|---|")
    for name, paths in (
        ("the first page", ["/"]),
        ("a search for one patch", [f"/?q={name}" for name in patches]),
        ("a search that finds all", ["/?q=tickets"]),
        ("a search that finds nothing", ["/?q=nothing+at+all"]),
        ("patches of a base", [f"/?base={name}" for name in bases]),
        ("patches of a task", [f"/?task=task-{number}" for number in range(DRAWS)]),
        ("patches of a base and a task", [f"/?base={bases[0]}&task=task-{n}" for n in range(9)]),
        ("patches with a published port", ["/?state=published"]),
        ("patches with an asked port", ["/?state=asked"]),
        ("patches with a withdrawn port: none", ["/?state=withdrawn"]),
        ("patches of a task with a rejected port", ["/?task=task-7&state=rejected"]),
        ("page 500 of the patches", [f"/?cursor={world.sizes.patches // 2}"]),
        ("a patch", [f"/patch/{name}" for name in patches]),
        ("the most popular base", [f"/base/{first}"]),
        ("a base", [f"/base/{name}" for name in bases]),
        ("the bases", ["/bases"]),
        ("a port, with evidence and log", [f"/port/{key}" for key in keys]),
        ("the ports published last", ["/ports"]),
        ("the ports that wait", ["/ports?state=waiting"]),
        ("the ports that failed", ["/ports?state=failed"]),
        ("the ports of a patch", [f"/ports?patch={name}" for name in patches]),
        ("the status", ["/status"]),
        ("the status, as JSON", ["/api/status"]),
    ):
        _row(web, name, paths)


def _prepare(database: Database, numbers: list[int]) -> list[str]:
    """Makes some private, and some ports judged: the keys of those of these patches."""
    with database.engine.begin() as connection:
        for statement in PREPARED:
            connection.execute(text(statement))
    keys = []
    ids = [number + 1 for number in numbers]
    mine = select(Port).join(Subscription).where(Subscription.patch_id.in_(ids))
    with database.session() as session:
        for port in session.scalars(mine.where(Port.verdict.is_not(None))):
            port.evidence = evidence()
            keys.append(port.key)
    return keys[:DRAWS]


def _row(web: TestClient, name: str, paths: Iterable[str]) -> None:
    times, busy = [], []
    paths = list(paths)
    for path in (paths * DRAWS)[: max(DRAWS, len(paths))]:
        began, worked = time.perf_counter(), time.process_time()
        answer = web.get(path)
        times.append((time.perf_counter() - began) * 1000)
        busy.append((time.process_time() - worked) * 1000)
        assert answer.status_code == 200, (path, answer.status_code)
    first, *rest = times
    median, p99 = np.percentile(rest, (50, 99))
    figures = f"{first:.1f} | {median:.1f} | {p99:.1f} | {np.median(busy):.1f}"
    print(f"| {name} | {len(answer.text) / 1000:.0f} | {figures} |", flush=True)
