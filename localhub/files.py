"""Small JSON files that are either the old or the new version, whatever happens."""

import json
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def read_json(path: Path, default: Any) -> Any:
    """The parsed file, or `default` when there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return default
    return json.loads(text)


def write_json(path: Path, value: Any) -> None:
    """Write through a temporary file that is flushed and renamed. Only the owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    tmp.replace(path)


def timestamp(seconds: float) -> str:
    """A date as the client parses it: UTC, milliseconds, a trailing Z."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def now() -> str:
    return timestamp(datetime.now(UTC).timestamp())
