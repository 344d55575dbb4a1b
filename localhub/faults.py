"""Failures to order, for testing clients: answers, delays and connections cut in the middle."""

import re
import threading
from dataclasses import dataclass, field

import anyio
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STALE_SCOPE = "localhub.stale"  # where a request carries how far its answer lags behind


@dataclass
class Fault:
    """What happens to the next `times` requests whose method and path match.

    The request waits `delay` seconds; then `status` answers it, or `cut` ends the connection after
    so many bytes of the real answer's body. With `stale`, a GET or HEAD is answered as before the
    last so many moves of the repository's refs: commits, new and deleted branches and tags.
    """

    path: re.Pattern[str]
    method: str | None
    times: int
    status: int | None
    headers: dict[str, str]
    delay: float
    cut: int | None
    stale: int

    def fits(self, method: str, path: str) -> bool:
        reads = method in ("GET", "HEAD") or not self.stale
        return reads and self.method in (None, method) and bool(self.path.search(path))


@dataclass
class Faults:
    """The faults still to come, and how many requests each hit."""

    _rules: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self,
        path: str,
        *,
        method: str | None = None,
        times: int = 1,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        delay: float = 0.0,
        cut: int | None = None,
        stale: int = 0,
    ) -> None:
        """`path` is a regular expression searched for in the raw request path."""
        pattern = re.compile(path)
        fault = Fault(pattern, method, times, status, headers or {}, delay, cut, stale)
        with self._lock:
            self._rules.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The first fault that fits, used up by one."""
        with self._lock:
            for fault in self._rules:
                if fault.times > 0 and fault.fits(method, path):
                    fault.times -= 1
                    return fault
        return None


class FaultMiddleware:
    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._app = app
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = None
        if scope["type"] == "http":
            fault = self._faults.take(scope["method"], scope["path"])
        if fault is None:
            await self._app(scope, receive, send)
            return
        await anyio.sleep(fault.delay)
        if fault.status is not None:
            answer = JSONResponse({"error": "injected fault"}, fault.status, fault.headers)
            await answer(scope, receive, send)
        elif fault.cut is not None:
            await self._cut(fault.cut, scope, receive, send)
        else:
            await self._app({**scope, STALE_SCOPE: fault.stale}, receive, send)

    async def _cut(self, left: int, scope: Scope, receive: Receive, send: Send) -> None:
        """Drop all but the first bytes. With the end of the body missing, the server hangs up."""

        async def limited(message: Message) -> None:
            nonlocal left
            if message["type"] == "http.response.body":
                body = message.get("body", b"")[:left]
                left -= len(body)
                message = {"type": message["type"], "body": body, "more_body": True}
            await send(message)

        await self._app(scope, receive, limited)
