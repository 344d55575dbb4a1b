"""Jobs, recorded and not run: what was asked for is kept in `jobs.json`, for tests to read."""

import secrets
import threading
from pathlib import Path
from typing import Any

from localhub.files import now, read_json, write_json

Job = dict[str, Any]
JOBS, SCHEDULED = "jobs", "scheduled-jobs"  # the two kinds, as the paths name them


class Jobs:
    """Every job as `{id, kind, owner, createdAt, body, initiator, stage}`.

    `body` is what the client sent, secrets and all; a scheduled one also has its `schedule`,
    `suspend` and `lastJob` of now.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / "jobs.json"
        self._lock = threading.Lock()

    def of(self, kind: str) -> list[Job]:
        """All of a kind, oldest first."""
        return [job for job in read_json(self._path, []) if job["kind"] == kind]

    def add(self, kind: str, owner: dict[str, str], body: Job, initiator: dict[str, str]) -> Job:
        job = {
            "id": secrets.token_hex(12),
            "kind": kind,
            "owner": owner,
            "createdAt": now(),
            "body": body,
            "initiator": initiator,
            "stage": "SCHEDULING",  # for good, unless it is cancelled
        }
        with self._lock:
            write_json(self._path, [*read_json(self._path, []), job])
        return job

    def update(self, job: Job, **changes: Any) -> Job:
        changed = {**job, **changes}
        with self._lock:
            known = read_json(self._path, [])
            write_json(self._path, [changed if each["id"] == job["id"] else each for each in known])
        return changed

    def delete(self, job: Job) -> None:
        with self._lock:
            known = read_json(self._path, [])
            write_json(self._path, [each for each in known if each["id"] != job["id"]])


def show_spec(body: Job) -> Job:
    """A job's specification as the Hub answers it: of its secrets, only the names."""
    hidden = ("secrets", "attempts", "timeoutSeconds")
    attempts = body.get("attempts")
    return {
        **{key: value for key, value in body.items() if key not in hidden},
        "secrets": sorted(body.get("secrets") or {}),
        "timeout": body.get("timeoutSeconds"),
        "retry": None if attempts is None else attempts - 1,
    }
