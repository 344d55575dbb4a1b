"""Content-addressed store for the bytes of large files, keyed by their sha256.

A blob appears under its name only when it is complete: it is written to a temporary file on the
same file system, flushed to disk, and renamed.
"""

import asyncio
import hashlib
import os
import re
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

_ABANDONED = 2 * 24 * 3600  # seconds after which an unfinished upload is swept away
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DigestError(ValueError):
    """The bytes received do not have the sha256 they were announced under."""


class BlobStore:
    """Files under `root`, each named by the lower-case hex sha256 of its content."""

    def __init__(self, root: Path) -> None:
        self._objects = root / "objects"
        self._tmp = root / "tmp"
        self._objects.mkdir(parents=True, exist_ok=True)
        self._tmp.mkdir(parents=True, exist_ok=True)
        for path in self._tmp.iterdir():
            if path.stat().st_mtime < time.time() - _ABANDONED:
                path.unlink()

    def path(self, sha256: str) -> Path:
        """Where the blob lies or would lie. Raises `ValueError` when `sha256` is not one."""
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"not a sha256: {sha256!r}")
        return self._objects / sha256[:2] / sha256[2:4] / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def tmp(self) -> Path:
        """A fresh path for a temporary file that `adopt` can rename into place."""
        return self._tmp / uuid.uuid4().hex

    def adopt(self, tmp: Path, sha256: str) -> None:
        """Move a finished temporary file in. The caller has checked that it hashes to `sha256`."""
        target = self.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tmp.open("rb") as file:
            os.fsync(file.fileno())
        tmp.replace(target)
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    async def receive(
        self, stream: AsyncIterator[bytes], expected_sha256: str | None
    ) -> tuple[str, int]:
        """Store a stream and return its sha256 and its size in bytes.

        Nothing is stored when the stream breaks off or, with `DigestError`, when it does not
        hash to `expected_sha256`.
        """
        tmp = self.tmp()
        digest = hashlib.sha256()
        size = 0
        try:
            with tmp.open("wb") as file:
                async for piece in _batches(stream):

                    def take(data: bytes = piece) -> None:
                        digest.update(data)
                        file.write(data)

                    await asyncio.to_thread(take)
                    size += len(piece)
            sha256 = digest.hexdigest()
            if expected_sha256 is not None and sha256 != expected_sha256:
                raise DigestError(f"received {sha256}, announced as {expected_sha256}")
            await asyncio.to_thread(self.adopt, tmp, sha256)
        finally:
            tmp.unlink(missing_ok=True)
        return sha256, size


async def _batches(stream: AsyncIterator[bytes], size: int = 1 << 20) -> AsyncIterator[bytes]:
    """The stream in pieces of about `size` bytes, so that one thread hop serves many packets."""
    pending: list[bytes] = []
    length = 0
    async for piece in stream:
        pending.append(piece)
        length += len(piece)
        if length >= size:
            yield b"".join(pending)
            pending, length = [], 0
    if pending:
        yield b"".join(pending)
