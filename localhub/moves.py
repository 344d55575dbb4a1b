"""The refs of a repository, and a journal of how they moved.

By the journal a read can be answered as if from a copy of the Hub that lags behind.
"""

from pathlib import Path

from localhub.errors import HubError
from localhub.git import git, run

MAIN = "refs/heads/main"
STALE = "The branch was updated since you opened this page. Please refresh and try again."
_NOTHING = "0" * 40


def move_ref(git_dir: Path, ref: str, new: str, old: str | None) -> None:
    """Point `ref` at `new` if it is still at `old` (None: if it does not exist yet).

    Raises `HubError` 412 when someone else was faster.
    """
    if run(git_dir, "update-ref", ref, new, old or _NOTHING).returncode != 0:
        raise HubError(412, STALE)
    record(git_dir, ref, old, new)


def record(git_dir: Path, ref: str, old: str | None, new: str | None) -> None:
    """Note a move in the journal; None where the ref did not exist before, or does not any more."""
    with _journal(git_dir).open("a", encoding="utf-8") as file:
        file.write(f"{ref} {old or _NOTHING} {new or _NOTHING}\n")


def _journal(git_dir: Path) -> Path:
    return git_dir / "localhub" / "moves"


def list_refs(git_dir: Path) -> dict[str, str]:
    """Every ref below heads, tags and pr with its commit (annotated tags are peeled)."""
    fields = "%(refname)%00%(objectname)%00%(*objectname)"
    patterns = ("refs/heads", "refs/tags", "refs/pr")
    lines = git(git_dir, "for-each-ref", f"--format={fields}", *patterns).decode().splitlines()
    parts = (line.split("\0") for line in lines)
    return {name: peeled or oid for name, oid, peeled in parts}


def refs_before(git_dir: Path, stale: int) -> tuple[dict[str, str], set[str]]:
    """The refs before the last `stale` moves, and the commits that only those brought.

    Goes back no further than to the first commit.
    """
    refs = list_refs(git_dir)
    lines = _journal(git_dir).read_text(encoding="utf-8").splitlines() if stale else []
    cut = max(len(lines) - stale, 1)
    seen, unseen = ([line.split() for line in part] for part in (lines[:cut], lines[cut:]))
    for ref, old, _ in reversed(unseen):
        refs.pop(ref, None)
        if old != _NOTHING:
            refs[ref] = old
    return refs, {new for _, _, new in unseen} - {new for _, _, new in seen}


def main_head(git_dir: Path) -> str:
    """Where main stands. Read without a process: a list asks for thousands."""
    try:
        return (git_dir / MAIN).read_text().strip()
    except FileNotFoundError:  # git has packed it
        return git(git_dir, "rev-parse", MAIN).decode().strip()
