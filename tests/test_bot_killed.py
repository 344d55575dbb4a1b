"""Killed at the worst instant of any step, the bot finishes when it is started again; once."""

import signal
from pathlib import Path

import pytest

from localhub.server import Server
from tests.world import PORTED, World

# With an evaluation the port is published, without one it is asked for; the latter is quicker.
STEPS = [
    ("classify_release", "asked"),
    ("create_ports", "asked"),
    ("plan_port", "asked"),
    ("make", "asked"),
    ("publish", "asked"),
    ("remove_work", "asked"),
    ("measure", "published"),
    ("judge", "published"),
    ("publish", "published"),
]


@pytest.mark.parametrize(("step", "end"), STEPS)
def test_killed_after_a_step_it_finishes_once(
    hub: Server, tmp_path: Path, step: str, end: str
) -> None:
    world = World(hub, tmp_path).subscribed("adapter", evaluated=end == "published")
    new_sha = world.drift()
    world.portllm(step, script="-m tests.killed_bot", code=-signal.SIGKILL)

    world.portllm("bot", "run", "--once")

    (port,) = world.json("ports")
    assert port["state"] == end, port["reason"]
    ported = [title for title in world.commits(PORTED) if title.startswith("Port to")]
    tags = {tag.name: tag.target_commit for tag in world.api.list_repo_refs(PORTED).tags}
    requests = list(world.api.get_repo_discussions(PORTED))
    if end == "published":
        assert (len(ported), len(requests)) == (1, 0)
        assert tags == {f"base-{new_sha[:7]}": port["published_sha"]}
    else:
        assert (len(ported), len(requests)) == (0, 1)
        assert requests[0].title.startswith("Port to") and tags == {}
    assert not list((tmp_path / "home/work").glob("*"))
