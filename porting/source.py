"""Where files come from: a local folder here, the Hub in `bot`. Everything read is hostile."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from porting.errors import Refused, UsageError

# Far above what the largest models need, and read in about a second.
MAX_JSON_BYTES = 25_000_000
MAX_CONFIG_BYTES = 5_000_000
NOT_CONTENT = (".git", ".cache")  # what git and the Hub's client keep beside the files


class FileEntry:
    """One file of a source.

    Args:
        size: bytes.
        digest: identity of the content, or a function that finds it when it is asked for. Only
            compared for equality, and only between sources of the same kind.
    """

    def __init__(self, size: int, digest: str | Callable[[], str]) -> None:
        self.size = size
        self._digest = digest

    @property
    def digest(self) -> str:
        if callable(self._digest):
            self._digest = self._digest()
        return self._digest


class Source(Protocol):
    """A repository at one commit, or a folder: names, sizes, identities and byte ranges."""

    @property
    def name(self) -> str:
        """For messages: `demo/base@abc1234`, or the folder's path."""

    def files(self) -> Mapping[str, FileEntry]:
        """All files by POSIX path relative to the root; asked for often, so it must be cheap."""

    def read(self, file: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (exclusive) of `file`; `Refused` if they are not all there."""


class Folder:
    """A `Source` over a local directory. No path leaves it.

    A file may be a symlink only to another file of the folder, or, in the layout of the Hub's
    cache (`snapshots/<commit>/file -> ../../blobs/<id>`), to a blob of the same repository.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise UsageError(f"{path} is not a folder: give the folder that holds the files")
        self.path = path
        self.name = str(path)
        root = path.resolve()
        self._roots = [root]
        if root.parent.name == "snapshots":
            self._roots.append(root.parent.parent / "blobs")

    def files(self) -> dict[str, FileEntry]:
        found = {}
        for parent, folders, names in os.walk(self.path):
            folders[:] = sorted(set(folders) - set(NOT_CONTENT))
            for name in names:
                file = (Path(parent) / name).relative_to(self.path).as_posix()
                path = self.locate(file)
                found[file] = FileEntry(path.stat().st_size, partial(sha256, path))
        return dict(sorted(found.items()))

    def read(self, file: str, start: int, end: int) -> bytes:
        with self.locate(file).open("rb") as stream:
            stream.seek(start)
            data = stream.read(end - start)
        if len(data) != end - start:
            raise Refused(
                f"{file} in {self.name} ends before byte {end}: it is truncated, fetch it again"
            )
        return data

    def locate(self, file: str) -> Path:
        """The real path of `file`; `Refused` if it is missing or lies outside the folder."""
        path = Path(os.path.realpath(self.path / file))  # Path.resolve raises on circular links
        if not any(path.is_relative_to(root) for root in self._roots):
            raise Refused(f"{file!r} in {self.name} points outside the folder: replace the link")
        if not path.is_file():
            raise Refused(f"{file!r} is missing in {self.name}, or is not a plain file: add it")
        return path


def sha256(path: Path) -> str:
    """Hex digest of a whole file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(source: Source, file: str, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object; `Refused` if it is missing, too long or anything else than an object."""
    entry = source.files().get(file)
    if entry is None:
        raise Refused(f"{file} is missing in {source.name}: add it")
    if entry.size > limit:
        raise Refused(f"{file} in {source.name} has {entry.size} bytes, too long for its kind")
    return parse_json(source.read(file, 0, entry.size), f"{file} in {source.name}")


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object strictly: UTF-8, no key twice, no NaN, no unprintable keys.

    Raises:
        Refused: the sentence begins with `where`.
    """
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_no_such_constant
        )
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where} is not strict JSON ({error}): write it again") from error
    if not isinstance(value, dict):
        raise Refused(f"{where} must hold a JSON object, not {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return found


def _no_such_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
