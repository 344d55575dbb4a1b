"""`portllm serve`: pages and an API out, events in, health and metrics out."""

from typing import Annotated
from urllib.parse import urlsplit

import typer
from pydantic import SecretStr

from bot.cli.sources import open_context
from porting.errors import UsageError

LEAST = 16  # characters of a secret
HERE = ("127.0.0.1", "localhost", "::1")


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Keep patches up to date")(serve)


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8080,
    url: Annotated[
        str | None,
        typer.Option(help="Where the Hub reaches this: then its webhook is made and mended."),
    ] = None,
    webhooks: Annotated[
        bool, typer.Option("--webhooks/--no-webhooks", help="Take the Hub's events.")
    ] = True,
) -> None:
    """Show the registry as pages and under /api, and take the Hub's webhooks (/webhooks).

    The events' secret is PORTLLM_WEBHOOK_SECRET. /metrics, /healthz and /readyz are for monitors.
    Run it beside portllm bot run.

    Example: portllm serve --port 8080 --url https://bot.example.com
    """
    context = open_context()
    address = _public(url) if url is not None else None
    if not webhooks and address is not None:
        raise UsageError("--url is where the Hub's events go: it goes with --webhooks.")
    secret = _secret(context.settings.webhook_secret) if webhooks else None
    token = context.settings.api_token
    if token is not None and not _is_safe(token.get_secret_value()):
        raise UsageError(
            f"PORTLLM_API_TOKEN has to be at least {LEAST} ASCII characters, such as those of: "
            "openssl rand -hex 32. Or unset it: then nothing can be changed under /api."
        )

    from bot.hub.limiter import Limiter, install
    from bot.publishing.requests import follow_up
    from bot.serve.app import Webhooks, create_app
    from bot.serve.app import serve as serve_app

    install(Limiter(), context.hub.endpoint)
    taken = Webhooks(secret, address, follow_up) if secret is not None else None
    serve_app(create_app(context, taken), host, port)


def _public(url: str) -> str:
    parts = urlsplit(url)
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in HERE)
    if not is_safe or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise UsageError(f"--url {url}: an address such as https://bot.example.com is meant.")
    return url.rstrip("/").removesuffix("/webhooks")


def _secret(given: SecretStr | None) -> str:
    secret = given.get_secret_value() if given is not None else ""
    if not _is_safe(secret):
        raise UsageError(
            f"Set PORTLLM_WEBHOOK_SECRET to at least {LEAST} ASCII characters that only the Hub "
            "is told, such as those of: openssl rand -hex 32. Or take no events: --no-webhooks."
        )
    return secret


def _is_safe(secret: str) -> bool:
    return len(secret) >= LEAST and secret.isascii() and secret.isprintable()
