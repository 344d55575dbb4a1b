"""The repositories on disk: one bare git repository each, with its settings beside the objects."""

import re
import secrets
import shutil
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from localhub.errors import HubError, repo_not_found
from localhub.files import now, read_json, write_json
from localhub.git import git

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
URL_PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}
RESERVED = {"api", "datasets", "models", "spaces", "xet-cas"}

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")


def check_name(name: str) -> None:
    """Raises `HubError` 400 unless `name` may be a namespace or the name of a repository."""
    if not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise HubError(
            400,
            f"Invalid name {name!r}: use up to 96 letters, digits, '-', '_' and '.', "
            "not '-' or '.' at either end, no '--' or '..', and no '.git' ending",
        )


@dataclass(frozen=True)
class Repo:
    """One repository. `kind` is model, dataset or space; `id` is namespace/name."""

    kind: str
    id: str
    path: Path
    lock: threading.RLock = field(compare=False, repr=False)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def web_path(self) -> str:
        return f"{URL_PREFIX[self.kind]}{self.id}"

    @property
    def api_path(self) -> str:
        return f"api/{KINDS[self.kind]}/{self.id}"

    @property
    def state(self) -> Path:
        """Folder for what the Hub knows of the repository beyond git."""
        return self.path / "localhub"

    @property
    def settings(self) -> dict[str, Any]:
        """`_id`, `createdAt`, `private`, `gated`, `granted` (user names), `sdk`."""
        settings: dict[str, Any] = read_json(self.state / "settings.json", {})
        return settings

    def holds(self, sha256: str) -> bool:
        """Whether a large file was uploaded or copied here, committed or not.

        The bytes are stored once for all repositories; without this, who knows the sha256 of a
        private file could commit it elsewhere. On the Hub they are not shared either
        (huggingface_hub#2876).
        """
        return (self.state / "lfs" / sha256).exists()

    def hold(self, sha256: str) -> None:
        """Note that the large file, which the blob store has, belongs to this repository."""
        (self.state / "lfs").mkdir(exist_ok=True)
        (self.state / "lfs" / sha256).touch()

    def update_settings(self, **changes: Any) -> None:
        with self.lock:
            write_json(self.state / "settings.json", {**self.settings, **changes})


class RepoStore:
    """All repositories below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._locks: defaultdict[Path, threading.RLock] = defaultdict(threading.RLock)
        self._root.mkdir(parents=True, exist_ok=True)

    def _repo(self, kind: str, repo_id: str) -> Repo:
        namespace, _, name = repo_id.partition("/")
        check_name(namespace)
        check_name(name)
        path = self._root / KINDS[kind] / namespace / f"{name}.git"
        return Repo(kind, repo_id, path, self._locks[path])

    def find(self, kind: str, repo_id: str) -> Repo | None:
        """The repository, or None when it does not exist or the id is not one."""
        try:
            repo = self._repo(kind, repo_id)
        except HubError:
            return None
        return repo if repo.path.is_dir() else None

    def list(self, kind: str, namespace: str = "") -> Iterator[Repo]:
        """Those of a kind by name, or those of it in one namespace."""
        if namespace and not _NAME.fullmatch(namespace):
            return
        for path in sorted((self._root / KINDS[kind]).glob(f"{namespace or '*'}/*.git")):
            yield self._repo(kind, f"{path.parent.name}/{path.stem}")

    def create(
        self, kind: str, repo_id: str, settings: dict[str, Any], fill: Callable[[Repo], None]
    ) -> Repo:
        """Make a repository, `fill` it out of sight, and let it appear under its name at once.

        Raises `HubError` 409 when there is one already.
        """
        repo = self._repo(kind, repo_id)
        if repo.namespace in RESERVED:
            raise HubError(400, f"The namespace {repo.namespace!r} is reserved")
        with repo.lock:
            if repo.path.exists():
                raise HubError(409, f"You already created this {kind} repo")
            staged = self._root / f".{uuid.uuid4().hex}"
            bare = ("init", "--quiet", "--bare", "--template=", "--initial-branch=main")
            git(staged, *bare, str(staged))
            initial = {"_id": secrets.token_hex(12), "createdAt": now(), **settings}
            write_json(staged / "localhub" / "settings.json", initial)
            fill(replace(repo, path=staged))
            repo.path.parent.mkdir(parents=True, exist_ok=True)
            staged.rename(repo.path)
        return repo

    def copy(self, repo: Repo, copy_id: str) -> None:
        """Make a repository like `repo`. Raises `HubError` 409 when there is one already."""
        copy = self._repo(repo.kind, copy_id)
        if copy.path.exists():
            raise HubError(409, f"There is already a {repo.kind} {copy_id}")
        shutil.copytree(repo.path, copy.path, copy_function=shutil.copyfile)
        copy.update_settings(_id=secrets.token_hex(12))

    def delete(self, repo: Repo) -> None:
        """Out of sight in one rename, then off the disk. Its large files stay in the blob store."""
        doomed = self._root / f".{uuid.uuid4().hex}"
        with repo.lock:
            if not repo.path.is_dir():
                raise repo_not_found()
            repo.path.rename(doomed)
        shutil.rmtree(doomed)

    def move(self, repo: Repo, new_id: str) -> Repo:
        target = self._repo(repo.kind, new_id)
        first, second = sorted((repo, target), key=lambda each: each.id)
        with first.lock, second.lock:
            if target.path.exists():
                raise HubError(409, f"There is already a {repo.kind} {new_id}")
            target.path.parent.mkdir(parents=True, exist_ok=True)
            repo.path.rename(target.path)
        return target
