"""Notices: signed, in the shape of who gets them, told once and again, and to nobody inside."""

import hashlib
import hmac
import json
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from bot import logs, notify
from bot.context import Context
from bot.notify import announcement, deliver, parse
from localhub.server import Server
from porting.errors import UsageError
from registry.models import Port, PortState, Subscription
from registry.ports import events
from tests.judged import BASE, PATCH, Judged
from tests.judged import judged as judged  # the fixture

SECRET = "T0SECRET/B0SECRET/" + "x" * 24


@dataclass
class Mailbox:
    """A receiver on this machine: what came, and what it answers with, the last one for ever."""

    answers: list[int] = field(default_factory=lambda: [200])
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{SECRET}"


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    box = Mailbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            box.came.append((dict(self.headers), body))
            self.send_response(box.answers.pop(0) if len(box.answers) > 1 else box.answers[0])
            self.send_header("Location", box.url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Not to stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        box.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield box
        server.shutdown()
        thread.join()


def told(judged: Judged, *receivers: str, state: str = "rejected", managed: bool = False) -> str:
    """The key of a port in that state, of whose subscription these are told."""
    into = judged.subscribe(judged.target())
    with judged.context.database.session() as session:
        subscription = session.get_one(Subscription, into)
        subscription.notify = {"receivers": [parse(each).text for each in receivers]}
        subscription.managed = managed
    key = judged.judge(into, "reject")
    judged.change(key, state=PortState(state), reason=f"<!channel> hf_{'aB1' * 8} says no.")
    return key


def tell(context: Context, key: str, times: int = 0) -> list[float | None]:
    said, count = announcement(context, key, 1)
    return [deliver(context, said, number, times) for number in range(count)]


def here(judged: Judged, **changes: Any) -> Context:
    return judged.with_settings(notify_private=True, **changes)


def log_of(judged: Judged, key: str) -> str:
    return "\n".join(event.text for event in judged.control(events, key))


def test_json_is_signed_and_says_everything_but_secrets(judged: Judged, mailbox: Mailbox) -> None:
    key = told(judged, f"json:{mailbox.url}")
    assert tell(here(judged, notify_secret=SecretStr("a key")), key) == [None]
    ((headers, body),) = mailbox.came
    signed = f"{headers['X-PortLLM-Timestamp']}.".encode() + body
    expected = hmac.new(b"a key", signed, hashlib.sha256).hexdigest()
    assert headers["X-PortLLM-Signature"] == f"sha256={expected}"
    said, job = json.loads(body), judged.read(key).job
    assert said["id"] == headers["X-PortLLM-Id"] == f"{key}.1.rejected"
    assert (said["patch"], said["base"], said["release"]) == (
        PATCH,
        job["new_repo"],
        job["new_sha"],
    )
    assert (said["event"], said["verdict"], said["url"]) == ("rejected", "reject", None)
    assert "says no." in said["reason"] and "hf_a" not in said["reason"]
    assert log_of(judged, key) == "Told json (127.0.0.1) that it is rejected."


@pytest.mark.parametrize("owner", ["stranger", BASE.partition("/")[0]])
def test_a_strangers_file_hears_nothing_of_a_private_base(judged: Judged, owner: str) -> None:
    key = told(judged, "discussion", state="refused", managed=True)
    with judged.context.database.session() as session:
        port = session.get_one(Port, key)
        port.subscription.patch.owner, port.release.base.private = owner, True
    said, count = announcement(judged.context, key, 1)
    assert (bool(said), count) == ((False, 0) if owner == "stranger" else (True, 1))


def test_slack_and_discord_get_their_shapes_and_nobody_is_called(
    judged: Judged, mailbox: Mailbox
) -> None:
    key = told(judged, f"slack:{mailbox.url}", f"discord:{mailbox.url}")
    assert tell(here(judged), key) == [None, None]
    slack, discord = (json.loads(body) for _, body in mailbox.came)
    assert slack["text"].startswith(f"Rejected: {PATCH} on ")
    assert "&lt;!channel&gt;" in slack["text"] and "<" not in slack["text"]
    assert discord["allowed_mentions"] == {"parse": []}
    assert "<!channel>" in discord["content"] and len(discord["content"]) <= 2000


@pytest.mark.parametrize(
    ("answer", "times", "later"),
    [(500, 0, 10.0), (429, 1, 120.0), (503, 5, None), (404, 0, None), (307, 0, None)],
)
def test_who_fails_is_told_again_and_whoever_sends_us_on_is_not_followed(
    judged: Judged, mailbox: Mailbox, answer: int, times: int, later: float | None
) -> None:
    mailbox.answers = [answer]
    key = told(judged, mailbox.url)
    assert tell(here(judged), key, times) == [later]
    assert len(mailbox.came) == 1
    assert f"HTTP {answer}" in log_of(judged, key)
    assert judged.read(key).state == PortState.REJECTED


def test_what_is_not_there_is_said_without_its_address(
    judged: Judged, mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    key = told(judged, f"json:http://127.0.0.1:{number}/{SECRET}")
    with caplog.at_level(logging.DEBUG):
        assert tell(here(judged), key) == [10.0]
    assert "ConnectionError" in log_of(judged, key) and "SECRET" not in log_of(judged, key)
    assert "SECRET" not in logs.redact(caplog.text)


def test_nothing_goes_to_a_private_address(
    judged: Judged, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = told(judged, mailbox.url)
    assert tell(judged.context, key) == [None] and mailbox.came == []
    assert "PORTLLM_NOTIFY_PRIVATE=1" in log_of(judged, key)
    strangers = told(judged, mailbox.url, managed=True)
    assert tell(here(judged), strangers) == [None] and mailbox.came == []

    resolve, heard = socket.getaddrinfo, []
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more, **how: resolve("127.0.0.1", *more, **how)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        inside = told(judged, f"https://innocent.example:{listener.getsockname()[1]}/")
        assert tell(judged.context, inside) == [None]
        connection, _ = listener.accept()
        heard.append(connection.recv(1))
        connection.close()
    assert heard == [b""]
    assert "innocent.example" in log_of(judged, inside) and "private" in log_of(judged, inside)


def test_who_answers_byte_by_byte_is_cut_off(
    judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "DEADLINE", 0.2)
    monkeypatch.setattr(notify, "TIMEOUT", (5.0, 900.0))
    monkeypatch.setattr(notify, "_is_public", lambda address: True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        key = told(judged, f"https://127.0.0.1:{listener.getsockname()[1]}/", managed=True)
        assert tell(judged.context, key) == [10.0]  # it never gets a word, nor a closed door


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example", "xn--a.example"])
def test_a_host_that_is_none_can_not_be_reached(judged: Judged, host: str) -> None:
    key = told(judged, f"json:https://{host}/{SECRET}", managed=True)
    assert tell(judged.context, key) == [10.0]
    assert "can't be reached" in log_of(judged, key) and SECRET not in log_of(judged, key)


def test_one_discussion_has_it_all_until_it_is_closed(judged: Judged) -> None:
    key = told(judged, "discussion", state="asked")
    said, _ = announcement(judged.context, key, 1)
    for _ in range(2):
        assert deliver(judged.context, said, 0, 0) is None
    other = said | {"id": f"{key}.2.published", "event": "published"}
    assert deliver(judged.context, other, 0, 0) is None
    (found,) = [
        each for each in judged.api.get_repo_discussions(PATCH) if judged.read(key).job["to_repo"]
        in each.title
    ]  # fmt: skip
    assert not found.is_pull_request
    details = judged.api.get_discussion_details(PATCH, found.num)
    comments = [event.content for event in details.events if event.type == "comment"]
    assert [each.partition(":")[0] for each in comments] == ["**Asked", "**Published"]
    judged.api.change_discussion_status(PATCH, found.num, "closed")
    deliver(judged.context, said | {"event": "failed"}, 0, 0)
    after = judged.api.get_discussion_details(PATCH, found.num)
    assert [e.content for e in after.events if e.type == "comment"] == comments


@pytest.mark.parametrize("state", [each.value for each in PortState])
def test_only_an_outcome_of_this_attempt_is_told(judged: Judged, state: str) -> None:
    key = told(judged, "discussion", state=state)
    outcome = state in ("published", "asked", "rejected", "refused", "failed")
    assert announcement(judged.context, key, 1)[1] == outcome
    assert announcement(judged.context, key, 2) == ({}, 0)


HOSTS = st.sampled_from(["hooks.slack.com", "discord.com", "example.org:8443", "[::1]", "a b", ""])
SCHEMES = st.sampled_from(["https://", "http://", "ftp://", "file://", "", "slack:https://",
                           "json:http://", "discord:", "telegram:https://"])  # fmt: skip


@given(SCHEMES, HOSTS, st.text(max_size=8))
def test_an_address_is_taken_or_refused_and_never_shown(scheme: str, host: str, tail: str) -> None:
    text = f"{scheme}{host}/{SECRET}{tail}"
    try:
        found = parse(text)
    except UsageError as error:
        assert "SECRET" not in str(error)
        return
    assert parse(found.text) == found and "SECRET" not in str(found)
    assert "SECRET" not in logs.redact(f"about {text}")
    assert found.url.startswith("https://") or "//[::1]" in found.url
    if not scheme.startswith(("slack:", "json:", "discord:")):
        kinds = {"hooks.slack.com": "slack", "discord.com": "discord"}
        assert found.kind == kinds.get(host, "json")


def test_a_port_is_told_of_once_though_its_receiver_failed_and_the_bot_was_stopped(
    hub: Server, tmp_path: Path, mailbox: Mailbox
) -> None:
    world = Judged(hub, tmp_path)
    mailbox.answers = [500, 200]
    key = told(world, f"json:{mailbox.url}")
    world.make(key, "publish")
    home = world.context.settings.home
    assert "SECRET" not in _run(world)
    assert world.read(key).state == PortState.PUBLISHED
    assert "HTTP 500. It is tried again in 10 s." in log_of(world, key)
    with sqlite3.connect(home / "workflows.db") as memory:  # ten seconds have passed
        memory.execute("UPDATE workflow_status SET delay_until_epoch_ms = 1 WHERE status='DELAYED'")
    memory.close()
    _run(world)
    ids = [json.loads(body)["id"] for _, body in mailbox.came]
    assert ids == [f"{key}.1.published"] * 2
    assert "Told json (127.0.0.1) that it is published." in log_of(world, key)
    world.context.database.close()


def _run(world: Judged) -> str:
    environment = {
        "HF_ENDPOINT": world.server.endpoint,
        "HF_TOKEN": str(world.api.token),
        "PORTLLM_HOME": str(world.context.settings.home),
        "PORTLLM_NOTIFY_PRIVATE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "bot.cli", "bot", "run", "--once"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
