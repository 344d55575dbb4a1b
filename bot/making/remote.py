"""A repo that is larger than the disk: what was read of it stands in for the whole."""

import os
import shutil
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from bot.hub import Hub, HubRepo
from porting import TensorInfo
from porting.errors import HubError, Refused
from porting.source import sha256

STEP = 1 << 26  # bytes of a tensor that are held in memory at once
LARGE = 64  # hex digits: large files are known by their sha256, others by git's sha1


class Remote(HubRepo):
    """A repo at one commit that remembers every range that was read of it."""

    def __init__(self, hub: Hub, repo: str, sha: str) -> None:
        super().__init__(hub, repo, sha)
        self._ranges: dict[tuple[str, int, int], bytes] = {}

    def read(self, file: str, start: int, end: int) -> bytes:
        if (file, start, end) not in self._ranges:
            self._ranges[file, start, end] = super().read(file, start, end)
        return self._ranges[file, start, end]

    def lfs_sha256(self, file: str) -> str | None:
        """Of a large file, which the Hub tells without a download; None of one kept in git."""
        digest = self.files()[file].digest
        return digest if len(digest) == LARGE else None

    def download(self, file: str, folder: Path) -> Path:
        """The whole file, in `folder`. Raises HubError where it is not what the Hub says it is."""
        path = self.hub.download(self.repo, self.sha, file, folder)
        known = self.lfs_sha256(file)
        whole = path.stat().st_size == self.files()[file].size
        if not whole or (known is not None and sha256(path) != known):
            raise HubError(f"{self.name}: {file} did not arrive whole.")
        return path

    def lay_out(self, folder: Path, files: Iterable[str], tensors: Iterable[TensorInfo]) -> None:
        """Make `folder` anew, with every file in it that planning again will ask for.

        Each is sparse: of its full size, but only what was read so far and the values of `tensors`
        take room on the disk. All else reads as zeros.

        Raises:
            Refused: a name that would lie outside the folder.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in files:
            path = folder / file
            if not path.resolve().is_relative_to(folder.resolve()):
                raise Refused(f"{self.name}: {file!r} would lie outside of its folder.")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                os.truncate(out.fileno(), self.files()[file].size)
        for (file, start, _), content in list(self._ranges.items()):  # other threads read on
            if (folder / file).exists():
                _write(folder / file, start, content)
        for tensor in tensors:
            for start in range(tensor.start, tensor.end, STEP):
                content = super().read(tensor.file, start, min(start + STEP, tensor.end))
                _write(folder / tensor.file, start, content)


@lru_cache(maxsize=8)
def remote(hub: Hub, repo: str, sha: str) -> Remote:
    """The repo with all that this process has read of it: a commit never changes."""
    return Remote(hub, repo, sha)


def _write(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as out:
        out.seek(start)
        out.write(content)
