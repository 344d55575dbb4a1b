"""The commands that look and steer, as a user types them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.publishing.requests import follow_up
from localhub.server import Server
from registry.models import PortState
from tests.judged import BASE, PATCH, PORTED, Judged
from tests.world import Portllm


@pytest.fixture
def world(hub: Server, tmp_path: Path) -> Iterator[Judged]:
    made = Judged(hub, tmp_path)
    yield made
    made.context.database.close()


def test_what_is_shown_of_one_and_of_all(world: Judged, portllm: Portllm) -> None:
    assert "portllm subscribe" in (portllm("status"), portllm.messages)[1]
    asked = world.judge(world.subscribe())
    world.publish(asked)
    other, release = world.subscribe("owner/other"), world.read(asked).release_id
    waits = world.judge(other, "publish", release)
    assert [row["state"] for row in portllm.json("status", "--owner", "owner")] == [
        "asked", "judged"
    ]  # fmt: skip
    assert portllm.json("status", "--owner", "nobody") == []
    (row,) = portllm.json("status", "--patch", PATCH, "--state", "asked")
    assert row["port"] == asked and row["url"].endswith("/discussions/1")
    portllm("status", "--state", "happy", code=2)
    assert "up to date, classifying, waiting" in portllm.messages

    assert [row["port"] for row in portllm.json("ports")] == [waits, asked]
    assert [row["port"] for row in portllm.json("ports", "--limit", 1)] == [waits]
    assert [row["port"] for row in portllm.json("ports", "--state", "asked")] == [asked]
    assert portllm.json("ports", "--patch", "owner/another") == []
    assert f"portllm show {waits}" in (portllm("ports"), portllm.messages)[1]

    shown = portllm.json("show", asked)
    assert shown["verdict"]["action"] == "ask" and shown["trained_on"].startswith(f"{BASE}@")
    assert [each["attempt"] for each in shown["attempts"]] == [1]
    assert "The evidence says ask." in portllm("show", asked[5:12])
    assert shown["url"] in portllm.messages and "portllm logs" in portllm.messages
    (line,) = portllm.json("logs", asked)
    assert (line["attempt"], line["step"]) == (1, "publish")
    assert json.loads(portllm("logs", asked, "--follow", "--json")) == line
    assert portllm("logs", asked).count("\n") == 1
    portllm("show", "port-", code=2)
    assert "write more of it" in portllm.messages


def test_steering(world: Judged, portllm: Portllm) -> None:
    into = world.subscribe()
    key = world.judge(into)
    world.publish(key)
    portllm("pause", "--all", "--reason", "Moving house")
    assert "portllm resume --all" in portllm.messages
    assert "Moving house" in portllm.json("status")[0]["reason"]
    for wrong in (("pause",), ("resume", PORTED, "--all"), ("pause", PORTED, "--reason", "x")):
        portllm(*wrong, code=2)
    assert portllm.json("resume", "--all") == {"resumed": ["everything"]}
    assert portllm.json("pause", PATCH) == {"paused": [PORTED]}
    assert f"portllm resume {PORTED}" in portllm.json("status")[0]["reason"]
    portllm("resume", PORTED)

    world.api.change_discussion_status(PORTED, 1, "closed")
    follow_up(world.context, PORTED)
    (row,) = portllm.json("status")
    assert row["state"] == "declined" and f"portllm retry {key}" in row["reason"]
    assert portllm.json("retry", key) == {"port": key, "state": "waiting"}
    assert portllm.json("cancel", key) == {"port": key, "state": "cancelled"}
    portllm("cancel", key, code=2)
    assert f"portllm retry {key}" in portllm.messages
    portllm("retry", BASE, code=2)
    assert "Nothing is to be done" in portllm.messages

    first, second = (world.judge(into, "publish") for _ in range(2))
    for each in (first, second):
        world.publish(each)
    portllm("withdraw", second, code=2)
    assert portllm.json("withdraw", second, "--reason", "It leaks") == {
        "port": second, "state": "withdrawn"
    }  # fmt: skip
    said = portllm.json("rollback", PORTED)
    assert (said["rolled back"], said["restored"]) == (second, first)
    portllm("rollback", PORTED, code=2)
    assert f"portllm withdraw {first}" in portllm.messages
    assert world.read(first).state == PortState.PUBLISHED
