"""A registry of any size, written in bulk: what a bot that has run for two years would know."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha1
from typing import Any

import numpy as np
from sqlalchemy import Connection

from registry.database import Database
from registry.models import Base, Patch, Port, Record, Release, Subscription

ROUNDS = 20  # releases with weights of each base, one a month; each is followed by a quiet one
MONTH = timedelta(days=30)
BEGIN = datetime(2025, 1, 1)
TOP = 0.86  # Zipf's exponent: of 10,000 bases the most popular one has a twentieth of everything
REASON = (
    "The patch survived, and so did the upgrade: +0.8 points [+0.1, +1.5] against the old pair; "
    "guard -0.1 [-0.4, +0.2]."
)

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Sizes:
    """How many of each. There are ten ports to a subscription on average."""

    bases: int
    owners: int
    patches: int
    subscriptions: int

    @classmethod
    def scaled(cls, scale: float) -> "Sizes":
        full = (10_000, 20_000, 100_000, 1_000_000)
        return cls(*(max(round(scale * number), 10) for number in full))


class World:
    """Who subscribed what, and when. Base and owner number n are drawn with weight n**-0.86.

    A subscription joined before one of the rounds, all equally likely; it is settled on the last
    one (85 %), the one before (13 %), and so on.
    """

    def __init__(self, sizes: Sizes, seed: int = 1) -> None:
        draw = np.random.default_rng(seed)
        self.sizes = sizes
        self.owner = draw.choice(sizes.owners, sizes.patches, p=_zipf(sizes.owners))
        self.patch = draw.integers(sizes.patches, size=sizes.subscriptions)
        self.base = draw.choice(sizes.bases, sizes.subscriptions, p=_zipf(sizes.bases))
        self.joined = draw.integers(1, ROUNDS, sizes.subscriptions)
        behind = draw.geometric(0.85, sizes.subscriptions) - 1
        self.settled = np.maximum(ROUNDS - 1 - behind, self.joined - 1)
        self.draw = draw

    def tables(self) -> Iterator[tuple[type[Record], list[str], Iterable[Row]]]:
        """Each table with some of its columns, and its rows, parents first."""
        columns = "repo owner sha kind portability base_repo base_sha evaluation added_at"
        yield Patch, ["id", *columns.split()], self._patches()
        columns = (
            "rule repo ref head_repo head_ref head_sha observed_at looked_at changed_at due_at"
        )
        yield Base, ["id", *columns.split()], self._bases()
        columns = "base_id from_repo from_ref from_sha repo ref sha change reason attempt seen_at"
        yield Release, ["id", *columns.split()], self._releases()
        columns = "patch_id base_id to_repo form from_repo from_sha settled_repo settled_sha"
        yield Subscription, ["id", *columns.split(), "created_at"], self._subscriptions()
        columns = "key subscription_id release_id job state reason attempt due_at verdict url"
        dates = ["published_sha", "published_at", "created_at", "updated_at"]
        yield Port, [*columns.split(), *dates], self._ports()

    def _patches(self) -> Iterator[Row]:
        evaluation = json.dumps({"name": "tickets", "items": "items.jsonl", "count": 400})
        for patch, owner in enumerate(self.owner.tolist()):
            base = patch % self.sizes.bases
            yield (
                patch + 1, patch_repo(owner, patch), owner_name(owner), sha("patch", patch),
                "LoRA", "A", base_repo(base), sha(base, 0), evaluation, BEGIN.isoformat(" "),
            )  # fmt: skip

    def _bases(self) -> Iterator[Row]:
        """One of ten follows repos by pattern, one of a hundred a tree."""
        for base in range(self.sizes.bases):
            rule = "repos" if base % 10 == 7 else "tree" if base % 100 == 99 else "ref"
            repo, end = base_repo(base), _when(ROUNDS)
            name = f"{repo}-v*" if rule == "repos" else repo
            head = sha(base, f"quiet {ROUNDS - 1}")
            yield base + 1, rule, name, "main", repo, "main", head, end, end, end, end

    def _releases(self) -> Iterator[Row]:
        loud = ("weights", "The shapes are the same, other weights: 291 of 291 tensors.")
        for month in range(ROUNDS):
            for quiet in (False, True):
                change = ("metadata", "Only README.md changed.") if quiet else loud
                seen = _when(month + 0.5 * quiet)
                for base in range(self.sizes.bases):
                    repo = base_repo(base)
                    was = sha(base, month if quiet else f"quiet {month - 1}")
                    new = sha(base, f"quiet {month}" if quiet else month)
                    yield (
                        self._release(month, base, quiet), base + 1, repo, "main", was,
                        repo, "main", new, *change, 1, seen,
                    )  # fmt: skip

    def _release(self, month: int, base: int, quiet: bool = False) -> int:
        return 1 + (2 * month + quiet) * self.sizes.bases + base

    def _subscriptions(self) -> Iterator[Row]:
        columns = (self.patch, self.base, self.joined, self.settled)
        for number, row in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            patch, base, joined, settled = row
            repo, created = base_repo(base), _when(joined - 0.25)
            owner = int(self.owner[patch])
            yield (
                number + 1, patch + 1, base + 1, target(owner, number), "adapter",
                repo, sha(base, joined - 1), repo, sha(base, settled), created,
            )  # fmt: skip

    def _ports(self) -> Iterator[Row]:
        """In the order of time, so that those of one subscription lie far apart."""
        order = np.argsort(self.base, kind="stable")
        judged = json.dumps({"action": "publish", "reason": REASON})
        for month in range(1, ROUNDS):
            created = _when(month + 0.01)
            chosen = order[self.joined[order] <= month]
            keys = self.draw.integers(2**63, size=len(chosen))
            chances = self.draw.random(len(chosen))
            for number, key, chance in zip(
                chosen.tolist(), keys.tolist(), chances.tolist(), strict=True
            ):
                patch, base = int(self.patch[number]), int(self.base[number])
                name, new = f"port-{key:016x}", sha(base, month)
                to = target(int(self.owner[patch]), number)
                release = self._release(month, base)
                job = self._job(name, patch, base, new, to)
                if month > self.settled[number]:
                    state = (
                        "failed" if chance < 0.3 else "refused" if chance < 0.6 else "superseded"
                    )
                    reason = f"{base_repo(base)}@{new[:7]} came before this one was begun."
                    yield (
                        name, number + 1, release, job, state, reason, 1, created,
                        None, None, None, None, created, created,
                    )  # fmt: skip
                    continue
                state = "published" if chance < 0.9 else "rejected" if chance < 0.98 else "asked"
                url = f"https://huggingface.co/{to}/tree/base-{new[:7]}"
                yield (
                    name, number + 1, release, job, state, REASON, 1, created,
                    judged, url, new, created, created, created,
                )  # fmt: skip

    def _job(self, key: str, patch: int, base: int, new: str, to: str) -> str:
        """As `json.dumps` writes a `Job`, but faster."""
        owner, repo, trained_on = self.owner[patch], base_repo(base), patch % self.sizes.bases
        return (
            f'{{"key": "{key}", "patch_repo": "{patch_repo(owner, patch)}", '
            f'"patch_sha": "{sha("patch", patch)}", "old_repo": "{base_repo(trained_on)}", '
            f'"old_sha": "{sha(trained_on, 0)}", "new_repo": "{repo}", "new_sha": "{new}", '
            f'"form": "adapter", "to_repo": "{to}", "policy": null, "verdict_policy": null, '
            '"again": 0}'
        )


def owner_name(owner: int) -> str:
    return f"owner-{owner:05d}"


def patch_repo(owner: int, patch: int) -> str:
    return f"owner-{owner:05d}/tickets-routing-lora-{patch:06d}"


def base_repo(base: int) -> str:
    return f"vendor-{base % 997:03d}/Model-{base:05d}-Instruct"


def target(owner: int, subscription: int) -> str:
    return f"owner-{owner:05d}/tickets-routing-ported-{subscription:07d}"


def sha(*of: object) -> str:
    """A commit: the same for the same `of`."""
    found = _shas.get(of)
    if found is None:
        found = _shas[of] = sha1(repr(of).encode()).hexdigest()
    return found


_shas: dict[tuple[object, ...], str] = {}


def _when(month: float) -> str:
    return (BEGIN + month * MONTH).isoformat(" ", "microseconds")


def _zipf(number: int) -> np.ndarray:
    weights = np.arange(1, number + 1) ** -TOP
    return weights / weights.sum()


def fill(database: Database, world: World) -> None:
    """Write the world into an empty registry, its plain indexes last."""
    is_sqlite = database.engine.dialect.name == "sqlite"
    with database.engine.connect() as connection:
        if is_sqlite:
            for pragma in ("journal_mode=OFF", "synchronous=OFF", "foreign_keys=OFF"):
                connection.exec_driver_sql(f"PRAGMA {pragma}")
            connection.exec_driver_sql("PRAGMA cache_size=-3000000")
        else:
            connection.exec_driver_sql("SET session_replication_role = replica")  # no foreign keys
        for record, columns, rows in world.tables():
            table = record.__table__
            for index in table.indexes:
                index.drop(connection)
            (_insert if is_sqlite else _copy)(connection, table.name, columns, rows)
            for index in table.indexes:
                index.create(connection)
            connection.commit()
        if is_sqlite:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        connection.invalidate()  # its settings are not for those who measure
    if not is_sqlite:  # whose autovacuum would soon have come by itself
        with database.engine.connect() as connection:
            autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
            autocommit.exec_driver_sql("VACUUM ANALYZE")


def _insert(connection: Connection, table: str, columns: list[str], rows: Iterable[Row]) -> None:
    marks = ", ".join("?" * len(columns))
    cursor = connection.connection.cursor()
    cursor.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)


def _copy(connection: Connection, table: str, columns: list[str], rows: Iterable[Row]) -> None:
    cursor = connection.connection.cursor()
    with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
    if columns[0] == "id":
        newest = f"(SELECT max(id) FROM {table})"
        cursor.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {newest})")
