"""Who asks, and what they may do.

`tokens.json` in the hub's folder maps a token to `{"user", "role": "read"|"write", "orgs": [...]}`.
A user owns the namespace of their own name and those of their organisations.
"""

import base64
import binascii
import enum
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from localhub.errors import HubError, repo_not_found
from localhub.files import read_json, write_json
from localhub.repos import Repo


class Access(enum.Enum):
    """What a request needs to be allowed to do with a repository."""

    SEE = "know that it exists and read its listing"
    CONTENT = "read its files: gated repositories ask for more than seeing"
    CONTRIBUTE = "open pull requests and discussions"
    WRITE = "change it"


@dataclass(frozen=True)
class User:
    name: str
    role: str
    orgs: tuple[str, ...]

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs


class Tokens:
    """The token file, read anew for every request so that it can be edited by hand."""

    def __init__(self, root: Path) -> None:
        self._path = root / "tokens.json"
        self._lock = threading.Lock()

    def add(self, name: str, *, orgs: tuple[str, ...] = (), role: str = "write") -> str:
        token = f"hf_{secrets.token_hex(17)}"
        with self._lock:
            known = read_json(self._path, {})
            known[token] = {"user": name, "role": role, "orgs": list(orgs)}
            write_json(self._path, known)
        return token

    def find(self, token: str) -> User | None:
        entry = read_json(self._path, {}).get(token)
        return entry and User(entry["user"], entry["role"], tuple(entry.get("orgs", ())))

    def first(self) -> tuple[str, str]:
        """`(user, token)` of the first token that can write. A new hub gets the user `me`."""
        for token, entry in read_json(self._path, {}).items():
            if entry["role"] == "write":
                return entry["user"], token
        return "me", self.add("me")


def authenticate(request: Request, tokens: Tokens) -> User | None:
    """The user of a Bearer token or, from git, of a Basic password. None when nothing is sent.

    Raises `HubError` 401 for a token nobody has.
    """
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        return None
    if scheme.lower() == "basic":
        try:
            credentials = base64.b64decode(credentials, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            credentials = ""
    user = tokens.find(credentials)
    if user is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return user


def authorize(user: User | None, repo: Repo | None, access: Access) -> Repo:
    """The repository, when `user` has `access` to it; otherwise the Hub's own refusal.

    A private repository does not exist for strangers.
    """
    if repo is None:
        raise repo_not_found()
    settings = repo.settings
    owner = user is not None and user.owns(repo.namespace)
    if settings["private"] and not owner:
        raise repo_not_found()
    if access is Access.SEE:
        return repo
    if access is Access.CONTENT:
        granted = user is not None and user.name in settings["granted"]
        if settings["gated"] and not owner and not granted:
            message = f"Access to {repo.kind} {repo.id} is restricted: ask its owner for access"
            raise HubError(403, message, "GatedRepo")
        return repo
    check_writer(user)
    if access is Access.WRITE and not owner:
        raise HubError(403, f"You don't have the rights to change {repo.id}")
    return repo


def check_writer(user: User | None) -> User:
    """Raises `HubError` unless there is a user and their token can write."""
    if user is None:
        raise HubError(401, "Invalid username or password.")
    if user.role != "write":
        raise HubError(403, "This token can only read: use a token with the write role")
    return user
