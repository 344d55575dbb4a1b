"""This machine: room on the disk, who else can read our files, and the libraries."""

import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from bot.doctor.finding import Finding, error, ok, warning

LEAST = 10**10  # bytes
TIMES = 3  # a port has the old base, the new one and the merged one on disk


def check_disk(home: Path, largest: int) -> Finding:
    """Whether `home` can be written, and a port to a base of `largest` bytes has room there."""
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    if not os.access(there, os.W_OK):
        return error("disk", f"{there} can't be written.", "Set PORTLLM_HOME to a folder of yours.")
    free, need = shutil.disk_usage(there).free, max(LEAST, TIMES * largest)
    says = f"{home} has {_gigabytes(free)} free; a port may need {_gigabytes(need)}."
    if free < need:
        return warning("disk", says, "Make room, or set PORTLLM_HOME to a larger disk.")
    return ok("disk", says)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def check_privacy(files: Sequence[Path]) -> Finding:
    """Whether other users of this machine can read one of `files`."""
    open_ones = [str(file) for file in files if file.exists() and is_exposed(file)]
    if open_ones:
        return warning(
            "privacy",
            f"Other users of this machine can read {' and '.join(open_ones)}.",
            f"Run: chmod go= {' '.join(open_ones)}",
        )
    return ok("privacy", "Only you can read the registry and the token.")


def is_exposed(file: Path) -> bool:
    """Whether the modes of `file` and of the folders above it let its group or others read it."""
    path = file.resolve()
    modes = [folder.stat().st_mode for folder in path.parents]
    return any(
        path.stat().st_mode & read and all(mode & enter for mode in modes)
        for read, enter in ((0o040, 0o010), (0o004, 0o001))
    )


def check_libraries() -> Finding:
    """Whether what is not the same on every platform is installed."""
    if find_spec("torch") is None:
        return error("libraries", "torch is not installed.", "Install PortLLM again, with pip.")
    if find_spec("hf_xet") is None:
        return warning(
            "libraries",
            "hf_xet is not installed: every upload sends whole files.",
            "Run: pip install hf_xet",
        )
    return ok("libraries", f"torch {version('torch')}, hf_xet {version('hf_xet')}.")
