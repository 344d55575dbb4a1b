"""How a base or a patch is named on the command line: a local folder or `namespace/name[@rev]`."""

import re
from dataclasses import dataclass
from pathlib import Path

from porting.errors import UsageError

NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
REPO = re.compile(rf"(?P<repo>{NAME}/{NAME})(?:@(?P<revision>[A-Za-z0-9._/-]{{1,255}}))?")
SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RepoAddress:
    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def parse_repo(text: str) -> RepoAddress:
    """`namespace/name[@revision]`. Raises UsageError for anything else."""
    match = REPO.fullmatch(text)
    if match is None or ".." in text or "--" in match["repo"]:
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
