"""One shard after the other: fetched, ported in the sandbox, uploaded, and gone from the disk.

While a port is uploaded, the next shard is fetched: there is never more than one of each.
"""

import re
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bot.context import Job
from bot.hub import Publisher
from bot.making import sandbox
from bot.making.files import base_files
from bot.making.remote import Remote
from bot.publishing.content import Uploaded
from bot.publishing.journal import Journal
from porting import Plan, TensorInfo
from porting.errors import PortllmError, Refused

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class Shards:
    """What there is to do on one port, in the folder `work`, which holds the patch already.

    Attributes:
        old: the base the patch was trained on, if the plan was made with its values.
    """

    job: Job
    plan: Plan
    publisher: Publisher
    base: Remote
    old: Remote | None
    patch: Path
    work: Path
    journal: Journal
    report: sandbox.Report
    _done: dict[str, int] = field(default_factory=dict)
    _total: int = 0

    def upload(self, ported: Sequence[str], as_they_are: Sequence[str]) -> None:
        """Upload these files of the port, and note them in the journal.

        Raises:
            Refused: there is no room for one of them.
        """
        files = [*ported, *as_they_are]
        self._total += sum(self.base.files()[file].size for file in files)
        self._check_room(files, set(ported))
        out = self.work / "out"
        uploading: Future[None] | None = None
        with ThreadPoolExecutor(1) as pool:
            for file in files:
                fetched = self._fetch(file)
                if uploading is not None:
                    uploading.result()
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                path = out / file
                if file in ported:
                    digest = self._port(file, path)
                else:
                    digest = self.base.files()[file].digest  # their sha256, which was checked
                    fetched.rename(path)
                shutil.rmtree(self.work / "base")
                uploading = pool.submit(self._upload, file, path, digest)
            if uploading is not None:
                uploading.result()

    def _check_room(self, files: list[str], ported: set[str]) -> None:
        for name in ("base", "old", "out"):
            shutil.rmtree(self.work / name, ignore_errors=True)
        head, room = self.plan.appended, {"in": 0, "out": 0, "old": 0}
        for file in files:
            size = self.base.files()[file].size
            grown = head.end - head.start if head and head.file == file else 0
            before = sum(old.end - old.start for old in self._before(file))
            taken = {"in": size, "out": size + grown, "old": before if file in ported else 0}
            room = {part: max(room[part], taken[part]) for part in room}
        free, need = shutil.disk_usage(self.work).free, sum(room.values())
        if free < need:
            raise Refused(
                f"{self.work} has {free:,} bytes free, and one shard and its port take up to "
                f"{need:,}: make room, or set PORTLLM_HOME to a larger disk."
            )

    def _before(self, file: str) -> list[TensorInfo]:
        return [touch.old for touch in self.plan.touches_of(file) if touch.old]

    def _fetch(self, file: str) -> Path:
        """The shard, among the headers of all others, and the old values that it needs."""
        folder = self.work / "base"
        self.base.lay_out(folder, base_files(self.base), [])
        (folder / file).unlink()
        path = self.base.download(file, folder)
        if self.old is not None:
            self.old.lay_out(self.work / "old", base_files(self.old), self._before(file))
        self._tell("fetched", file)
        return path

    def _port(self, file: str, path: Path) -> str:
        order = {
            "do": "port_file",
            "base": str(self.work / "base"),
            "patch": str(self.patch),
            "policy": self.plan.policy,
            "file": file,
            "out": str(path),
        }
        if self.old is not None:
            order["old_base"] = str(self.work / "old")
        before = self._done.get("ported", 0)

        def report(what: str, done: int, total: int, file: str = "") -> None:
            self.report("ported, bytes", before + done, self._total)

        digest = sandbox.run(order, report)
        if not SHA256.fullmatch(str(digest)) or path.is_symlink() or not path.is_file():
            raise PortllmError(f"The computing process did not make {file}.")
        self._tell("ported", file)
        return str(digest)

    def _upload(self, file: str, path: Path, digest: str) -> None:
        uploaded = Uploaded(digest, path.stat().st_size)
        self.publisher.upload(self.job.to_repo, path, uploaded)
        self.journal.add(file, uploaded)
        path.unlink()
        self._tell("uploaded", file)

    def _tell(self, what: str, file: str) -> None:
        self._done[what] = self._done.get(what, 0) + self.base.files()[file].size
        self.report(f"{what}, bytes", self._done[what], self._total, file)
