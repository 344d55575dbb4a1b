"""The client's errors become ours: `Refused` (asking again won't help) or `HubError` (it may)."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    FileDuplicationError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from porting.errors import HubError, Refused


class StaleParent(HubError):
    """Somebody else committed first; look again and plan anew."""


class NotCopied(HubError):
    """The Hub can't copy a file between these repos; its bytes have to be sent. Nothing changed."""


class Forgotten(HubError):
    """A file that was uploaded, but never committed, is no longer on the Hub. Nothing changed."""


class Missing(Refused):
    """A revision or file that is named for sure is not there: it is gone, or not there yet."""


class NoRepo(Refused):
    """There is no such repo, or none that this token may see: the Hub does not say which."""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn the client's errors into ours; `what` names the repo and revision they are about."""
    try:
        yield
    except GatedRepoError as error:
        raise Refused(f"{what} is gated: accept its terms on the Hub with this account.") from error
    except RepositoryNotFoundError as error:
        # Without a token that it takes, the Hub answers 401 whatever there is.
        kind = NoRepo if error.response.status_code == 404 else Refused
        raise kind(f"{what} does not exist, or this token may not see it.") from error
    except RevisionNotFoundError as error:
        raise Missing(
            f"{what} does not exist: the repo has no such revision (any more)."
        ) from error
    except LocalEntryNotFoundError as error:
        raise HubError(f"{what} could not be fetched: the Hub did not answer.") from error
    except EntryNotFoundError as error:
        raise Missing(f"{what}: the file does not exist.") from error
    except FileDuplicationError as error:
        raise NotCopied(f"The Hub does not copy to {what}: {_first_line(error)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if error.response.url.path.endswith("/lfs-files/duplicate"):
            raise NotCopied(f"The Hub does not copy to {what} (HTTP {status}).") from error
        if status == 412:
            raise StaleParent(f"{what} was changed by somebody else meanwhile.") from error
        if status == 400 and "pointed to a file that does not exist" in str(error):
            raise Forgotten(f"The Hub no longer has a file that was sent to {what}.") from error
        if status == 401:
            raise Refused(
                f"The Hub does not take this token, for {what} (HTTP 401): log in again with "
                "`hf auth login`, or give another HF_TOKEN."
            ) from error
        if status in (400, 402, 403, 409, 413, 422):
            raise Refused(
                f"The Hub refuses {what} (HTTP {status}): {_first_line(error)}"
            ) from error
        raise HubError(f"The Hub failed on {what} (HTTP {status}): {_first_line(error)}") from error
    except (httpx.HTTPError, ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        # No answer, half of one, something that is no answer of a Hub, or hf_xet giving up.
        raise HubError(f"The Hub can't be reached for {what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
