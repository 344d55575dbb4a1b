"""What a commit consists of, beside bytes and files of this disk; and what went over the line."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Uploaded:
    """A large file that `Publisher.upload` has sent to the repo that it is to be committed to."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Copied:
    """A large file of `repo` at commit `sha`, which the Hub is to copy itself."""

    repo: str
    sha: str
    file: str


Content = Path | bytes | Uploaded | Copied


@dataclass
class Traffic:
    """Bytes of files that one `Hub` moved, past the cache of its client.

    Attributes:
        read: by range: headers, small files, values of an old base.
        downloaded: whole files.
        sent: of uploaded files, as `Publisher.upload` counts.
        uploaded: the size of these files.
    """

    read: int = 0
    downloaded: int = 0
    sent: int = 0
    uploaded: int = 0
