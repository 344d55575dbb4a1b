"""Errors as answers: a page for people, JSON (RFC 9457) under /api."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from bot.logs import redact
from patch_cards.pages import Site
from porting.errors import HubError, PortllmError, Refused, UsageError

STATUS: dict[type[PortllmError], int] = {UsageError: 400, Refused: 409, HubError: 502}
NOWHERE = "There is no such page."
BROKEN = "This is a bug, or the disk is full: whoever runs this finds the reason in the log."


def answer(app: FastAPI, site: Site) -> None:
    """Let `app` answer so."""

    def said(
        request: Request, status: int, detail: str, headers: dict[str, str] | None = None
    ) -> Response:
        title = HTTPStatus(status).phrase
        if request.url.path.startswith("/api/"):
            body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
            return JSONResponse(body, status, headers, "application/problem+json")
        return HTMLResponse(site.error(title, detail), status, headers)

    async def http(request: Request, error: HTTPException) -> Response:
        is_plain = error.detail == HTTPStatus(error.status_code).phrase
        detail = NOWHERE if is_plain and error.status_code == 404 else error.detail
        headers = dict(error.headers) if error.headers else None
        return said(request, error.status_code, detail, headers)

    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return said(request, 400, f"{first['loc'][-1]}: {first['msg']}.")

    async def ours(request: Request, error: PortllmError) -> Response:
        return said(request, STATUS.get(type(error), 500), redact(str(error)))

    async def database(request: Request, error: SQLAlchemyError) -> Response:
        return said(request, 503, f"The database does not answer: {type(error).__name__}.")

    async def broken(request: Request, error: Exception) -> Response:
        return said(request, 500, BROKEN)

    handlers: dict[type[Exception], Callable[..., Awaitable[Response]]] = {
        HTTPException: http,
        RequestValidationError: invalid,
        PortllmError: ours,
        SQLAlchemyError: database,
        Exception: broken,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
