"""The one exception a request may end in, and the answer the client makes a typed error of."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class HubError(Exception):
    """An HTTP error. `code` becomes `X-Error-Code`, which decides the client's exception class."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        headers: dict[str, str] | None = None,
        extra: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        self.extra = extra or {}
        if code is not None:
            self.headers["X-Error-Code"] = code


def repo_not_found() -> HubError:
    return HubError(404, "Repository not found", "RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(path: str, commit: str) -> HubError:
    """With the commit in the headers, the client caches that the file does not exist there."""
    message = f"Entry not found: {path}"
    return HubError(404, message, "EntryNotFound", headers={"X-Repo-Commit": commit})


def answer(_: Request, error: Exception) -> Response:
    """Starlette's exception handler for `HubError`."""
    assert isinstance(error, HubError)
    one_line = error.message.encode("ascii", "backslashreplace").decode().replace("\n", " ")
    return JSONResponse(
        {"error": error.message, **error.extra},
        status_code=error.status,
        headers={"X-Error-Message": one_line.replace("\r", " "), **error.headers},
    )
