"""The hub as one Starlette application over a folder."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from localhub import (
    commits,
    discussions,
    errors,
    info,
    lfs,
    listing,
    refs,
    repo_api,
    resolve,
    smart_http,
    tree,
    upload,
    webhook_api,
)
from localhub.auth import Access
from localhub.collections_api import collection_routes
from localhub.faults import FaultMiddleware, Faults
from localhub.hub import Call, Hub, api, route, web
from localhub.job_api import job_routes
from localhub.limits import LimitMiddleware, Limits
from localhub.repos import KINDS
from localhub.traffic import Traffic, TrafficMiddleware
from localhub.web import pages
from localhub.xet import xet_routes, xet_token

SEE, CONTENT, CONTRIBUTE, WRITE = Access.SEE, Access.CONTENT, Access.CONTRIBUTE, Access.WRITE


def _account_routes() -> list[BaseRoute]:
    hooks = "/api/settings/webhooks"
    return [
        route("/api/whoami-v2", repo_api.whoami, "GET"),
        route("/api/validate-yaml", upload.validate_yaml, "POST"),
        route("/api/repos/create", repo_api.create, "POST"),
        route("/api/repos/delete", repo_api.delete, "DELETE"),
        route("/api/repos/move", repo_api.move, "POST"),
        route(hooks, webhook_api.list_all, "GET"),
        route(hooks, webhook_api.create, "POST"),
        route(f"{hooks}/{{id}}", webhook_api.get, "GET"),
        route(f"{hooks}/{{id}}", webhook_api.update, "POST"),
        route(f"{hooks}/{{id}}", webhook_api.delete, "DELETE"),
        route(f"{hooks}/{{id}}/enable", webhook_api.enable, "POST"),
        route(f"{hooks}/{{id}}/disable", webhook_api.disable, "POST"),
        *(route(f"/api/{path}", listing.listing, "GET", kind=kind) for kind, path in KINDS.items()),
    ]


def _xet(kind: str) -> Callable[[Call], Response]:
    return lambda call: xet_token(call, kind)


def _repo_routes() -> list[BaseRoute]:
    return [
        *api("", info.info, "GET", SEE),
        *api("/revision/{rev}", info.info, "GET", SEE),
        *api("/tree/{rev}", tree.tree, "GET", SEE),
        *api("/tree/{rev}/{path:path}", tree.tree, "GET", SEE),
        *api("/paths-info/{rev}", tree.paths_info, "POST", SEE),
        *api("/refs", refs.refs, "GET", SEE),
        *api("/commits/{rev}", commits.list_commits, "GET", SEE),
        *api("/preupload/{rev}", upload.preupload, "POST", CONTRIBUTE),
        *api("/xet-write-token/{rev:path}", _xet("write"), "GET", CONTRIBUTE),
        *api("/xet-read-token/{rev:path}", _xet("read"), "GET", CONTENT),
        *api("/lfs-files/duplicate", lfs.duplicate, "POST", CONTENT),
        *api("/commit/{rev}", commits.commit, "POST", CONTRIBUTE),
        *api("/branch/{ref}", refs.create_branch, "POST", WRITE),
        *api("/branch/{ref}", refs.delete_branch, "DELETE", WRITE),
        *api("/tag/{ref}", refs.create_tag, "POST", WRITE),
        *api("/tag/{ref}", refs.delete_tag, "DELETE", WRITE),
        *api("/super-squash/{rev}", refs.super_squash, "POST", WRITE),
        *api("/settings", repo_api.update_settings, "PUT", WRITE),
        *api("/user-access-request/grant", repo_api.grant_access, "POST", WRITE),
        *api("/auth-check", repo_api.auth_check, "GET", CONTENT),
        *api("/auth-check/write", repo_api.auth_check, "GET", WRITE),
        *api("/discussions", discussions.list_all, "GET", SEE),
        *api("/discussions", discussions.post, "POST", CONTRIBUTE),
        *api("/discussions/{num}", discussions.details, "GET", CONTENT),
        *api("/discussions/{num}/comment", discussions.comment, "POST", CONTRIBUTE),
        *api("/discussions/{num}/comment/{id}/edit", discussions.edit_comment, "POST", CONTRIBUTE),
        *api("/discussions/{num}/status", discussions.change_status, "POST", CONTRIBUTE),
        *api("/discussions/{num}/title", discussions.change_title, "POST", CONTRIBUTE),
        *api("/discussions/{num}/merge", discussions.merge, "POST", WRITE),
    ]


def _file_routes() -> list[BaseRoute]:
    objects = "/info/lfs/objects"
    return [
        *web("/info/refs", smart_http.info_refs, "GET", None),
        *web("/git-upload-pack", smart_http.upload_pack, "POST", None),
        *web(f"{objects}/batch", lfs.batch, "POST", SEE),
        *web("/info/lfs/verify", lfs.verify, "POST", SEE),
        *web(f"{objects}/{{oid}}", lfs.download, "GET", CONTENT),
        *web("/resolve/{rev}/{path:path}", resolve.download, "GET", CONTENT),
        *web("/raw/{rev}/{path:path}", resolve.raw, "GET", CONTENT),
    ]


class RawPath:
    """Routes match the path as sent: a revision such as `refs%2Fpr%2F1` is one segment of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("ascii")}
        await self._app(scope, receive, send)


def create_app(
    hub: Hub,
    *,
    faults: Faults | None = None,
    traffic: Traffic | None = None,
    limits: Limits | None = None,
) -> Starlette:
    """The application that serves `hub`."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        hub.webhooks.close()

    app = Starlette(
        routes=[
            *_account_routes(),
            *job_routes(),
            *collection_routes(),
            *lfs.ROUTES,
            *_repo_routes(),
            *xet_routes(hub),
            *_file_routes(),
            *pages(),
        ],
        middleware=[
            Middleware(RawPath),
            *([Middleware(TrafficMiddleware, traffic)] if traffic is not None else []),
            *([Middleware(LimitMiddleware, limits)] if limits is not None else []),
            Middleware(FaultMiddleware, faults or Faults()),
        ],
        exception_handlers={errors.HubError: errors.answer},
        lifespan=lifespan,
    )
    app.state.hub = hub
    return app
