"""Anybody's check of a port: made again from what its lock names, is it the same to the byte?"""

import hashlib
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bot.context import ENGINE
from bot.hub import Hub, HubRepo
from bot.inputs import Inputs
from bot.port import make_in, parts, scaled
from bot.sandbox import Report
from patch_cards import lock
from porting.errors import Refused
from porting.files import CODE, TRAVEL, matches

SHA256 = re.compile(r"[0-9a-f]{64}")
LOADED = (*CODE, ".safetensors", ".index.json", ".gguf", "config.json")


@dataclass(frozen=True)
class File:
    """One file of a port, by sha256: as locked, as made again, as held by the Hub; None if not."""

    name: str
    locked: str | None
    made: str | None
    held: str | None

    @property
    def is_equal(self) -> bool:
        return self.locked == self.made == self.held


@dataclass(frozen=True)
class Verification:
    """What `verify` found. `engine` made the port, `ours` made it again.

    `inputs` is what the lock says it was made of, by role; `extra` what it holds beside the port.
    """

    port: str
    engine: str
    ours: str
    inputs: dict[str, Any]
    files: tuple[File, ...]
    extra: tuple[str, ...]

    def check(self) -> None:
        """Raises Refused, naming the files, unless all are equal."""
        unlike_made = [file.name for file in self.files if file.locked != file.made]
        unlike_held = [file.name for file in self.files if file.locked != file.held]
        found = []
        if unlike_held:
            found.append(f"what the Hub holds differs from the lock in {', '.join(unlike_held)}")
        if unlike_made:
            found.append(f"made again, it differs from the lock in {', '.join(unlike_made)}")
        if self.extra:
            found.append(f"programs may load what the lock does not name: {', '.join(self.extra)}")
        if unlike_made and self.engine != self.ours:
            found.append(f"it was made by {self.engine}, and this is {self.ours}")
        if found:
            raise Refused(f"{self.port}: {'; '.join(found)}.")

    def to_dict(self) -> dict[str, Any]:
        files = [asdict(file) | {"equal": file.is_equal} for file in self.files]
        return asdict(self) | {"files": files}


def verify(port: HubRepo, locked: lock.Lock, report: Report) -> Verification:
    """Make `port` again from its lock in the sandbox, in a temporary folder; compare every file.

    Raises:
        Refused: what the lock names can't be ported (any more).
    """
    with tempfile.TemporaryDirectory(prefix="portllm-verify-") as folder:
        work = Path(folder)
        inputs = scaled(_inputs(port.hub, locked), locked.scale, work)
        digests = make_in(work, inputs, report)
    made = {name: digests[part] for name, part in parts(locked.form, digests).items()}
    named = {"patch": locked.patch, "old base": locked.old_base, "new base": locked.new_base}
    return Verification(
        port=port.name,
        engine=locked.engine,
        ours=ENGINE,
        inputs={role: f"{repo.repo}@{repo.sha}" for role, repo in named.items()}
        | {"form": locked.form, "policy": locked.policy or "none"},
        extra=tuple(
            sorted(
                name
                for name in port.files()
                if name not in {*locked.files, *made, lock.NAME} and _loads(name)
            )
        ),
        files=tuple(
            File(name, locked.files.get(name), made.get(name), _held(port, name))
            for name in sorted({*locked.files, *made})
        ),
    )


def _inputs(hub: Hub, locked: lock.Lock) -> Inputs:
    new, patch, old = (
        HubRepo(hub, named.repo, named.sha)
        for named in (locked.new_base, locked.patch, locked.old_base)
    )
    return Inputs(new, patch, old, locked.form, locked.policy)


def _loads(name: str) -> bool:
    """Whether a program that loads the repo may read this file."""
    return name.endswith(LOADED) or matches(name, TRAVEL)


def _held(port: HubRepo, name: str) -> str | None:
    """The sha256 of a file on the Hub, which tells it of large ones; small ones are read."""
    entry = port.files().get(name)
    if entry is None or SHA256.fullmatch(entry.digest):
        return entry.digest if entry else None
    return hashlib.sha256(port.read(name, 0, entry.size)).hexdigest()
