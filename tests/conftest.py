"""What the tests share. The client reads its environment when imported, so that comes first."""

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, one on each core
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="portllm-tests-")  # not the cache of who runs them

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from localhub.server import Server

if TYPE_CHECKING:
    from tests.world import Portllm, World


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Server]:
    """A hub of this test's own, on a free port."""
    with Server(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def portllm(
    world: "World",
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> "Portllm":
    """The commands, in this process, on the `world` of the test's own file."""
    from tests.world import Portllm  # the commands: not for every test

    monkeypatch.setattr("bot.hub.client.constants", SimpleNamespace(ENDPOINT=world.server.endpoint))
    monkeypatch.setattr("bot.logs.set_up", lambda: None)  # it would keep this test's stderr
    monkeypatch.setenv("HF_TOKEN", str(world.api.token))
    monkeypatch.setenv("PORTLLM_HOME", str(tmp_path / "home"))
    return Portllm(capsys, monkeypatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is computed, is in this process: each one of its own loads libraries anew."""
    from bot.making import compute
    from tests.quick_bot import computed  # the bot: not for every test

    monkeypatch.setattr("bot.making.sandbox.run", computed)
    monkeypatch.setattr(compute, "tell", compute.tell)  # which `computed` sets
