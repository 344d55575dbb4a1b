"""Lists of repositories: `GET /api/models`, `/api/datasets` and `/api/spaces`."""

from collections.abc import Iterator
from typing import Any

from starlette.responses import JSONResponse, Response

from localhub.auth import Access, authorize
from localhub.errors import HubError
from localhub.hub import Call
from localhub.info import describe
from localhub.moves import MAIN, main_head
from localhub.paging import number, page
from localhub.repos import Repo
from localhub.tree import resolve

_SLIM = (
    *("author", "sha", "lastModified", "createdAt", "private", "gated", "disabled", "downloads"),
    *("likes", "tags", "library_name", "pipeline_tag", "modelId", "sdk"),
)
_HEAVY = ("siblings", "cardData", "config", "baseModels")
_SORTS = ("lastModified", "createdAt", "downloads", "likes", "trendingScore")
MAX_PAGE = 1000


def visible(call: Call, kind: str, author: str = "") -> Iterator[Repo]:
    """The repositories the user may see, or those of one namespace."""
    for repo in call.hub.repos.list(kind, author):
        try:
            yield authorize(call.user, repo, Access.SEE)
        except HubError:
            continue


def _head(call: Call, repo: Repo) -> str:
    return resolve(repo.path, MAIN, call.stale) if call.stale else main_head(repo.path)


def _wanted(call: Call, repo: Repo) -> bool:
    if call.query("search").lower() not in repo.id.lower():
        return False
    # Older clients put several tags into one filter, separated by commas.
    tags = {tag for text in call.queries("filter") for tag in text.split(",") if tag}
    pipeline, gated = call.query("pipeline_tag"), call.query("gated")
    if gated and call.flag("gated") != bool(repo.settings["gated"]):
        return False
    if not tags and not pipeline:
        return True
    row = describe(repo, _head(call, repo), ("tags", "pipeline_tag"))
    return tags <= set(row["tags"]) and pipeline in ("", row["pipeline_tag"])


def _sorted(call: Call, repos: list[Repo], key: str) -> list[Repo]:
    if key not in _SORTS:
        raise HubError(400, f"sort must be one of {', '.join(_SORTS)}")
    values = {repo.id: describe(repo, _head(call, repo), (key,)).get(key, 0) for repo in repos}
    return sorted(repos, key=lambda repo: values[repo.id], reverse=True)


def listing(call: Call) -> Response:
    """GET ?author&search&filter&pipeline_tag&gated&sort&limit&full&cardData&config&expand

    Cheap for thousands of repositories: what no filter, sort or field asks for is not read.
    """
    repos = [r for r in visible(call, call.kind, call.query("author")) if _wanted(call, r)]
    if call.query("sort"):
        repos = _sorted(call, repos, call.query("sort"))
    size = min(number(call, "limit", MAX_PAGE), MAX_PAGE)
    shown, headers = page(call, repos, size)
    asked = [key for key in _HEAVY if call.flag("full") or call.flag(key)]
    keys = call.queries("expand") or [*_SLIM, *asked]
    rows: list[dict[str, Any]] = [describe(repo, _head(call, repo), keys) for repo in shown]
    return JSONResponse(rows, headers=headers)
