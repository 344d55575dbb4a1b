"""Who asks: anybody, who is shown what is public, or whoever has PORTLLM_API_TOKEN."""

import hmac
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException, Request

from bot.context import Context
from bot.logs import redact
from bot.running.memory import Memory
from registry.browse import Browse
from registry.views import StatusView

SCHEME = "bearer "
OFF = "Nothing can be changed from here: whoever runs this has set no PORTLLM_API_TOKEN."
NO_TOKEN = "This needs the header `Authorization: Bearer TOKEN`, with PORTLLM_API_TOKEN."
WRONG = "The token is not PORTLLM_API_TOKEN."
ASK = {"WWW-Authenticate": "Bearer"}


class Visitors:
    def __init__(self, context: Context) -> None:
        token = context.settings.api_token
        self._token = token.get_secret_value().encode() if token is not None else None
        self._context, self._memory = context, Memory(context.settings)

    @contextmanager
    def browse(self, request: Request) -> Iterator[Browse]:
        everything = self._has_token(request)
        with self._context.database.session() as session:
            yield Browse(session, everything, redact)

    def status(self, request: Request) -> StatusView:
        queues = {}
        if self._has_token(request):
            found = sorted(self._memory.queues().items())
            queues = {f"{queue}: {status}": count for (queue, status), count in found}
        with self.browse(request) as browse:
            return browse.status(queues)

    def check(self, request: Request) -> None:
        """Raises HTTPException where whoever asks may change nothing."""
        if self._token is None:
            raise HTTPException(403, OFF)
        if not self._has_token(request):
            raise HTTPException(401, NO_TOKEN, ASK)

    def _has_token(self, request: Request) -> bool:
        given = request.headers.get("Authorization", "")
        if self._token is None or not given.lower().startswith(SCHEME):
            return False
        if not hmac.compare_digest(given[len(SCHEME) :].strip().encode("latin-1"), self._token):
            raise HTTPException(401, WRONG, ASK)
        return True
