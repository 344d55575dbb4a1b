"""The collections on disk: lists of repositories on a page of their own, one JSON file each."""

import re
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from localhub.errors import HubError
from localhub.files import now, read_json, write_json

# Of characters. The client documents those of descriptions and notes; of titles nothing is said, so
# this Hub is strict.
LONGEST = {"title": 59, "description": 150, "note": 500}

_ID = re.compile(r"(?:.*-)?([0-9a-f]{24})")


def slug(collection: dict[str, Any]) -> str:
    """Its address: who changes the title changes it, all but the id at the end."""
    words = re.sub(r"[^a-z0-9]+", "-", collection["title"].lower()).strip("-")
    return f"{collection['owner']}/{words}-{collection['_id']}"


def check_length(name: str, text: object) -> str:
    """Raises `HubError` 400 in the Hub's words."""
    if not isinstance(text, str):
        raise HubError(400, f"Invalid input: expected string * at {name}")
    if len(text) > LONGEST[name]:
        raise HubError(
            400, f"Too big: expected string to have <={LONGEST[name]} characters * at {name}"
        )
    return text


class CollectionStore:
    """All collections below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.RLock()

    def list(self, owner: str | None = None) -> Iterator[dict[str, Any]]:
        """The last updated first."""
        found = [read_json(path, {}) for path in self._root.glob("[0-9a-f]*.json")]
        found = [each for each in found if owner in (None, each["owner"])]
        yield from sorted(found, key=lambda each: (each["lastUpdated"], each["_id"]), reverse=True)

    def find(self, owner: str, name: str) -> dict[str, Any] | None:
        """The one with this slug, or one it had under another title."""
        match = _ID.fullmatch(name)
        found: dict[str, Any] | None = match and read_json(self._path(match[1]), None)
        return found if found and found["owner"] == owner else None

    def create(self, owner: str, title: str, description: str | None, private: bool) -> Any:
        """Raises `HubError` 409 with the `slug` of the one that has this title."""
        with self._lock:
            mine = list(self.list(owner))
            for known in mine:
                if known["title"] == title:
                    raise HubError(409, "Collection already exists", extra={"slug": slug(known)})
            made: dict[str, Any] = {
                "_id": secrets.token_hex(12),
                "owner": owner,
                "title": title,
                "description": description,
                "private": private,
                "theme": "orange",
                "upvotes": 0,
                "position": len(mine),
                "items": [],
            }
            return self._save(made)

    def change(self, collection: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> Any:
        """Let `change` work on what is there now, which nobody else changes meanwhile."""
        with self._lock:
            fresh = self.find(collection["owner"], collection["_id"])
            if fresh is None:
                raise HubError(404, "Collection not found")
            change(fresh)
            return self._save(fresh)

    def delete(self, collection: dict[str, Any]) -> None:
        with self._lock:
            self._path(collection["_id"]).unlink(missing_ok=True)

    def _path(self, id: str) -> Path:
        return self._root / f"{id}.json"

    def _save(self, collection: dict[str, Any]) -> dict[str, Any]:
        saved = {**collection, "lastUpdated": now()}
        write_json(self._path(collection["_id"]), saved)
        return saved
