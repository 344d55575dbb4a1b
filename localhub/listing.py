"""Lists of repositories: `GET /api/models`, `/api/datasets` and `/api/spaces`."""

from typing import Any

from starlette.responses import JSONResponse, Response

from localhub.auth import Access, authorize
from localhub.errors import HubError
from localhub.hub import Call
from localhub.info import describe, only
from localhub.paging import number, page
from localhub.tree import resolve

_HEAVY = {"siblings", "cardData", "config", "baseModels"}
_SORTS = ("lastModified", "createdAt", "downloads", "likes", "trendingScore")
MAX_PAGE = 1000


def visible(call: Call, kind: str) -> list[dict[str, Any]]:
    """The descriptions of all repositories the user may see."""
    rows = []
    for repo in call.hub.repos.list(kind):
        try:
            authorize(call.user, repo, Access.SEE)
        except HubError:
            continue
        rows.append(describe(repo, resolve(repo.path, "refs/heads/main")))
    return rows


def _wanted(call: Call, row: dict[str, Any]) -> bool:
    author, search = call.query("author"), call.query("search")
    pipeline, gated = call.query("pipeline_tag"), call.query("gated")
    # Older clients put several tags into one filter, separated by commas.
    tags = {tag for text in call.queries("filter") for tag in text.split(",") if tag}
    return (
        author in ("", row["author"])
        and search.lower() in row["id"].lower()
        and pipeline in ("", row["pipeline_tag"])
        and (not gated or call.flag("gated") == bool(row["gated"]))
        and tags <= set(row["tags"])
    )


def listing(call: Call) -> Response:
    """GET ?author&search&filter&pipeline_tag&gated&sort&limit&full&cardData&config&expand"""
    rows = [row for row in visible(call, call.kind) if _wanted(call, row)]
    sort = call.query("sort")
    if sort:
        if sort not in _SORTS:
            raise HubError(400, f"sort must be one of {', '.join(_SORTS)}")
        rows.sort(key=lambda row: row.get(sort, 0), reverse=True)
    size = min(number(call, "limit", MAX_PAGE), MAX_PAGE)
    shown, headers = page(call, rows, size)
    expand = call.queries("expand")
    if expand:
        return JSONResponse([only(row, expand) for row in shown], headers=headers)
    full = call.flag("full")
    hidden = {key for key in _HEAVY if not full and not call.flag(key)}
    slim = [{key: value for key, value in row.items() if key not in hidden} for row in shown]
    return JSONResponse(slim, headers=headers)
