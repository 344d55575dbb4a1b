"""What the tests share. The client reads its environment when imported, so that comes first."""

import os
import tempfile

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="portllm-tests-")  # not the cache of who runs them

from collections.abc import Iterator
from pathlib import Path

import pytest

from localhub.server import Server


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Server]:
    """A hub of this test's own, on a free port."""
    with Server(tmp_path / "hub") as server:
        yield server
