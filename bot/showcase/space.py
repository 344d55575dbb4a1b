"""The pages of `portllm serve` as files, for a static Space: links are relative, and lists by name
stand where a server would search. The newest patches, ports and bases; the data set has them all.
"""

import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from sqlalchemy.orm import Session

from bot.logs import redact
from patch_cards.pages import STYLE, Site, style
from registry.browse import Browse
from registry.views import (
    BaseRow,
    BaseView,
    Page,
    PatchRow,
    PatchView,
    PortRow,
    PortView,
    ReleaseRow,
    View,
)

FOLDER = "pages/"
MOST = 500  # patches, ports and bases with a page
ROWS = 200  # of an index on one page
SHOWN = 20  # of each on the first page
REPO = re.compile(r"(?<![\w.-])(?=([\w.-]+/[\w.-]*\w))")  # overlapping, for those within addresses
ESCAPED = re.compile(r"\\(?:u[0-9a-f]{4}|.)")  # in JSON: its letter is none of the name
OUTSIDE = re.compile(r'<a (?=[^>]*href="https?://)')
V = TypeVar("V", bound=View)


class Links:
    """The address of a page as seen from the file that is written, `here`.

    What has no page leads to its repo on the Hub, and a port to the records.
    """

    def __init__(self, hub: str, records: str) -> None:
        self.hub, self.records = hub, records
        self.here, self.known = "", set[str]()

    def __call__(self, path: str) -> str:
        up = "../" * self.here.count("/")
        if path in ("", STYLE):
            return f"{up}{path or 'index.html'}"
        if unquote(path) in self.known:
            return f"{up}{FOLDER}{path}.html"
        kind, _, name = path.partition("/")
        return f"{self.hub}/{name}" if kind in ("patch", "base") else self.records


@dataclass(frozen=True)
class Records:
    """What the pages show; `views` by the path of their page."""

    patches: list[PatchRow]
    ports: list[PortRow]
    bases: list[BaseRow]
    releases: list[ReleaseRow]
    views: dict[str, View]


def read(session: Session, hidden: Set[str]) -> Records:
    """The newest records, without `hidden`, the repos that not everybody may see."""
    browse = Browse(session, clean=redact)
    patches = _rows(browse.patches, hidden)
    ports = _rows(browse.ports, hidden)
    bases = _rows(browse.bases, hidden)
    views = {
        path: shown
        for path, view in _views(browse, patches, ports, bases)
        if (shown := _without(view, hidden)) is not None
    }
    patches = [row for row in patches if f"patch/{row.repo}" in views]
    releases = [row for row in browse.newest_releases().items if not _names(row) & hidden]
    return Records(patches, ports, bases, releases, views)


def write(found: Records, folder: Path, hub: str, dataset: str) -> None:
    """Write all pages into `folder`; `dataset` has the records on the Hub at the address `hub`."""
    links = Links(hub, f"{hub}/datasets/{dataset}/viewer/ports")
    site = Site(links, hub, live=False)
    indexes = _indexes(found.patches)
    links.known = {*found.views, *indexes}
    first = Page(items=found.patches[:SHOWN], next=None)
    home = site.home(first, found.ports[:SHOWN], found.releases, found.bases[:SHOWN], {})
    _save(folder / "index.html", home)
    (folder / STYLE).write_text(style(), encoding="utf-8")
    for path, view in found.views.items():
        links.here = f"{FOLDER}{path}.html"
        _save(folder / links.here, _render(site, view))
    for path, (title, groups, others) in indexes.items():
        links.here = f"{FOLDER}{path}.html"
        _save(folder / links.here, site.index(title, groups, others))


def _views(
    browse: Browse, patches: list[PatchRow], ports: list[PortRow], bases: list[BaseRow]
) -> Iterator[tuple[str, View | None]]:
    yield from ((f"patch/{row.repo}", browse.patch(row.repo)) for row in patches)
    yield from ((f"port/{row.key}", browse.port(row.key)) for row in ports)
    yield from ((f"base/{repo}", browse.base(repo)) for repo in {row.repo: None for row in bases})


def _render(site: Site, view: View) -> str:
    if isinstance(view, PatchView):
        return site.patch(view)
    if isinstance(view, PortView):
        return site.port(view)
    assert isinstance(view, BaseView)
    return site.base(view)


def _rows(ask: Callable[..., Page[V]], hidden: Set[str]) -> list[V]:
    """The newest of a list that names no hidden repo."""
    page = ask()
    rows = list(page.items)
    while page.next is not None and len(rows) < MOST:
        page = ask(cursor=page.next)
        rows += page.items
    return [row for row in rows[:MOST] if not _names(row) & hidden]


def _names(view: View) -> set[str]:
    """All that may be the name of a repo in it."""
    return set(REPO.findall(ESCAPED.sub(" ", view.model_dump_json())))


def _without(view: View | None, hidden: Set[str]) -> View | None:
    """`view` without the rows that name a hidden repo; None if it names one all the same.

    When somebody last looked is left out: it would make each page another one every hour.
    """

    def page(rows: Page[V]) -> Page[V]:
        return rows.model_copy(update={"items": kept(rows.items)})

    def kept(rows: Sequence[V]) -> list[V]:
        return [row for row in rows if not _names(row) & hidden]

    changes: dict[str, Any] = {}
    if isinstance(view, PatchView):
        changes = {"subscriptions": page(view.subscriptions)}
    elif isinstance(view, PortView):
        changes = {"log": kept(view.log)}
    elif isinstance(view, BaseView):
        rows = [row.model_copy(update={"looked_at": None}) for row in kept(view.followings)]
        changes = {"followings": rows, "releases": page(view.releases),
                   "followers": page(view.followers)}  # fmt: skip
    shown = view and view.model_copy(update=changes)
    return None if shown is None or _names(shown) & hidden else shown


Group = tuple[str, list[PatchRow]]


def _indexes(patches: list[PatchRow]) -> dict[str, tuple[str, list[Group], dict[str, str]]]:
    """Of each page its title, groups of patches, and the other pages of this list by path."""
    orders: dict[str, tuple[str, Callable[[PatchRow], str]]] = {
        "patches": ("All patches", lambda row: row.repo[0].upper()),
        "bases": ("Patches by base", lambda row: row.base_repo),
        "tasks": ("Patches by task", lambda row: row.task or "Without a task"),
    }
    found = {}
    for name, (title, group) in orders.items():
        rows = sorted(patches, key=lambda row: (group(row).lower(), row.repo.lower()))
        parts = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)] or [[]]
        paths = [name if not number else f"{name}-{number + 1}" for number in range(len(parts))]
        others = {path: f"from {group(part[0])}" for path, part in zip(paths, parts, strict=True)
                  if len(parts) > 1}  # fmt: skip
        for path, part in zip(paths, parts, strict=True):
            groups = [(key, list(some)) for key, some in groupby(part, group)]
            found[path] = (title, groups, others)
    return found


def _save(file: Path, html: str) -> None:
    """A Space is shown in a frame, in which the Hub's own pages may not be: they get a tab."""
    file.parent.mkdir(parents=True, exist_ok=True)
    outside = OUTSIDE.sub('<a target="_blank" rel="noopener" ', html)
    file.write_text(outside, encoding="utf-8")
