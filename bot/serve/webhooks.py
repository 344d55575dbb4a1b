"""`POST /webhooks`: an event of the Hub. Nothing is read of it before its secret is right."""

import asyncio
import hmac
from collections import Counter
from collections.abc import Callable

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from bot.address import parse_repo
from bot.serve.hints import Hint, Topic
from porting.errors import UsageError

LARGEST = 1_000_000  # bytes; the Hub's are a few thousand
PATIENCE = 10.0  # seconds for a body to come


class _Event(BaseModel):
    scope: str


class _Repo(BaseModel):
    type: str
    name: str


class Told(BaseModel):
    """All that is read of an event: what kind it is, and the repo that it names."""

    event: _Event
    repo: _Repo

    def hint(self) -> Hint | None:
        """None for what can't be followed."""
        domain = self.event.scope.partition(".")[0]
        if self.repo.type != "model" or domain not in set(Topic):
            return None
        try:
            address = parse_repo(self.repo.name)
        except UsageError:
            return None
        return None if address.revision else Hint(Topic(domain), address.repo)


class Receiver:
    """Answers at once: whether there is anything to do is found out afterwards."""

    def __init__(self, secret: str, hear: Callable[[Hint], None]) -> None:
        self._secret = secret.encode()
        self._hear = hear
        self.outcomes: Counter[str] = Counter()

    async def receive(self, request: Request) -> JSONResponse:
        given = request.headers.get("X-Webhook-Secret", "").encode("latin-1")
        if not hmac.compare_digest(given, self._secret):
            return self._answer(401, "forged")
        if request.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            return self._answer(415, "not JSON")
        try:
            async with asyncio.timeout(PATIENCE):
                body = await _read(request)
        except (TimeoutError, ClientDisconnect):
            return self._answer(408, "incomplete")
        if body is None:
            return self._answer(413, "too large")
        try:
            hint = Told.model_validate_json(body).hint()
        except ValidationError:
            return self._answer(400, "malformed")
        if hint is None:
            return self._answer(202, "of no interest")
        self._hear(hint)
        return self._answer(202, "accepted")

    def _answer(self, status: int, outcome: str) -> JSONResponse:
        self.outcomes[outcome] += 1
        # What is left of a refused body is not waited for, be it endless.
        headers = {"Connection": "close"} if status >= 400 else None
        return JSONResponse({"event": outcome}, status, headers)


async def _read(request: Request) -> bytes | None:
    """The body, or None where it is larger than any event."""
    if int(request.headers.get("Content-Length", "0")) > LARGEST:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST:
            return None
    return bytes(body)
