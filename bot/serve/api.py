"""`/api`: what the pages show, as JSON, and the controls for whoever has the token."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from pydantic import BaseModel
from sqlalchemy.orm import Session

from bot.address import parse_repo
from bot.context import Context
from bot.running import controls
from bot.serve.visitors import Visitors
from bot.serve.web import Cursor, Id, Release, Repo, Text, found
from bot.trust import takeback
from judging.policy import Action
from porting.errors import UsageError
from registry.models import Port, PortState, Subscription
from registry.views import (
    BaseRow,
    BaseView,
    Line,
    Page,
    PatchRow,
    PatchView,
    PortRow,
    PortView,
    StatusView,
)

MOST_FOUND = 10
Why = Annotated[str, Query(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]


class Problem(BaseModel):
    """An error (RFC 9457)."""

    title: str
    status: int
    detail: str


class Found(BaseModel):
    patches: list[PatchRow]
    bases: list[BaseRow]


class Done(BaseModel):
    """What was done: to which ports or targets, and how it goes on."""

    of: list[str]
    said: str


def reading(visitors: Visitors) -> APIRouter:
    made = APIRouter(prefix="/api", tags=["read"])

    @made.get("/search", summary="Patches and bases with all these words in their names")
    def search(request: Request, q: Text) -> Found:
        with visitors.browse(request) as browse:
            patches, bases = browse.patches(q).items, browse.bases(q).items
        return Found(patches=patches[:MOST_FOUND], bases=bases[:MOST_FOUND])

    @made.get("/patches", summary="Patches, the newest first")
    def patches(
        request: Request,
        q: Text = "",
        base: Text = "",
        task: Text = "",
        state: PortState | None = None,
        verdict: Action | None = None,
        cursor: Cursor = None,
    ) -> Page[PatchRow]:
        with visitors.browse(request) as browse:
            return browse.patches(q, base, task, state, cursor, verdict)

    @made.get("/patches/{repo:path}", summary="A patch, its subscriptions and their ports")
    def patch(request: Request, repo: Repo, cursor: Cursor = None) -> PatchView:
        with visitors.browse(request) as browse:
            view: PatchView = found(browse.patch(repo, cursor), f"patch {repo}")
            return view

    @made.get("/bases", summary="What is followed")
    def bases(request: Request, q: Text = "", cursor: Cursor = None) -> Page[BaseRow]:
        with visitors.browse(request) as browse:
            return browse.bases(q, cursor)

    @made.get("/bases/{repo:path}", summary="A base, its releases, and who follows it")
    def base(
        request: Request, repo: Repo, cursor: Cursor = None, followers: Cursor = None
    ) -> BaseView:
        with visitors.browse(request) as browse:
            view: BaseView = found(browse.base(repo, cursor, followers), f"base {repo}")
            return view

    @made.get(
        "/ports",
        summary="Ports: those published last, or by state, patch, release and verdict",
    )
    def ports(
        request: Request,
        state: PortState | None = None,
        patch: Text = "",
        release: Release = None,
        verdict: Action | None = None,
        cursor: Cursor = None,
    ) -> Page[PortRow]:
        with visitors.browse(request) as browse:
            return browse.ports(state, patch, release, cursor, verdict)

    @made.get("/ports/{key}", summary="A port: what it is made of, and what was found")
    def port(request: Request, key: Repo) -> PortView:
        with visitors.browse(request) as browse:
            view: PortView = found(browse.port(key), f"port {key}")
            return view

    @made.get("/ports/{key}/log", summary="Every attempt of a port, step by step")
    def log(request: Request, key: Repo) -> list[Line]:
        return port(request, key).log

    @made.get("/status", summary="What is at work, what waits and why, and what failed")
    def status(request: Request) -> StatusView:
        return visitors.status(request)

    return made


def changing(context: Context, visitors: Visitors) -> APIRouter:
    """The controls. All is in the address: no body is read of whoever has no token."""
    made = APIRouter(prefix="/api", tags=["control"], dependencies=[Depends(visitors.check)])

    def port(key: str, what: Callable[[Session, str], Port]) -> Done:
        with _changed(), context.database.session() as session:
            found(session.get(Port, key), f"port {key}")
            done = what(session, key)
            return Done(of=[done.key], said=done.reason)

    def subscription(
        id: int, what: Callable[[Session, str], list[Subscription]], said: str
    ) -> Done:
        with _changed(), context.database.session() as session:
            target = found(session.get(Subscription, id), f"subscription {id}").to_repo
            return Done(of=[each.to_repo for each in what(session, target)], said=said)

    @made.post("/ports/{key}/retry", summary="Begin a port again, from the start")
    def retry(key: Repo) -> Done:
        return port(key, controls.retry)

    @made.post("/ports/{key}/cancel", summary="Stop a port, after the step that it is at")
    def cancel(key: Repo) -> Done:
        return port(key, controls.cancel)

    @made.post("/ports/{key}/withdraw", summary="Say on a port's card that it is not to be used")
    def withdraw(key: Repo, reason: Why) -> Done:
        with context.database.session() as session:
            found(session.get(Port, key), f"port {key}")
        with _changed():
            return Done(of=[takeback.withdraw(context, key, reason)], said="Withdrawn.")

    @made.post("/rollback", summary="Put the port before the present one back onto a repo's main")
    def rollback(to: Why) -> Done:
        with _changed():
            left, restored = takeback.rollback(context, parse_repo(to).repo)
        return Done(of=[left, restored], said=f"{left} is taken back, {restored} is on main.")

    @made.post("/subscriptions/{id}/pause", summary="Begin and publish nothing for a subscription")
    def pause(id: Id) -> Done:
        return subscription(id, controls.pause, "Paused.")

    @made.post("/subscriptions/{id}/resume", summary="Go on with it")
    def resume(id: Id) -> Done:
        return subscription(id, controls.resume, "It goes on.")

    @made.post("/pause", summary="Begin and publish nothing at all")
    def pause_all(reason: Why) -> Done:
        with context.database.session() as session:
            controls.pause_all(session, reason)
        return Done(of=["everything"], said="Paused.")

    @made.post("/resume", summary="End the pause of everything")
    def resume_all() -> Done:
        with _changed(), context.database.session() as session:
            controls.resume_all(session)
        return Done(of=["everything"], said="It goes on.")

    return made


@contextmanager
def _changed() -> Iterator[None]:
    """What can't be done to what is there is a conflict; the message says what can be."""
    try:
        yield
    except UsageError as error:
        raise HTTPException(409, str(error)) from error
