"""What the Hub's client leaves in its cache when it is killed: halves of files, under new names."""

import time
from pathlib import Path

from huggingface_hub import constants

LONG = 24 * 3600.0  # seconds; who is still downloading has written to it since


def sweep_downloads() -> None:
    """Remove what nobody goes on with. Every download begins anew."""
    for path in Path(constants.HF_HUB_CACHE).glob("*/blobs/*.incomplete"):
        if path.exists() and time.time() - path.stat().st_mtime > LONG:
            path.unlink(missing_ok=True)
