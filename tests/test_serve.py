"""Events of the Hub: whatever comes, in whatever order and number, the outcome is the poll's."""

import asyncio
import hmac
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests
from huggingface_hub import HfApi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from bot.hub.webhooks import Watched, register
from bot.serve import hints
from bot.serve.hints import Hint, Hints, Topic
from bot.serve.interest import followed_repos, touched
from bot.serve.looks import Looks
from bot.watching.watch import look
from localhub.server import Server
from registry.models import Port, Release, Rule, Subscription
from tests.serving import BASE, SECRET, TARGET, Served, event, hooks, until
from tests.world import Portllm


@pytest.fixture
def served(hub: Server, tmp_path: Path) -> Iterator[Served]:
    with Served(hub, tmp_path / "home") as served:
        yield served


def test_a_commit_is_a_release_at_once_and_its_body_is_not_believed(served: Served) -> None:
    served.register()
    was, _ = served.heads()
    sha = served.commit(BASE)
    until(lambda: served.heads()[0] == sha)
    assert served.heads()[1] == [(was, sha)]

    false = [{"ref": "refs/heads/main", "oldSha": sha, "newSha": "f" * 40}]
    assert served.post(event(updatedRefs=false)) == 202
    until(lambda: served.counts("webhook_hints").get("looked", 0) >= 2)
    assert served.heads() == (sha, [(was, sha)])


@pytest.mark.parametrize("seed", range(2))
def test_events_that_are_doubled_lost_and_late_change_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(hints, "PAUSE", 0.01)
    draw = random.Random(seed)
    copies = ([], [0], [0, 0], [0.2], [0.3, 0, 0.1])
    served.server.webhooks.plan = lambda _: draw.choice(copies)
    served.register()
    was, _ = served.heads()
    shas = [was, *(served.commit(BASE) for _ in range(8))]
    look(served.context, served.base)  # the poll
    head, steps = served.heads()
    assert head == shas[-1] and [steps[0][0], steps[-1][1]] == [was, head]
    assert all(before[1] == after[0] for before, after in pairwise(steps))
    reached = [shas.index(sha) for _, sha in steps]
    assert reached == sorted(set(reached))  # none twice, none backwards


def test_a_hub_that_answers_with_what_was_is_asked_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "PAUSE", 0.01)
    served.server.faults.add(r"/vendor/base/revision/main", stale=1, times=1)
    served.register()
    sha = served.commit(BASE)
    until(lambda: served.heads()[0] == sha)
    assert served.counts("webhook_hints")["looked"] == 2


def test_a_forged_event_is_refused_unread(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    wrong = ["", "x", SECRET[:-1], f"{SECRET}x", SECRET.upper(), "\u00e4" * 8, "hf_" + "0" * 40]
    for secret in wrong:
        assert served.post(event(), secret.encode("latin-1")) == 401
    assert [given for given, _ in compared] == [each.encode("latin-1") for each in wrong]
    assert requests.post(f"{served.url}/webhooks", json=event()).status_code == 401
    endless = iter(lambda: b"x" * 1000, None)  # answered, though it has no end
    head = {"X-Webhook-Secret": "no"}
    try:
        refused = requests.post(f"{served.url}/webhooks", data=endless, headers=head)
        assert refused.status_code == 401
    except requests.ConnectionError:
        pass  # the connection was closed on us
    assert served.counts("webhook_events") == {"forged": len(wrong) + 2}
    assert served.asked() == 0


def test_what_is_no_event_is_refused(served: Served) -> None:
    large = b" " * 1_000_001
    assert served.post(large) == served.post(iter([large])) == 413
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
        assert served.post(event(), kind=kind) == 415
    assert served.post(event(), kind="application/json; charset=utf-8") == 202
    for body in (b"", b"{", b"[" * 500_000, b"null", b"\xff", b'{"event": 1}', b'{"repo": {}}'):
        assert served.post(body) == 400
    assert requests.get(f"{served.url}/webhooks").status_code == 405


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scope=st.text(max_size=20) | st.sampled_from(["repo", "repo.content", "discussion.comment"]),
    kind=st.sampled_from(["model", "dataset", "", "../.."]),
    name=st.text(max_size=120) | st.from_regex(r"[a-z./@-]{1,9}/[a-z./@-]{1,9}", fullmatch=True),
)
def test_no_event_of_others_makes_us_ask_the_hub(
    served: Served, scope: str, kind: str, name: str
) -> None:
    told = {"event": {"scope": scope}, "repo": {"type": kind, "name": name}}
    assert served.post(told) == 202
    assert served.asked() == 0


