"""Pages, API, the receiver of webhooks, what monitors ask: one application, and its process."""

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import uvicorn
from apscheduler.schedulers.background import BackgroundScheduler
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bot.context import Context
from bot.running.metrics import Outcomes, registry_of
from bot.serve import api, errors, web
from bot.serve.health import Readiness, healthz
from bot.serve.hints import Hints
from bot.serve.looks import FollowUp, Looks
from bot.serve.registration import Registration
from bot.serve.visitors import Visitors
from bot.serve.webhooks import Receiver
from patch_cards.pages import Site
from porting.errors import UsageError

log = logging.getLogger("portllm")

PATH = "/webhooks"
KEPT_EVERY = 60.0  # seconds between two looks at our webhook
MOST_CONNECTIONS = 2000
GRACE = 5  # seconds for the answers that are being given when it is stopped
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Webhooks:
    """How events are taken: with what secret, and by what address, if the Hub is to be told it."""

    secret: str
    url: str | None
    follow_up: FollowUp


def create_app(context: Context, webhooks: Webhooks | None) -> FastAPI:
    """The application; without `webhooks` it takes none."""
    scheduler = BackgroundScheduler(timezone=UTC)
    routes = [Route("/healthz", healthz), Route("/readyz", Readiness(context.database).readyz)]
    outcomes: dict[str, dict[str, int]] = {}
    hints = None
    if webhooks is not None:
        hints = Hints(Looks(context, webhooks.follow_up))
        receiver = Receiver(webhooks.secret, hints.add)
        outcomes = {"webhook_events": receiver.outcomes, "webhook_hints": hints.outcomes}
        routes.append(Route(PATH, receiver.receive, methods=["POST"]))
        if webhooks.url is not None:
            registration = Registration(context, webhooks.url + PATH, webhooks.secret)
            scheduler.add_job(
                registration.keep,
                "interval",
                seconds=KEPT_EVERY,
                coalesce=True,
                misfire_grace_time=None,  # late is better than never
                next_run_time=datetime.now(UTC),
            )
    routes.append(Route("/metrics", _metrics(context, outcomes)))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        yield
        scheduler.shutdown(wait=False)
        if hints is not None:
            hints.close()

    app = FastAPI(
        title="PortLLM",
        version=version("portllm"),
        description="What the bot knows of patches, bases and ports.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # they load scripts from elsewhere; /api lists what there is
        redoc_url=None,
        middleware=[Middleware(_Headers)],
        lifespan=lifespan,
        responses={"default": {"model": api.Problem, "description": "An error"}},
    )
    app.router.routes.extend(routes)
    site = Site(lambda path: f"/{path}", context.hub.endpoint)
    visitors = Visitors(context)
    app.include_router(api.reading(visitors))
    app.include_router(api.changing(context, visitors))
    app.include_router(web.router(visitors, site, lambda: _operations(app.openapi())))
    errors.answer(app, site)
    return app


def _operations(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Method, path with the query that it needs, and summary of each."""
    return [
        (method.upper(), path + _needed(operation), operation["summary"])
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def _needed(operation: dict[str, Any]) -> str:
    asked = [each for each in operation.get("parameters", []) if each["in"] == "query"]
    names = [each["name"] for each in asked if each["required"]]
    return "?" + "&".join(f"{name}={{{name}}}" for name in names) if names else ""


def _metrics(context: Context, outcomes: Outcomes) -> Callable[[Request], Response]:
    shown = registry_of(context, outcomes)

    def metrics(_: Request) -> Response:
        try:
            return Response(generate_latest(shown), media_type=CONTENT_TYPE_LATEST)
        except SQLAlchemyError as error:
            said = f"The database does not answer: {type(error).__name__}.\n"
            return PlainTextResponse(said, 503)

    return metrics


class _Headers:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, sent)


def config_of(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,  # ours
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until told to stop (Ctrl-C, SIGTERM); ends the process.

    Raises UsageError if it can't listen there.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"It can't listen on {host}, port {port}: {error.strerror}.") from error
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises it again, once it has stopped
    log.info("Listening on http://%s:%d", host, listener.getsockname()[1])
    uvicorn.Server(config_of(app)).run(sockets=[listener])
    log.info("Stopped.")
    logging.shutdown()
    os._exit(0)  # a look that waits for the Hub is not waited for: it changes nothing until its end
