"""The addresses of the Hub's pages, as people copy them from a browser."""

from huggingface_hub import parse_hf_uri
from huggingface_hub.errors import HfUriError

from bot.hub.client import Hub
from porting.errors import UsageError


def repo_of(url: str) -> tuple[str, str | None]:
    """The repo of models that a page shows, and its revision if it says one.

    Raises UsageError for pages of anything else.
    """
    try:
        found = parse_hf_uri(url, endpoint=Hub().endpoint)
    except HfUriError as error:
        raise UsageError(f"{url!r} is no page of a repo: {error.msg}") from error
    if found.type != "model" or found.path_in_repo:
        raise UsageError(f"{url!r}: the page of a model repo is meant, or its /tree/REVISION.")
    return found.id, found.revision
