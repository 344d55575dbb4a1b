"""Pages of a list, joined by the absolute `Link: <...>; rel="next"` the client follows."""

from typing import TypeVar

from localhub.errors import HubError
from localhub.hub import Call

T = TypeVar("T")


def number(call: Call, name: str, default: int) -> int:
    """A query parameter that is a number from 0. Raises `HubError` 400."""
    text = call.query(name, str(default))
    if not text.isascii() or not text.isdigit():
        raise HubError(400, f"{name} must be a number, not {text!r}")
    return int(text)


def page(call: Call, items: list[T], size: int) -> tuple[list[T], dict[str, str]]:
    """The items this request asks for, and the headers that name the next page."""
    start = number(call, "cursor", 0)
    end = start + max(size, 1)
    if end >= len(items):
        return items[start:], {}
    following = call.request.url.include_query_params(cursor=end)
    return items[start:end], {"Link": f'<{following}>; rel="next"'}
