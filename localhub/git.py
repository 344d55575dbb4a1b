"""Running the `git` binary on a bare repository, independent of the user's own configuration."""

import os
import subprocess
from pathlib import Path

NAME = "localhub"
EMAIL = "localhub@localhost"

ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": NAME,
    "GIT_AUTHOR_EMAIL": EMAIL,
    "GIT_COMMITTER_NAME": NAME,
    "GIT_COMMITTER_EMAIL": EMAIL,
}

# A ref moves only after the objects behind it are on the disk. Commits under way are not shown.
_CONFIG = {
    "core.fsync": "objects,reference",
    "core.fsyncMethod": "batch",
    "transfer.hideRefs": "refs/localhub",
}
CONFIG = [part for key, value in _CONFIG.items() for part in ("-c", f"{key}={value}")]


class GitError(RuntimeError):
    """git exited with an error; the message is its standard error."""


def run(
    git_dir: Path, *args: str, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run git whatever its exit status."""
    return subprocess.run(
        ["git", *CONFIG, "--git-dir", str(git_dir), *args],
        input=stdin,
        env={**ENVIRONMENT, **(env or {})},
        capture_output=True,
        check=False,
    )


def git(git_dir: Path, *args: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> bytes:
    """Run git and return its standard output. Raises `GitError` when it fails."""
    done = run(git_dir, *args, stdin=stdin, env=env)
    if done.returncode != 0:
        raise GitError(f"git {args[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def read_blobs(git_dir: Path, oids: list[str]) -> list[bytes]:
    """The contents of many objects in one process. Raises `GitError` when one is missing."""
    output = git(git_dir, "cat-file", "--batch", stdin="".join(f"{o}\n" for o in oids).encode())
    contents = []
    position = 0
    for oid in oids:
        end = output.index(b"\n", position)
        header = output[position:end].split()
        if len(header) != 3:
            raise GitError(f"git cat-file: {oid} is missing")
        size = int(header[2])
        contents.append(output[end + 1 : end + 1 + size])
        position = end + 1 + size + 1
    return contents
