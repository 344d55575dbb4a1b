"""The extension of the Hub's own command: `hf portllm ...` runs this installation's `portllm`."""

import shutil
import sys
from datetime import UTC, datetime
from importlib.metadata import metadata, version
from pathlib import Path

from huggingface_hub.cli.extensions import EXTENSIONS_ROOT, ExtensionManifest

from porting.errors import UsageError

NAME = "portllm"


def install() -> Path:
    """Enter `portllm` where `hf` looks for its extensions, and return that folder.

    The entry is the one that `hf extensions install` writes, so `hf extensions list` and `remove`
    know it; that command itself knows only repos of GitHub.

    Raises UsageError where this environment has no `portllm` to run.
    """
    program = shutil.which(NAME, path=str(Path(sys.executable).parent))
    if program is None:
        raise UsageError(f"There is no {NAME} beside {sys.executable}: install it with pip first.")
    folder = EXTENSIONS_ROOT.expanduser() / f"hf-{NAME}"
    ExtensionManifest(
        owner=NAME,
        repo=f"hf-{NAME}",
        repo_id=f"{NAME} {version(NAME)}",
        short_name=NAME,
        executable_path=program,
        type="python",
        installed_at=datetime.now(UTC),
        description=str(metadata(NAME)["Summary"]),
    ).save(folder)
    return folder
