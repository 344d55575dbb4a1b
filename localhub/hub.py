"""What every request handler is given: the hub's stores, and the call, parsed and allowed."""

import json
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from localhub.auth import Access, Tokens, User, authenticate, authorize, check_writer
from localhub.blobs import BlobStore
from localhub.collections import CollectionStore
from localhub.errors import HubError
from localhub.faults import STALE_SCOPE
from localhub.jobs import Jobs
from localhub.repos import KINDS, URL_PREFIX, Repo, RepoStore
from localhub.webhooks import Webhooks

MAX_BODY = 512 << 20  # bytes; large files do not come this way


@dataclass(frozen=True)
class Hub:
    """The stores below the hub's folder. `key` signs the upload addresses of this process."""

    blobs: BlobStore
    tokens: Tokens
    repos: RepoStore
    webhooks: Webhooks
    jobs: Jobs
    collections: CollectionStore
    xet: Path
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)


def open_hub(root: Path) -> Hub:
    jobs = Jobs(root)
    return Hub(
        blobs=BlobStore(root / "lfs"),
        tokens=Tokens(root),
        repos=RepoStore(root / "repos"),
        webhooks=Webhooks(root, jobs),
        jobs=jobs,
        collections=CollectionStore(root / "collections"),
        xet=root / "xet",  # on the file system of the blobs
    )


@dataclass(frozen=True)
class Call:
    """One request. Handlers run in a worker thread, so they may block."""

    hub: Hub
    request: Request
    kind: str
    user: User | None
    body: bytes
    _repo: Repo | None

    @property
    def repo(self) -> Repo:
        assert self._repo is not None, "the route names no repository"
        return self._repo

    @property
    def repo_id(self) -> str:
        """The id in the path, where it may carry git's `.git`."""
        return f"{self.param('ns')}/{self.param('name').removesuffix('.git')}"

    @property
    def writer(self) -> User:
        """The user. Raises `HubError` when there is none, or only a token that reads."""
        return check_writer(self.user)

    @property
    def base(self) -> str:
        """The endpoint as the client wrote it, without a slash at the end."""
        return str(self.request.base_url).rstrip("/")

    @property
    def stale(self) -> int:
        """How many moves of the refs this request is not to see yet: a fault to order."""
        return int(self.request.scope.get(STALE_SCOPE, 0))

    def param(self, name: str) -> str:
        """A part of the path, percent-decoded (routes match the raw path)."""
        return unquote(self.request.path_params[name])

    def query(self, name: str, default: str = "") -> str:
        return self.request.query_params.get(name, default)

    def queries(self, name: str) -> list[str]:
        """A repeated query parameter, in Python's or in JavaScript's spelling."""
        query = self.request.query_params
        return [*query.getlist(name), *query.getlist(f"{name}[]")]

    def flag(self, name: str) -> bool:
        return self.query(name).lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"The body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise HubError(400, "The body is not a JSON object")
        return value

    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode(errors="replace"), keep_blank_values=True)

    def field(self, name: str) -> str:
        """A string the JSON body must contain."""
        value = self.json().get(name)
        if not isinstance(value, str):
            raise HubError(400, f"The body needs a string {name!r}")
        return value

    def items(self, name: str) -> list[Any]:
        """A list the JSON body may contain."""
        value = self.json().get(name) or []
        if not isinstance(value, list):
            raise HubError(400, f"{name!r} must be a list")
        return value


Handler = Callable[[Call], Response | dict[str, Any] | list[Any]]


async def _read_body(request: Request) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            raise HubError(413, f"The request is larger than {MAX_BODY} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def route(
    path: str, handler: Handler, *methods: str, kind: str = "model", access: Access | None = None
) -> Route:
    """A route whose handler is called when the user has `access` to the repository in the path."""

    async def endpoint(request: Request) -> Response:
        hub: Hub = request.app.state.hub
        body = await _read_body(request)

        def work() -> Response:
            user = authenticate(request, hub.tokens)
            call = Call(hub, request, kind, user, body, None)
            if access is not None:
                found = authorize(user, hub.repos.find(kind, call.repo_id), access)
                call = replace(call, _repo=found)
            result = handler(call)
            return result if isinstance(result, Response) else JSONResponse(result)

        return await run_in_threadpool(work)

    return Route(path, endpoint, methods=list(methods))


def api(path: str, handler: Handler, method: str, access: Access) -> list[Route]:
    """The route below `/api/{models,datasets,spaces}/{ns}/{name}`."""
    return [
        route(f"/api/{plural}/{{ns}}/{{name}}{path}", handler, method, kind=kind, access=access)
        for kind, plural in KINDS.items()
    ]


def web(path: str, handler: Handler, method: str, access: Access | None) -> list[Route]:
    """The route below `/[datasets/|spaces/]{ns}/{name}`. A GET answers HEAD too."""
    return [
        route(
            f"/{URL_PREFIX[kind]}{{ns}}/{{name}}{path}", handler, method, kind=kind, access=access
        )
        for kind in ("dataset", "space", "model")
    ]


async def file_chunks(path: Path, start: int, length: int) -> AsyncIterator[bytes]:
    """`length` bytes of a file from `start`, in pieces of 1 MiB read by a worker thread."""
    with path.open("rb") as file:
        file.seek(start)
        while length > 0:
            piece = await run_in_threadpool(file.read, min(length, 1 << 20))
            if not piece:
                return
            length -= len(piece)
            yield piece
