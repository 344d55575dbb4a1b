"""A second opinion on the Hub's wire protocol: npm's `@huggingface/hub`, an independent client.

It brings its own implementation of Xet as well.
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from localhub.server import Server

VERSION = "2.17.5"
SCRIPT = Path(__file__).parent / "js" / "hub_client.mjs"


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """The installed package, kept in the system's temporary folder between runs."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are needed to run the JavaScript client")
    name = f"portllm-tests-{os.getuid()}-huggingface-hub-{VERSION}"
    cache = Path(tempfile.gettempdir()) / name
    if not cache.exists():
        fresh = Path(tempfile.mkdtemp())
        package = f"@huggingface/hub@{VERSION}"
        install = subprocess.run(
            ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", package],
            cwd=fresh,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if install.returncode != 0:
            pytest.skip(f"npm cannot install {package}: {install.stderr[-200:]}")
        fresh.replace(cache)
    return cache / "node_modules"


@pytest.mark.parametrize("transfer", ["lfs", "xet"])
def test_the_javascript_client(
    hub: Server, tmp_path: Path, node_modules: Path, transfer: str
) -> None:
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "node_modules").symlink_to(node_modules)
    run = subprocess.run(
        ["node", SCRIPT.name, hub.endpoint, hub.add_user("alice"), "alice/model", transfer],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)

    assert seen["user"] == "alice"
    assert seen["created"] == f"{hub.endpoint}/alice/model"
    assert (seen["exists"], seen["missing"]) == (True, False)

    files = {row["path"]: row for row in seen["files"] if row["type"] == "file"}
    files.pop(".gitattributes", None)
    assert set(files) == {"config.json", "notes.txt", "sub folder/weights.safetensors"}
    sent, received = seen["weights"]
    assert sent == received == files["sub folder/weights.safetensors"]["lfs"]["oid"]
    assert files["sub folder/weights.safetensors"]["size"] == 2_000_000
    assert "lfs" not in files["config.json"]

    assert seen["info"]["name"] == "alice/model"
    assert seen["info"]["private"] is False
    assert seen["config"] == seen["before"] == '{"hidden_size": 32}'
    assert seen["after"] == "{}"
    assert (seen["notesExist"], seen["configExists"]) == (False, True)
    assert seen["commits"][:3] == ["Delete and replace", "Add notes.txt", "Add two files"]
    assert len({seen["firstCommit"], seen["info"]["sha"], seen["lastCommit"]}) == 3
    assert seen["stale"] == 412

    xet_calls = [call.split("/v1/")[1] for call in seen["offered"] if "/xet-cas/" in call]
    stored = [call.split("/")[0] for call in xet_calls if not call.startswith("chunks/")]
    assert stored == (["xorbs", "shards"] if transfer == "xet" else [])
