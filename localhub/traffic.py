"""What went over the line, for tests that count it: in memory, without tokens or contents."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class Exchange:
    """One request and its answer: bytes of the two bodies, without headers."""

    method: str
    path: str
    status: int
    received: int
    sent: int


@dataclass
class Traffic:
    """Every exchange of this server so far, in the order in which they ended."""

    _exchanges: list[Exchange] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, exchange: Exchange) -> None:
        with self._lock:
            self._exchanges.append(exchange)

    def clear(self) -> None:
        with self._lock:
            self._exchanges.clear()

    def of(self, path: str, method: str | None = None) -> Iterator[Exchange]:
        """Those whose raw path the regular expression `path` is found in."""
        with self._lock:
            exchanges = list(self._exchanges)
        for each in exchanges:
            if method in (None, each.method) and re.search(path, each.path):
                yield each


class TrafficMiddleware:
    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = sent = status = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal sent, status
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            exchange = Exchange(scope["method"], scope["path"], status, received, sent)
            self._traffic.add(exchange)
