"""Where each file of a published port comes from: as little as possible goes over the line."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal, Protocol

from bot.context import Job
from bot.hub import HubRepo
from bot.making.remote import Remote
from bot.publishing.content import Content, Copied, Uploaded
from porting import Plan
from porting.weights.rewrite import edited_files

How = Literal["ported", "resumed", "copied", "kept", "moved", "written"]


class Sent(Protocol):
    """What is on the Hub already, and only waits for a commit."""

    def get(self, file: str, /) -> Uploaded | None: ...


@dataclass
class Parts:
    """The files of a port, decided one by one.

    Attributes:
        contents: what the commit consists of so far.
        digests, sizes: sha256 and bytes of every file known so far.
        how: what is done for each: `kept` as the target has it, `copied` by the Hub, `written`
            into the commit, `resumed` from an earlier attempt; or, after `Parts.uploaded`,
            `ported` here or `moved` down and up.
        to_port: shards to fetch, port and upload.
        to_move: large files to fetch and upload as they are.
    """

    job: Job
    base: Remote
    target: HubRepo
    sent: Sent
    contents: dict[str, Content] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    how: dict[str, How] = field(default_factory=dict)
    to_port: list[str] = field(default_factory=list)
    to_move: list[str] = field(default_factory=list)

    def decide(self, plan: Plan, made_before: dict[str, str]) -> None:
        """Sort all files of the port; `made_before` are those that need not be made again."""
        edited = edited_files(plan, self.base)
        elsewhere = []
        for file in plan.written_files:
            copied = file in plan.copied_files
            sha256 = self.base.lfs_sha256(file) if copied else made_before.get(file)
            if file in edited:
                self._write(file, edited[file])
            elif sha256 is not None and self._is_held(file, sha256):
                continue
            elif (uploaded := self.sent.get(file)) is not None:
                self._set(file, "resumed", uploaded.sha256, uploaded.size, uploaded)
            elif not copied:
                self.to_port.append(file)
            elif sha256 is None:
                self._write(file, self.base.read(file, 0, self.base.files()[file].size))
            else:
                elsewhere.append(file)
        copyable = self.base.hub.copyable(self.base.repo, self.base.sha, elsewhere)
        for file in elsewhere:
            if file in copyable:
                self._copy(file, self.base.files()[file].digest, self.base, file)
            else:
                self.to_move.append(file)

    @property
    def to_send(self) -> list[str]:
        return [*self.to_port, *self.to_move]

    def move_instead(self) -> None:
        """Put what was to be copied from the base among the files to move."""
        for file, content in self.contents.items():
            if isinstance(content, Copied) and content.repo == self.base.repo:
                self.to_move.append(file)

    def uploaded(self) -> None:
        """Take over what has been ported or moved, and is sent."""
        done: tuple[tuple[How, list[str]], ...] = (
            ("ported", self.to_port),
            ("moved", self.to_move),
        )
        for how, files in done:
            for file in files:
                content = self.sent.get(file)
                assert content is not None
                self._set(file, how, content.sha256, content.size, content)
        self.to_port, self.to_move = [], []

    def _is_held(self, file: str, sha256: str) -> bool:
        """Whether the target has it: under its name, or under one it can be copied from."""
        names = [name for name, held in self.target.files().items() if held.digest == sha256]
        if file in names:
            self._set(file, "kept", sha256, self.target.files()[file].size, None)
        elif names:
            self._copy(file, sha256, self.target, names[0])
        return bool(names)

    def _copy(self, file: str, sha256: str, source: HubRepo, name: str) -> None:
        content = Copied(source.repo, source.sha, name)
        self._set(file, "copied", sha256, source.files()[name].size, content)

    def _write(self, file: str, content: bytes) -> None:
        self._set(file, "written", hashlib.sha256(content).hexdigest(), len(content), content)

    def _set(self, file: str, how: How, sha256: str, size: int, content: Content | None) -> None:
        self.digests[file], self.how[file] = sha256, how
        self.sizes[file] = size
        if content is not None:
            self.contents[file] = content
