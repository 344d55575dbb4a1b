"""The receiver of webhooks and the pages for monitors: one application, and a process of it."""

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import uvicorn
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bot.context import Context
from bot.metrics import Outcomes, registry_of
from bot.serve.health import Readiness, healthz
from bot.serve.hints import Hints
from bot.serve.looks import FollowUp, Looks
from bot.serve.registration import Registration
from bot.serve.webhooks import Receiver
from porting.errors import UsageError

log = logging.getLogger("portllm")

PATH = "/webhooks"
KEPT_EVERY = 60.0  # seconds between two looks at our webhook
MOST_CONNECTIONS = 2000
GRACE = 5  # seconds for the answers that are being given when it is stopped
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Webhooks:
    """How events are taken: with what secret, and by what address, if the Hub is to be told it."""

    secret: str
    url: str | None
    follow_up: FollowUp


def create_app(context: Context, webhooks: Webhooks | None) -> Starlette:
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
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        scheduler.start()
        yield
        scheduler.shutdown(wait=False)
        if hints is not None:
            hints.close()

    return Starlette(routes=routes, middleware=[Middleware(_Headers)], lifespan=lifespan)


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
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, sent)


def config_of(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,  # ours
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )


def serve(app: Starlette, host: str, port: int) -> None:
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
