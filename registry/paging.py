"""Where a page of a list ends, as text, so that the next one begins there."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Integer

from porting.errors import UsageError
from registry.models import UtcDateTime


def written(record: object, keys: tuple[Any, ...]) -> str:
    """The cursor that ends a page with this record, in the order of the columns `keys`."""
    values = (getattr(record, key.key) for key in keys)
    return "~".join(
        value.isoformat() if isinstance(value, datetime) else str(value) for value in values
    )


def values(keys: tuple[Any, ...], cursor: str) -> list[Any]:
    """Those of the columns `keys`. Raises UsageError where the cursor is none of such a list."""
    parts = cursor.split("~")
    if len(parts) != len(keys):
        raise _no_cursor(cursor)
    return [_read(key.type, part) for key, part in zip(keys, parts, strict=True)]


def number(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 10):
        raise _no_cursor(cursor)
    return int(cursor)


def _read(kind: Any, part: str) -> Any:
    if isinstance(kind, Integer):
        return number(part)
    if not isinstance(kind, UtcDateTime):
        return part
    try:
        return datetime.fromisoformat(part).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _no_cursor(part) from error


def _no_cursor(cursor: str) -> UsageError:
    return UsageError(f"{cursor[:80]} is no cursor of this list: take `next` of an answer.")