def test_a_storm_costs_a_few_looks(served: Served) -> None:
    sha = served.commit(BASE)
    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(served.post, [event() for _ in range(1000)]))
    assert answers == {202}
    until(lambda: served.heads()[0] == sha)
    counts = served.counts("webhook_hints")
    assert counts["heard"] + counts["coalesced"] == 1000
    until(lambda: served.counts("webhook_hints")["looked"] == counts["heard"])
    until(lambda: served.asked() == counts["heard"])
    assert 1 <= counts["heard"] <= 5


def test_our_own_pushes_lead_to_nothing_and_answers_are_followed_up(served: Served) -> None:
    served.asks(TARGET)
    served.register()
    served.commit(TARGET)
    until(lambda: served.counts("webhook_hints").get("ignored", 0) > 0)
    assert served.answers == [] and served.counts("webhook_hints").get("looked", 0) == 0
    served.api.create_discussion(TARGET, title="Why?")
    until(lambda: served.answers == [TARGET])
    assert served.heads()[1][1:] == []


def test_where_nothing_is_asked_discussions_lead_to_nothing(served: Served) -> None:
    looks = Looks(served.context, lambda *_: None)
    said = Hint(Topic.DISCUSSION, TARGET)
    assert looks(said) == []
    served.asks(TARGET)
    (answers,) = looks(said)
    assert not answers()  # no news: the next look can wait


def test_what_is_touched(served: Served) -> None:
    for name in ("vendor/Model-v1", "vendor/tuned"):
        served.commit(name)
    pattern = served.subscribe(Rule.REPOS, "vendor/Model-v*")
    tree = served.subscribe(Rule.TREE, BASE, "", to="owner/mine-on-{name}")
    with served.context.database.session() as session:
        session.add(
            Release(
                base_id=tree,
                **{"from_repo": BASE, "from_ref": "main", "from_sha": ""},
                **{"repo": "vendor/tuned", "ref": "main", "sha": "5" * 40},
            )
        )
    with served.context.database.session() as session:
        assert touched(session, BASE) == [served.base]
        assert touched(session, "vendor/Model-v2") == [pattern]
        assert touched(session, "vendor/Model-vX") == touched(session, "vendor/other") == []
        assert touched(session, "other/Model-v2") == []
        assert touched(session, "vendor/tuned") == [tree]
        assert followed_repos(session) == {"vendor"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda api, hook: api.delete_webhook(hook.id),
        lambda api, hook: api.disable_webhook(hook.id),
        lambda api, hook: api.update_webhook(hook.id, secret="another"),
        lambda api, hook: api.update_webhook(hook.id, domains=["repo"]),
        lambda api, hook: api.update_webhook(hook.id, watched=[{"type": "org", "name": "x"}]),
        lambda api, hook: api.create_webhook(url=hook.url, watched=hook.watched),
        lambda api, hook: api.update_webhook(hook.id, url="http://elsewhere.example/"),
    ],
    ids=["deleted", "disabled", "secret", "domains", "watched", "doubled", "moved"],
)
def test_our_webhook_is_mended_and_no_other_one_is_touched(
    served: Served, damage: Callable[[HfApi, Any], None]
) -> None:
    watched = [{"type": "model", "name": BASE}]
    served.api.create_webhook(url="http://other.example/", watched=watched, secret="theirs")
    served.register()
    ours = f"{served.url}/webhooks"
    (made,) = hooks(served)[ours]
    damage(served.api, made)
    before = hooks(served)
    served.register()
    after = hooks(served)
    (mended,) = after.pop(ours)
    assert (mended.secret, mended.disabled) == (SECRET, False)
    assert set(mended.domains) == {"repo", "discussion"}
    assert [(item.type, item.name) for item in mended.watched] == [("model", BASE)]
    before.pop(ours, None)
    assert after == before

    assert register(served.context.hub, ours, SECRET, {Watched("model", BASE)}) is None


