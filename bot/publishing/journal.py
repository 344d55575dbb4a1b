"""Which files of a publication the Hub has already, so that a killed attempt is not made again."""

import json
import time
from pathlib import Path

from bot.publishing.content import Uploaded
from porting.weights.staging import sync

LASTING = 24 * 3600  # seconds; the Hub drops files that nothing refers to after about 36 hours


class Journal:
    """Uploaded files by name, on disk before `add` returns. Those of a day ago are left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, tuple[str, int, float]] = {}
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            self._entries = {
                file: (sha256, size, at)
                for file, (sha256, size, at) in known.items()
                if time.time() - at < LASTING
            }

    def get(self, file: str) -> Uploaded | None:
        if file not in self._entries:
            return None
        sha256, size, _ = self._entries[file]
        return Uploaded(sha256, size)

    def add(self, file: str, uploaded: Uploaded) -> None:
        self._entries[file] = (uploaded.sha256, uploaded.size, time.time())
        self._write()

    def clear(self) -> None:
        self._entries = {}
        self._write()

    def _write(self) -> None:
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._entries), encoding="utf-8")
        sync(part)
        part.replace(self._path)
        sync(self._path.parent)
