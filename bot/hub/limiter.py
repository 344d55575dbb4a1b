"""One limiter for all requests of this process to the Hub: none is sent that the quota won't cover.

The Hub counts requests in windows of some minutes, in buckets (`api`, `resolvers`, `pages`), and
tells with every answer what is left. Polling leaves a part of every quota to the work on ports.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum, StrEnum

from huggingface_hub import set_client_factory
from huggingface_hub.utils import httpx, parse_ratelimit_headers
from huggingface_hub.utils._http import default_client_factory

WINDOW = 300.0
SLACK = 2.0  # the Hub tells whole seconds, and a request takes a moment to get there
NAP = 5.0  # a longer wait is looked into again, for an answer may have changed it
PAUSE = 30.0  # after a 429 that does not say for how long
SILENCE = 300.0  # after which a connection is taken for dead; the client would wait for ever


class Bucket(StrEnum):
    API = "api"
    RESOLVERS = "resolvers"
    PAGES = "pages"


FREE_TIER = {Bucket.API: 1000, Bucket.RESOLVERS: 5000, Bucket.PAGES: 200}


class Priority(Enum):
    """The share of a window's quota that requests of this kind may use up."""

    WORK = 1.0
    POLL = 0.8


class _Quota:
    """A bucket: our requests of the last window, and what the Hub last said is left in its own.

    Ours are counted over every span of a window's length, because it is not known when the Hub's
    windows begin, nor whether anybody else uses the same account.
    """

    def __init__(self, quota: int) -> None:
        self.quota, self.window = quota, WINDOW
        self.heard = False  # whether the Hub ever told its quota
        self.free = False  # it answered without telling one: a Hub that does not count
        self.left, self.until = 0, float("-inf")
        self._sent: deque[float] = deque()

    def count(self, now: float) -> None:
        self._sent.append(now)
        self.left -= 1

    def close(self, now: float, seconds: float) -> None:
        self.left, self.until = 0, now + seconds + SLACK

    def room(self, now: float, priority: Priority) -> int:
        """How many requests may be sent at once."""
        self._forget(now)
        kept = self._kept(priority)
        room = self.quota - kept - (0 if self.free else len(self._sent))
        return max(0, min(room, self.left - kept) if now < self.until else room)

    def wait(self, now: float, priority: Priority) -> float:
        """Seconds until there is room for one more."""
        self._forget(now)
        kept, wait = self._kept(priority), 0.0
        over = len(self._sent) + 1 - (self.quota - kept)
        if over > 0 and not self.free:
            wait = self._sent[over - 1] + self.window + SLACK - now
        if now < self.until and self.left <= kept:
            wait = max(wait, self.until - now)
        return wait

    def _kept(self, priority: Priority) -> int:
        return self.quota - max(1, int(self.quota * priority.value))

    def _forget(self, now: float) -> None:
        if self._sent and self._sent[-1] > now:  # the clock went back
            self._sent = deque([now] * len(self._sent))
        self.until = min(self.until, now + self.window + SLACK)  # whatever it was told, or jumped
        while self._sent and self._sent[0] + self.window + SLACK <= now:
            self._sent.popleft()


class Limiter:
    """Shared by all threads. Before any answer was seen, it assumes the free tier."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._quotas = {bucket: _Quota(quota) for bucket, quota in FREE_TIER.items()}

    def acquire(self, bucket: Bucket, priority: Priority) -> None:
        """Wait until one more request may be sent, and count it."""
        while True:
            with self._lock:
                now = self._clock()
                wait = self._quotas[bucket].wait(now, priority)
                if wait <= 0:
                    self._quotas[bucket].count(now)
                    return
            self._sleep(min(max(wait, 0.01), NAP))

    def room(self, bucket: Bucket, priority: Priority) -> int:
        """How many requests could be sent without waiting."""
        with self._lock:
            return self._quotas[bucket].room(self._clock(), priority)

    def learn(self, bucket: Bucket, status: int, headers: Mapping[str, str]) -> None:
        """What an answer to a request says: what is left of which bucket, or when to come back."""
        told = parse_ratelimit_headers(headers)
        after = next((headers[name] for name in headers if name.lower() == "retry-after"), "")
        with self._lock:
            now = self._clock()
            if told is not None and told.resource_type in self._quotas:
                quota = self._quotas[Bucket(told.resource_type)]
                quota.heard, quota.free = True, False
                quota.quota = max(1, told.limit or quota.quota)
                quota.window = told.window_seconds or quota.window
                quota.left, quota.until = told.remaining, now + told.reset_in_seconds + SLACK
            guessed = self._quotas[bucket]
            if status < 400 and not guessed.heard:
                guessed.free = True
            if status == 429 and told is not None and told.remaining > 0:
                return  # another limit than that of the bucket, such as whoami's own
            if status in (429, 503) and after.isdecimal():
                guessed.close(now, int(after))
            elif status == 429 and told is None:
                guessed.close(now, PAUSE)


_polling: ContextVar[bool] = ContextVar("polling", default=False)


@contextmanager
def polling() -> Iterator[None]:
    """Requests that this thread sends inside give way to those of ports."""
    token = _polling.set(True)
    try:
        yield
    finally:
        _polling.reset(token)


def bucket_of(path: str) -> Bucket:
    """The bucket that the Hub counts a request for `path` in."""
    if "/resolve/" in path or path.startswith("/api/resolve-cache/"):
        return Bucket.RESOLVERS
    return Bucket.API if path.startswith("/api/") else Bucket.PAGES


def install(limiter: Limiter, endpoint: str) -> None:
    """Let all that huggingface_hub sends to `endpoint` from now on pass `limiter`.

    Nor does any request wait for ever for an answer. To be called before the first one: the client
    in use is closed. What hf_xet sends goes to storage servers, which are not counted.
    """
    hub = httpx.URL(endpoint)

    def counted(url: httpx.URL) -> bool:
        return (url.scheme, url.netloc) == (hub.scheme, hub.netloc)

    def before(request: httpx.Request) -> None:
        waits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {kind: waits[kind] or SILENCE for kind in waits}
        if counted(request.url):
            priority = Priority.POLL if _polling.get() else Priority.WORK
            limiter.acquire(bucket_of(request.url.path), priority)

    def after(response: httpx.Response) -> None:
        url = response.request.url
        if counted(url):
            limiter.learn(bucket_of(url.path), response.status_code, response.headers)

    def client() -> httpx.Client:
        made = default_client_factory()
        hooks = made.event_hooks  # the client's own come first: one refuses to work offline
        made.event_hooks = {
            "request": [*hooks["request"], before],
            "response": [*hooks["response"], after],
        }
        return made

    set_client_factory(client)