def test_the_webhook_goes_with_what_is_followed(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.register()
    served.commit("vendor/second")
    served.subscribe(repo="vendor/second")
    served.asks(TARGET)
    served.server.faults.add("settings/webhooks", status=500)
    served.register()
    assert "the poll finds" in caplog.text and SECRET not in caplog.text
    served.register()
    ((hook,),) = hooks(served).values()
    assert {item.name for item in hook.watched} == {BASE, "vendor/second", TARGET}
    with served.context.database.session() as session:
        session.query(Port).delete()
        for subscription in session.scalars(select(Subscription)):
            subscription.ended_at = subscription.created_at
    served.register()
    assert hooks(served) == {}


def test_every_hint_is_looked_at_after_it_was_given_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "PAUSE", 0.0)
    monkeypatch.setattr(hints, "MOST_LOOKS", 1000)
    given_at: dict[Hint, int] = {}
    looked_at: dict[Hint, int] = {}
    busy: set[Hint] = set()
    tick = iter(range(10**6))

    def looks(hint: Hint) -> list[Callable[[], bool]]:
        def one() -> bool:
            assert hint not in busy
            busy.add(hint)
            looked_at[hint] = next(tick)
            time.sleep(0.001)
            busy.remove(hint)
            return False

        return [one]

    async def storm() -> Hints:
        them, draw = Hints(looks), random.Random(0)
        for _ in range(300):
            hint = Hint(draw.choice(list(Topic)), f"a/{draw.randrange(9)}")
            given_at[hint] = next(tick)
            them.add(hint)
            await asyncio.sleep(draw.choice((0, 0.001)))
        while them._tasks:
            await asyncio.sleep(0.001)
        return them

    outcomes = asyncio.run(storm()).outcomes
    assert looked_at.keys() == given_at.keys()
    assert all(looked_at[hint] > given_at[hint] for hint in given_at)
    assert outcomes["heard"] + outcomes["coalesced"] == 300
    assert outcomes["heard"] <= outcomes["looked"] <= outcomes["heard"] + 300


def test_hints_have_a_budget_and_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "MOST_LOOKS", 5)
    monkeypatch.setattr(hints, "MOST_HINTS", 20)

    async def flood() -> Hints:
        them = Hints(lambda _: [lambda: True])
        for number in range(50):
            them.add(Hint(Topic.REPO, f"a/{number}"))
        while them.outcomes["looked"] < 5:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        them.close()
        return them

    outcomes = asyncio.run(flood()).outcomes
    assert (outcomes["looked"], outcomes["heard"], outcomes["dropped"]) == (5, 20, 30)


def test_a_look_that_fails_is_said_and_made_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "PAUSE", 0.0)
    calls = []

    def looks(hint: Hint) -> list[Callable[[], bool]]:
        calls.append(hint)
        if len(calls) == 1:
            raise OSError("the database is away")
        return []

    async def once() -> None:
        them = Hints(looks)
        them.add(Hint(Topic.REPO, BASE))
        while them._tasks:
            await asyncio.sleep(0.001)

    asyncio.run(once())
    assert len(calls) == 2 and f"{BASE}: could not be looked at" in caplog.text


def test_the_command_refuses_what_is_not_safe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    portllm = Portllm(capsys, monkeypatch)
    monkeypatch.setattr("bot.logs.set_up", lambda: None)
    monkeypatch.setenv("PORTLLM_HOME", str(tmp_path))
    for secret in ("", "short", "\u00e4" * 40, "with\nlines" * 9):
        monkeypatch.setenv("PORTLLM_WEBHOOK_SECRET", secret)
        portllm("serve", code=2)
        assert "openssl rand" in portllm.messages and "--no-webhooks" in portllm.messages
    monkeypatch.setenv("PORTLLM_WEBHOOK_SECRET", SECRET)
    for url in ("http://bot.example.com", "bot.example.com", "https://", "https://me:it@a.example"):
        portllm("serve", "--url", url, code=2)
    portllm("serve", "--no-webhooks", "--url", "https://bot.example.com", code=2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        portllm("serve", "--port", taken.getsockname()[1], code=2)
    assert "can't listen" in portllm.messages and SECRET not in portllm.messages


def test_beside_the_bot_an_event_is_a_workflow_long_before_the_poll(
    hub: Server, tmp_path: Path
) -> None:
    place = Served(hub, tmp_path / "home")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": str(place.api.token),
        "PORTLLM_HOME": str(tmp_path / "home"),
        "PORTLLM_POLL_SECONDS": "3600",
        "PORTLLM_WEBHOOK_SECRET": SECRET,
    }
    commands = (["bot", "run"], ["serve", "--port", port, "--url", f"http://127.0.0.1:{port}"])
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "bot.cli", *command],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        until(lambda: len(hooks(place)) == 1)
        until(lambda: place.looked_at() is not None)  # the poll, for this hour
        place.commit(BASE)
        until(lambda: place.changes() != [] and None not in place.changes())
        assert requests.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    finally:
        for process in running:
            process.terminate()
        said = [process.communicate(timeout=30)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    lines = [json.loads(line) for line in said[1].splitlines()]
    assert f"{BASE}@main moved to" in said[1] and lines[-1]["message"] == "Stopped."
    assert all({"at", "level", "message"} <= line.keys() for line in lines)
    assert SECRET not in "".join(said) and str(place.api.token) not in "".join(said)
