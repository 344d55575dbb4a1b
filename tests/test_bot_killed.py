"""Killed at the worst instant of any step, the bot finishes when it is started again; once."""

import signal
from pathlib import Path

import pytest

from localhub.server import Server
from tests.world import PATCH, PORTED, World

STEPS = [
    "classify_release",
    "create_port",
    "plan_port",
    "make",
    "measure",
    "judge",
    "publish",
    "remove_work",
]


@pytest.mark.parametrize("step", STEPS)
def test_killed_after_a_step_it_finishes_once(hub: Server, tmp_path: Path, step: str) -> None:
    world = World(hub, tmp_path).subscribed("adapter")
    new_sha = world.drift()
    world.portllm(step, script="-m tests.killed_bot", code=-signal.SIGKILL)

    world.portllm("bot", "run", "--once")

    (status,), (port,) = world.json("status"), world.json("ports")
    assert status["state"] == port["state"] == "published", port["reason"]
    ported = [title for title in world.commits(PORTED) if title.startswith("Port to")]
    assert len(ported) == 1
    tags = world.api.list_repo_refs(PORTED).tags
    assert [tag.name for tag in tags] == [f"base-{new_sha[:7]}"]
    assert tags[0].target_commit == port["published_sha"]
    assert port["patch"].startswith(PATCH)
    assert not list((tmp_path / "home/work").glob("*"))
