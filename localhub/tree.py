"""What a revision contains: files, folders, and the large files behind LFS pointers."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response

from localhub.errors import HubError, entry_not_found, revision_not_found
from localhub.files import timestamp
from localhub.git import git, read_blobs
from localhub.hub import Call
from localhub.moves import MAIN, refs_before
from localhub.paging import page
from localhub.xet import xet_hash

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")
_SHA = re.compile(r"[0-9a-f]{40}")
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n"
)
_MAX_POINTER = 200  # bytes


@dataclass(frozen=True)
class Lfs:
    """A large file: sha256 and size in bytes of its content, size of the pointer in git."""

    sha256: str
    size: int
    pointer_size: int


@dataclass(frozen=True)
class Entry:
    """A file or, with `folder`, a directory. `size` is that of the content, LFS or not."""

    path: str
    oid: str
    size: int
    folder: bool = False
    lfs: Lfs | None = None

    @property
    def etag(self) -> str:
        """What the client names its cached copy by: sha256 of a large file, else the git blob."""
        return self.lfs.sha256 if self.lfs else self.oid


def pointer(sha256: str, size: int) -> bytes:
    """The file that stands for a large one (git-lfs specification, version 1)."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def is_revision(name: str) -> bool:
    """Whether this may name a revision: git's own operators (`..`, `^`, `@{`, `:/`) may not."""
    return _REVISION.fullmatch(name) is not None and ".." not in name


def resolve(git_dir: Path, revision: str, stale: int = 0) -> str:
    """The commit a branch, tag, `refs/...` or (short) sha stands for. Raises `HubError` 404.

    With `stale`, as it was before the last so many moves of the repository's refs.
    """
    if not is_revision(revision):
        raise revision_not_found(revision)
    names = [f"refs/heads/{revision}", f"refs/tags/{revision}", revision]
    if _SHA.fullmatch(revision):  # no branch can pass for a commit someone has pinned
        names = [revision]
    if stale:
        refs, unseen = refs_before(git_dir, stale)
        refs["HEAD"] = refs[MAIN]
        pinned = [revision] if _SHA.fullmatch(revision) and revision not in unseen else []
        names = [refs[name] for name in names if name in refs] or pinned
    questions = "".join(f"{name}^{{commit}}\n" for name in names).encode()
    for line in git(git_dir, "cat-file", "--batch-check", stdin=questions).splitlines():
        parts = line.split()
        if parts[1] == b"commit":
            return parts[0].decode()
    raise revision_not_found(revision)


@lru_cache(maxsize=256)
def entries(git_dir: Path, commit: str) -> dict[str, Entry]:
    """Everything in a commit by path, folders included, in git's order. Do not change it."""
    listing = git(git_dir, "ls-tree", "-r", "-t", "-l", "-z", commit).decode()
    rows = []
    for row in filter(None, listing.split("\0")):
        meta, path = row.split("\t", 1)
        _, kind, oid, size = meta.split()
        if kind != "commit":  # a submodule, which the Hub does not show
            rows.append(Entry(path, oid, 0 if size == "-" else int(size), folder=kind == "tree"))
    candidates = [e.oid for e in rows if not e.folder and e.size <= _MAX_POINTER]
    pointers = {
        oid: _POINTER.fullmatch(content)
        for oid, content in zip(candidates, read_blobs(git_dir, candidates), strict=True)
    }
    found = {}
    for entry in rows:
        match = pointers.get(entry.oid)
        if match and not entry.folder:
            lfs = Lfs(match[1].decode(), int(match[2]), entry.size)
            entry = Entry(entry.path, entry.oid, lfs.size, lfs=lfs)
        found[entry.path] = entry
    return found


def read_file(git_dir: Path, commit: str, path: str) -> bytes | None:
    """A file kept in git itself; None when there is none or it is a large one."""
    entry = entries(git_dir, commit).get(path)
    if entry is None or entry.folder or entry.lfs:
        return None
    return read_blobs(git_dir, [entry.oid])[0]


def row(entry: Entry) -> dict[str, Any]:
    """The entry as the tree and paths-info endpoints show it."""
    kind = "directory" if entry.folder else "file"
    shown: dict[str, Any] = {
        "type": kind,
        "oid": entry.oid,
        "size": entry.size,
        "path": entry.path,
    }
    if entry.lfs:
        lfs = entry.lfs
        shown["lfs"] = {"oid": lfs.sha256, "size": lfs.size, "pointerSize": lfs.pointer_size}
    return shown


def _last_commit(git_dir: Path, commit: str, path: str) -> dict[str, str]:
    log = git(git_dir, "log", "-1", "--format=%H%x00%ct%x00%s", commit, "--", f":(literal){path}")
    oid, seconds, title = log.decode().rstrip("\n").split("\0")
    return {"id": oid, "title": title, "date": timestamp(int(seconds))}


def _rows(call: Call, commit: str, shown: list[Entry], expand: bool) -> list[dict[str, Any]]:
    rows = [row(entry) for entry in shown]
    if expand:
        for each in rows:
            each["lastCommit"] = _last_commit(call.repo.path, commit, each["path"])
    return rows


def tree(call: Call) -> Response:
    """GET tree/{rev}[/{path}]?recursive=&expand="""
    commit = resolve(call.repo.path, call.param("rev"), call.stale)
    known = entries(call.repo.path, commit)
    folder = call.param("path").strip("/") if "path" in call.request.path_params else ""
    if folder and not (folder in known and known[folder].folder):
        raise entry_not_found(folder, commit)
    prefix = f"{folder}/" if folder else ""
    shown = [entry for path, entry in known.items() if path.startswith(prefix)]
    if not call.flag("recursive"):
        shown = [entry for entry in shown if "/" not in entry.path[len(prefix) :]]
    expand = call.flag("expand")
    part, headers = page(call, shown, size=50 if expand else 1000)
    return JSONResponse(_rows(call, commit, part, expand), headers=headers)


def paths_info(call: Call) -> list[dict[str, Any]]:
    """POST paths-info/{rev}; missing paths are left out. Form-encoded (Python) or JSON (JS)."""
    commit = resolve(call.repo.path, call.param("rev"))
    known = entries(call.repo.path, commit)
    if call.request.headers.get("content-type", "").startswith("application/json"):
        wanted, expand = call.json().get("paths", []), bool(call.json().get("expand"))
    else:
        form = call.form()
        wanted, expand = form.get("paths", []), form.get("expand") in (["true"], ["True"])
    if not isinstance(wanted, list) or not all(isinstance(path, str) for path in wanted):
        raise HubError(400, "'paths' must be a list of strings")
    shown = [known[path] for path in (w.strip("/") for w in wanted) if path in known]
    rows = _rows(call, commit, shown, expand)
    for each, entry in zip(rows, shown, strict=True):
        if entry.lfs and (name := xet_hash(call.hub, entry.lfs.sha256)):
            each["xetHash"] = name
    return rows
