"""A page asks the database for as much in a registry of any size: what SQLite does is counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from benchmarks.records_inputs import Sizes, World, base_repo, fill, patch_repo
from registry.browse import Browse
from registry.database import Database
from registry.models import PortState

UNIT = 10  # of SQLite's own instructions
# One of a hundred published ports was rejected once.
JUDGED = """
UPDATE ports SET action = CASE state
    WHEN 'asked' THEN 'ask'
    WHEN 'rejected' THEN 'reject'
    WHEN 'published' THEN CASE WHEN subscription_id % 100 = 3 THEN 'reject' ELSE 'publish' END
END
"""
RELEASE = 2001  # of the most popular base
SIZES = [Sizes(100, 50, 200 * times, 1000 * times) for times in (1, 4)]


class Counted:
    """A registry, and the instructions that SQLite has spent on it."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        folder.mkdir()
        self.database, self.world = Database(f"sqlite:///{folder / 'registry.db'}"), World(sizes)
        fill(self.database, self.world)
        self.spent = 0
        with self.database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE patches SET private = (id % 50 = 0)")
            connection.exec_driver_sql("UPDATE patches SET task = 'task-' || (id % 20)")
            connection.exec_driver_sql(JUDGED)
        event.listen(self.database.engine, "checkout", self._listen)

    def _listen(self, connection: Any, *_: object) -> None:
        def count() -> int:
            self.spent += 1
            return 0

        connection.set_progress_handler(count, UNIT)

    @contextmanager
    def browse(self) -> Iterator[Browse]:
        with self.database.session() as session:
            yield Browse(session)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Counted]:
    folder = tmp_path_factory.mktemp("scale")
    return [Counted(folder / str(number), sizes) for number, sizes in enumerate(SIZES)]


def spent(place: Counted, page: str) -> int:
    """On one page."""
    patch = patch_repo(int(place.world.owner[7]), 7)
    rare = base_repo(90)
    with place.browse() as browse:
        asked = {
            "patches": lambda: browse.patches(),
            "a page of patches": lambda: browse.patches(cursor="100"),
            "of a base": lambda: browse.patches(base=rare),
            "of a task": lambda: browse.patches(task="task-3"),
            "of a base and a task": lambda: browse.patches(base=rare, task="task-3"),
            "with a published port": lambda: browse.patches(state=PortState.PUBLISHED),
            "with no such port": lambda: browse.patches(state=PortState.WITHDRAWN),
            "with a rejected port": lambda: browse.patches(action="reject"),
            "with a published port that asks: none": lambda: browse.patches(
                state=PortState.PUBLISHED, action="ask"
            ),
            "a patch": lambda: browse.patch(patch),
            "bases": lambda: browse.bases(),
            "ports": lambda: browse.ports(),
            "failed ports": lambda: browse.ports(PortState.FAILED),
            "the next failed ports": lambda: browse.ports(
                PortState.FAILED, cursor=browse.ports(PortState.FAILED).next
            ),
            "ports of a patch": lambda: browse.ports(patch=patch),
            "rejected ports of a patch": lambda: browse.ports(patch=patch, action="reject"),
            "ports of a patch to a release": lambda: browse.ports(patch=patch, release=RELEASE),
            "ports to a release": lambda: browse.ports(PortState.PUBLISHED, release=RELEASE),
            "published ports to a release, rejected": lambda: browse.ports(
                PortState.PUBLISHED, release=RELEASE, action="reject"
            ),
            "ports that ask": lambda: browse.ports(action="ask"),
            "the next ports that ask": lambda: browse.ports(
                action="ask", cursor=browse.ports(action="ask").next
            ),
            "published ports, rejected": lambda: browse.ports(PortState.PUBLISHED, action="reject"),
            "published ports that ask: none": lambda: browse.ports(
                PortState.PUBLISHED, action="ask"
            ),
            "status": lambda: browse.status({}),
        }[page]
        asked()
        before = place.spent
        asked()
        return place.spent - before


@pytest.mark.parametrize(
    "page",
    ["patches", "a page of patches", "of a base", "of a task", "of a base and a task",
     "with a published port", "with no such port", "with a rejected port",
     "with a published port that asks: none", "a patch", "bases", "ports", "failed ports",
     "the next failed ports", "ports of a patch", "rejected ports of a patch",
     "ports of a patch to a release", "ports to a release",
     "published ports to a release, rejected", "ports that ask", "the next ports that ask",
     "published ports, rejected", "published ports that ask: none", "status"],
)  # fmt: skip
def test_it_costs_the_same_in_a_registry_of_four_times_the_size(
    places: list[Counted], page: str
) -> None:
    small, large = (spent(place, page) for place in places)
    assert large <= 1.6 * small + 100


def test_what_costs_more_would_be_seen(places: list[Counted]) -> None:
    def scanned(place: Counted) -> int:
        before = place.spent
        with place.database.session() as session:
            session.connection().exec_driver_sql("SELECT count(*) FROM ports WHERE reason = ''")
        return place.spent - before

    small, large = map(scanned, places)
    assert large > 3 * small > 2000
