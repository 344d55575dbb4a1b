"""The pages of the registry. They need no JavaScript, and nothing from anywhere else."""

from collections.abc import Callable
from typing import Annotated, Any, get_args

from fastapi import APIRouter, HTTPException, Path, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from bot.serve.visitors import Visitors
from judging.policy import Action
from patch_cards.pages import STYLE, Site, style
from porting.errors import UsageError
from registry.models import PortState

# A NUL is no text for Postgres.
Text = Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")]
Cursor = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")]
Repo = Annotated[str, Path(max_length=200, pattern=r"^[^\x00]*$")]
Id = Annotated[int, Path(ge=0, lt=2**31)]
Release = Annotated[int | None, Query(ge=0, lt=2**31)]
ROBOTS = "User-agent: *\nDisallow: /api/\nDisallow: /ports\nDisallow: /*?\n"
SHOWN = 8  # ports, releases and bases on the first page


def found(view: Any, what: str) -> Any:
    """Raises HTTPException where there is none: whether it is private is not told."""
    if view is None:
        raise HTTPException(404, f"There is no {what} here.")
    return view


def router(
    visitors: Visitors, site: Site, operations: Callable[[], list[tuple[str, str, str]]]
) -> APIRouter:
    made = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    @made.get("/")
    def home(
        request: Request,
        q: Text = "",
        base: Text = "",
        task: Text = "",
        state: Text = "",
        verdict: Text = "",
        cursor: Cursor = None,
    ) -> str:
        given = {"q": q, "base": base, "task": task, "state": state, "verdict": verdict}
        asked = {name: value.strip() for name, value in given.items() if value.strip()}
        with visitors.browse(request) as browse:
            patches = browse.patches(
                asked.get("q", ""), asked.get("base", ""), asked.get("task", ""),
                _state(asked.get("state", "")), cursor, _verdict(asked.get("verdict", "")),
            )  # fmt: skip
            first = not asked and cursor is None
            return site.home(
                patches=patches,
                ports=browse.ports().items[:SHOWN] if first else [],
                releases=browse.newest_releases().items if first else [],
                bases=browse.bases(asked["q"]).items[:SHOWN] if "q" in asked else [],
                asked=asked,
            )

    @made.get("/patch/{repo:path}")
    def patch(request: Request, repo: Repo, cursor: Cursor = None) -> str:
        with visitors.browse(request) as browse:
            return site.patch(found(browse.patch(repo, cursor), f"patch {repo}"))

    @made.get("/bases")
    def bases(request: Request, cursor: Cursor = None) -> str:
        with visitors.browse(request) as browse:
            return site.bases(browse.bases(cursor=cursor))

    @made.get("/base/{repo:path}")
    def base(request: Request, repo: Repo, cursor: Cursor = None, followers: Cursor = None) -> str:
        with visitors.browse(request) as browse:
            return site.base(found(browse.base(repo, cursor, followers), f"base {repo}"))

    @made.get("/ports")
    def ports(
        request: Request,
        state: Text = "",
        patch: Text = "",
        release: Release = None,
        verdict: Text = "",
        cursor: Cursor = None,
    ) -> str:
        given = {"state": state, "patch": patch, "release": str(release or ""), "verdict": verdict}
        with visitors.browse(request) as browse:
            rows = browse.ports(_state(state), patch, release, cursor, _verdict(verdict))
        return site.ports(rows, {name: value for name, value in given.items() if value})

    @made.get("/port/{key}")
    def port(request: Request, key: Repo) -> str:
        with visitors.browse(request) as browse:
            return site.port(found(browse.port(key), f"port {key}"))

    @made.get("/status")
    def status(request: Request) -> str:
        return site.status(visitors.status(request))

    @made.get("/api")
    def api() -> str:
        return site.api(operations())

    @made.get(f"/{STYLE}")
    def stylesheet() -> Response:
        lasting = {"Cache-Control": "public, max-age=3600"}
        return Response(style(), media_type="text/css", headers=lasting)

    @made.get("/robots.txt")
    def robots() -> Response:
        return PlainTextResponse(ROBOTS)

    return made


def _state(name: str) -> PortState | None:
    if name and name not in set(PortState):
        raise UsageError(f"{name} is no state: it is one of {', '.join(PortState)}.")
    return PortState(name) if name else None


def _verdict(name: str) -> Action | None:
    known: tuple[Action, ...] = get_args(Action)
    if name and name not in known:
        raise UsageError(f"{name} is no verdict: it is one of {', '.join(known)}.")
    return next((action for action in known if action == name), None)
