"""Rate limits as the Hub documents them: three buckets, each with a quota per fixed window."""

import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Large files, which the Hub keeps on other hosts, and git, of which its documentation says nothing.
_UNCOUNTED = re.compile(
    r"/api/lfs$|/xet-cas/|(?:/datasets|/spaces)?/[^/]+/[^/]+/(?:info/(?:refs$|lfs/)|git-upload-pack$)"
)


def bucket_of(path: str) -> str | None:
    """`api`, `resolvers` or `pages`; None for a path that no limit covers."""
    if _UNCOUNTED.match(path):
        return None
    if path.startswith("/api/"):
        return "api"
    return "resolvers" if "/resolve/" in path else "pages"


@dataclass
class Limits:
    """The quota of each bucket per token (all who send none share one) and `window` seconds.

    A window begins at every multiple of `window` on `clock`, which a simulation may run faster
    than time. `asked` and `refused` count the requests, and the 429s among them, by bucket.
    """

    api: int = 1000
    resolvers: int = 5000
    pages: int = 200
    window: int = 300
    clock: Callable[[], float] = time.monotonic
    asked: Counter[str] = field(default_factory=Counter, init=False)
    refused: Counter[str] = field(default_factory=Counter, init=False)
    _spent: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def take(self, caller: str, bucket: str) -> tuple[bool, dict[str, str]]:
        """Count one request: whether it is within the quota, and the headers that say so."""
        quota: int = getattr(self, bucket)
        with self._lock:
            now = self.clock()
            current = int(now // self.window)
            window, spent = self._spent.get((caller, bucket), (current, 0))
            spent = spent + 1 if window == current else 1
            self._spent[caller, bucket] = current, spent
            self.asked[bucket] += 1
            self.refused[bucket] += spent > quota
        left, seconds = max(quota - spent, 0), math.ceil((current + 1) * self.window - now)
        return spent <= quota, {
            "RateLimit": f'"{bucket}";r={left};t={seconds}',
            "RateLimit-Policy": f'"fixed window";"{bucket}";q={quota};w={self.window}',
        }


class LimitMiddleware:
    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        bucket = bucket_of(scope["path"]) if scope["type"] == "http" else None
        if bucket is None:
            await self._app(scope, receive, send)
            return
        caller = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        allowed, headers = self._limits.take(caller, bucket)

        async def informed(message: Message) -> None:
            if message["type"] == "http.response.start":
                for name, value in headers.items():  # an injected fault may bring its own
                    MutableHeaders(scope=message).setdefault(name, value)
            await send(message)

        refusal = JSONResponse({"error": "You have reached your rate limit."}, 429)
        await (self._app if allowed else refusal)(scope, receive, informed)
