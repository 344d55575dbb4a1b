"""How a base or a patch is named: a local folder, `namespace/name[@rev]`, hf://... or its page."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from porting.errors import UsageError

NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
REPO = re.compile(rf"(?P<repo>{NAME}/{NAME})(?:@(?P<revision>[A-Za-z0-9._/-]{{1,255}}))?")
HF = "hf://"
SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RepoAddress:
    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def plain(text: str) -> str:
    """`text` as namespace/name[@revision], if it is an hf:// address or a page of the Hub."""
    if text.startswith(HF):
        return unquote(text.removeprefix(HF).removeprefix("models/").rstrip("/"))
    if text.startswith(("https://", "http://")):
        from bot.hub.page import repo_of  # the client of the Hub: not for every command

        return str(RepoAddress(*repo_of(text)))
    return text


def parse_repo(text: str) -> RepoAddress:
    """`namespace/name[@revision]`, also as hf://... or as the address of its page on the Hub.

    Raises UsageError for anything else.
    """
    match = REPO.fullmatch(found := plain(text))
    if match is None or ".." in found or "--" in match["repo"]:
        raise UsageError(f"{text!r} is no repo: write namespace/name or namespace/name@revision.")
    return RepoAddress(match["repo"], match["revision"])


def parse(text: str) -> RepoAddress | Path:
    """A folder where one is meant (it exists, or starts with . / or ~), a repo otherwise."""
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if text.startswith((".", "/", "~")):
        raise UsageError(f"There is no folder {text}.")
    return parse_repo(text)
