"""What a check found, in one sentence, and what to do about it in another."""

from dataclasses import asdict, dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    UNCHECKED = "unchecked"


@dataclass(frozen=True)
class Finding:
    check: str
    level: Level
    says: str
    do: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def ok(check: str, says: str) -> Finding:
    return Finding(check, Level.OK, says)


def warning(check: str, says: str, do: str) -> Finding:
    return Finding(check, Level.WARNING, says, do)


def error(check: str, says: str, do: str) -> Finding:
    return Finding(check, Level.ERROR, says, do)


def sentence(failure: Exception) -> str:
    """The first line of what `failure` says, with a full stop."""
    return str(failure).strip().splitlines()[0].rstrip(".") + "."


def unchecked(check: str, because: str) -> Finding:
    return Finding(check, Level.UNCHECKED, f"Not checked, because {because}.")
