"""The limiter: no request is sent that the Hub refuses, and polling never takes what work needs."""

import threading
from collections.abc import Iterator

import pytest
from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx
from huggingface_hub.utils._http import default_client_factory
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.polling import SimulatedHub
from bot.hub.limiter import (
    FREE_TIER,
    NAP,
    PAUSE,
    SLACK,
    WINDOW,
    Bucket,
    Limiter,
    Priority,
    bucket_of,
    install,
    polling,
)
from localhub.limits import Limits
from localhub.server import Server

QUOTAS = {Bucket.API: 10, Bucket.RESOLVERS: 25, Bucket.PAGES: 5}
PRIORITIES = st.sampled_from(Priority)
BUCKETS = st.sampled_from(Bucket)


class Times:
    """The true time, and a clock that may be set to anything."""

    def __init__(self) -> None:
        self.true = self.offset = 0.0

    def clock(self) -> float:
        return self.true + self.offset

    def sleep(self, seconds: float) -> None:
        self.true += seconds


class Line:
    """Requests through a limiter to a Hub, whose answers come `lag` requests later."""

    def __init__(self, lag: int = 0, quotas: dict[Bucket, int] = QUOTAS) -> None:
        self.times, self.hub, self.lag = Times(), SimulatedHub(quotas), lag
        self.limiter = Limiter(self.times.clock, self.times.sleep)
        self.under_way: list[tuple[Bucket, int, dict[str, str]]] = []
        for bucket in Bucket:  # what the quotas are is known from the first answer on
            self.send(bucket, Priority.WORK)
            self.answered(0)

    def send(self, bucket: Bucket, priority: Priority) -> None:
        self.limiter.acquire(bucket, priority)
        self.under_way.append((bucket, *self.hub.answer(bucket, self.times.true)))
        self.answered(self.lag)

    def answered(self, lag: int) -> None:
        while len(self.under_way) > lag:
            self.limiter.learn(*self.under_way.pop(0))


@given(
    st.lists(st.tuples(st.floats(0, 200), BUCKETS, PRIORITIES), max_size=150),
    st.integers(0, 8),
)
def test_no_window_holds_more_than_its_quota(
    arrivals: list[tuple[float, Bucket, Priority]], lag: int
) -> None:
    line = Line(lag)
    for gap, bucket, priority in arrivals:
        line.times.true += gap
        line.send(bucket, priority)
    assert line.hub.refused == 0
    assert all(line.hub.most[bucket] <= QUOTAS[bucket] for bucket in Bucket)


@given(st.lists(st.tuples(st.floats(0, 60), BUCKETS), max_size=150))
def test_polls_leave_a_fifth_of_every_window_to_work(arrivals: list[tuple[float, Bucket]]) -> None:
    line = Line()
    for gap, bucket in arrivals:
        line.times.true += gap
        line.send(bucket, Priority.POLL)
        assert line.hub.left(bucket, line.times.true) >= 0.2 * QUOTAS[bucket]
        before = line.times.true
        if line.limiter.room(bucket, Priority.POLL) == 0:
            line.send(bucket, Priority.WORK)
            assert line.times.true == before, "work waited for polls"
            line.times.true += WINDOW + SLACK


@given(
    st.lists(
        st.tuples(
            st.floats(0, 100), BUCKETS, PRIORITIES, st.sampled_from([0, 0, 0, -1e6, -70, 1e4])
        ),
        max_size=120,
    )
)
def test_a_clock_that_jumps_costs_one_refusal_at_most_and_never_stops_it(
    arrivals: list[tuple[float, Bucket, Priority, float]],
) -> None:
    line, forward = Line(), 0
    for gap, bucket, priority, jump in arrivals:
        line.times.true += gap
        line.times.offset += jump
        forward += len(Bucket) * (jump > 0)  # each bucket learns of it by itself
        before = line.times.true
        line.send(bucket, priority)
        assert line.times.true - before <= WINDOW + 2 * SLACK + NAP
    assert line.hub.refused <= forward


@given(st.lists(st.tuples(st.floats(0, 100), PRIORITIES), max_size=100), st.data())
def test_what_others_use_of_the_account_is_seen(
    arrivals: list[tuple[float, Priority]], data: st.DataObject
) -> None:
    line = Line()
    for gap, priority in arrivals:
        line.times.true += gap
        for _ in range(data.draw(st.integers(0, 3))):
            line.hub.answer(Bucket.API, line.times.true)
        line.hub.refused = 0
        line.send(Bucket.API, priority)  # tells what is left now
        refused, before = line.hub.refused, line.times.true
        line.send(Bucket.API, priority)
        assert line.hub.refused == refused, "it asked though it had been told that nothing is left"
        assert line.times.true - before <= WINDOW + 2 * SLACK + NAP


def test_it_assumes_the_free_tier_until_told_otherwise() -> None:
    times = Times()
    limiter = Limiter(times.clock, times.sleep)
    for bucket, quota in FREE_TIER.items():
        assert limiter.room(bucket, Priority.WORK) == quota
        assert limiter.room(bucket, Priority.POLL) == quota * 8 // 10
    limiter.learn(
        Bucket.API,
        200,
        {
            "RateLimit": '"api";r=2400;t=200',
            "RateLimit-Policy": '"fixed window";"api";q=2500;w=300',
        },
    )
    assert limiter.room(Bucket.API, Priority.WORK) == 2400
    times.true = 250
    assert limiter.room(Bucket.API, Priority.WORK) == 2500


@pytest.mark.parametrize("late", [0.0, SLACK])
def test_without_any_answer_it_keeps_to_the_free_tier(late: float) -> None:
    times, quota = Times(), FREE_TIER[Bucket.PAGES]
    limiter, hub = Limiter(times.clock, times.sleep), SimulatedHub(FREE_TIER)
    for number in range(3 * quota):
        limiter.acquire(Bucket.PAGES, Priority.WORK)
        hub.answer(Bucket.PAGES, times.true + (late if number < quota else 0))
    assert (hub.refused, hub.most[Bucket.PAGES]) == (0, quota)
    assert times.true <= 2 * (WINDOW + SLACK) + NAP


def test_what_is_left_counts_for_those_not_yet_answered() -> None:
    times = Times()
    limiter = Limiter(times.clock, times.sleep)
    limiter.learn(Bucket.API, 200, {"RateLimit": '"api";r=5;t=100'})
    for _ in range(5):
        limiter.acquire(Bucket.API, Priority.WORK)
    assert times.true == 0
    limiter.acquire(Bucket.API, Priority.WORK)
    assert times.true == pytest.approx(100 + SLACK)


def test_a_hub_that_counts_now_and_then_does_count() -> None:
    times = Times()
    limiter = Limiter(times.clock, times.sleep)
    told = {"RateLimit": '"api";r=5;t=100', "RateLimit-Policy": '"fixed window";"api";q=6;w=300'}
    for headers in ({}, told, {}):
        limiter.learn(Bucket.API, 200, headers)
    for _ in range(7):
        limiter.acquire(Bucket.API, Priority.WORK)
    assert times.true > WINDOW, "six in a window"


def test_a_hub_that_does_not_count_is_not_waited_for() -> None:
    times = Times()
    limiter = Limiter(times.clock, times.sleep)
    for _ in range(3 * FREE_TIER[Bucket.PAGES]):
        limiter.acquire(Bucket.PAGES, Priority.WORK)
        limiter.learn(Bucket.PAGES, 200, {})
    assert times.true == 0


@pytest.mark.parametrize(
    ("status", "headers", "pause"),
    [
        (429, {"Retry-After": "60"}, 60),
        (503, {"retry-after": "60"}, 60),
        (429, {"RateLimit": '"api";r=0;t=60'}, 60),
        (429, {"RateLimit": '"api";r=0;t=20', "Retry-After": "60"}, 60),
        (429, {"Retry-After": "99999999"}, WINDOW),
        (429, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, PAUSE),
        (429, {}, PAUSE),
        (429, {"RateLimit": '"api";r=99;t=60', "Retry-After": "60"}, None),  # whoami's own limit
        (500, {}, None),
        (404, {}, None),
    ],
)
def test_it_comes_back_when_it_is_told_to(
    status: int, headers: dict[str, str], pause: float | None
) -> None:
    times = Times()
    limiter = Limiter(times.clock, times.sleep)
    limiter.acquire(Bucket.API, Priority.WORK)
    limiter.learn(Bucket.API, status, headers)
    limiter.acquire(Bucket.API, Priority.WORK)
    assert times.true == (0 if pause is None else pytest.approx(pause + SLACK))


def test_a_path_has_the_bucket_that_the_hub_counts_it_in() -> None:
    assert bucket_of("/api/models/a/b/revision/main") == Bucket.API
    assert bucket_of("/a/b/resolve/main/README.md") == Bucket.RESOLVERS
    assert bucket_of("/api/resolve-cache/models/a/b/0123/README.md") == Bucket.RESOLVERS
    assert bucket_of("/a/b/tree/main") == Bucket.PAGES


# Below: installed in the real client, against the local Hub.


@pytest.fixture(autouse=True)
def own_client() -> Iterator[None]:
    yield
    set_client_factory(default_client_factory)


@pytest.fixture
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Times]]:
    times = Times()
    limits = Limits(api=40, resolvers=40, clock=times.clock)
    with Server(tmp_path_factory.mktemp("hub"), limits=limits) as server:
        yield server, times


def test_threads_share_a_quota_and_none_is_refused(counting: tuple[Server, Times]) -> None:
    server, times = counting
    assert server.limits is not None
    api = HfApi(endpoint=server.endpoint, token=server.add_user("me"))
    lock = threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            times.true += seconds

    install(Limiter(times.clock, sleep), server.endpoint)
    api.create_repo("me/base")
    failures: list[HfHubHTTPError] = []

    def ask() -> None:
        for _ in range(30):
            try:
                with polling():
                    api.model_info("me/base")
            except HfHubHTTPError as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert server.limits.asked["api"] >= 121 and server.limits.refused["api"] == 0
    assert times.true > 2 * WINDOW, "120 polls at 32 a window"


def test_offline_stays_offline_and_counts_nothing(
    hub: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = Limiter()
    install(limiter, hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled):
        HfApi(endpoint=hub.endpoint).model_info("me/base")
    assert limiter.room(Bucket.API, Priority.WORK) == FREE_TIER[Bucket.API]


def test_no_request_waits_for_ever(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.hub.limiter.SILENCE", 0.2)
    install(Limiter(), hub.endpoint)
    hub.faults.add("/refs", delay=1)
    with pytest.raises(httpx.ReadTimeout):
        HfApi(endpoint=hub.endpoint).list_repo_refs("me/base")


def test_other_hosts_are_not_counted(hub: Server) -> None:
    limiter = Limiter()
    install(limiter, "http://localhost:1")
    api = HfApi(endpoint=hub.endpoint, token=hub.add_user("me"))
    api.create_repo("me/base")
    assert limiter.room(Bucket.API, Priority.WORK) == FREE_TIER[Bucket.API]
