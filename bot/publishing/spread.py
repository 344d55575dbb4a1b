"""What a port's one commit consists of. The files of a large model are made and sent one by one, by
as many workers as are free.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bot.context import Context, Job
from bot.hub import HubRepo
from bot.making.inputs import Inputs, patch_folder
from bot.making.make import check_made, is_made, is_spread, parts, ready, scaled
from bot.making.remote import remote
from bot.making.sandbox import Report
from bot.publishing.content import Content, Uploaded
from bot.publishing.journal import Journal
from bot.publishing.parts import Parts
from bot.publishing.stream import Stream
from porting import Folder

MERGED, ADAPTER = "merged/", "adapter/"


class Unsent(Exception):
    """These files are to be sent before anything can be committed."""

    def __init__(self, files: list[str]) -> None:
        super().__init__(files)
        self.files = files


@dataclass
class Assembly:
    """A port on its way into a commit.

    Attributes:
        judged: sha256 of what was judged, by path below the work folder; None if nothing was.
        sent: files that wait on the Hub for the commit.
        made: like `judged`, of what is committed.
    """

    context: Context
    job: Job
    scale: float
    judged: dict[str, str] | None
    sent: Mapping[str, Uploaded]
    report: Report
    made: dict[str, str] = field(default_factory=dict)
    _parts: Parts | None = None

    def contents(self, target: HubRepo) -> tuple[dict[str, Content], dict[str, str]]:
        """The content of a commit on top of `target`, and the sha256 of every file of the port.

        Raises:
            Unsent: there are files to be sent first.
            PortllmError: it does not come out as what was judged.
        """
        context, job = self.context, self.job
        folder = context.settings.work(job.key)
        if not is_spread(context.hub, job):
            self.made = ready(context, job, self.scale, self.judged, self.report)
            named = parts(job.form, self.made)
            content: dict[str, Content] = {name: folder / part for name, part in named.items()}
            return content, {name: self.made[part] for name, part in named.items()}
        work = context.settings.work(job.key) / "publication"
        stream = open_stream(context, job, self.scale, work)
        known = stream.made_before(self.scale, target)
        if self.judged is not None:
            known = {part.removeprefix(MERGED): digest for part, digest in self.judged.items()}
        found = self._parts = stream.parts(target, self.sent, known)
        if found.to_send:
            raise Unsent(found.to_send)
        self.made = {MERGED + name: digest for name, digest in found.digests.items()}
        content = dict(found.contents)
        if job.form == "both":
            adapter = self._adapter()
            self.made |= adapter
            content |= {part: folder / part for part in adapter}
        check_made(job.key, self.made, self.judged)
        return content, {name: self.made[part] for name, part in parts("both", self.made).items()}

    def not_copied(self) -> list[str]:
        """The files to be sent, since the Hub does not copy them from the base."""
        assert self._parts is not None
        self._parts.move_instead()
        return self._parts.to_move

    def _adapter(self) -> dict[str, str]:
        judged = None
        if self.judged is not None:
            judged = {part: sha for part, sha in self.judged.items() if part.startswith(ADAPTER)}
        return ready(
            self.context, replace(self.job, form="adapter"), self.scale, judged, self.report
        )


def send(
    context: Context,
    job: Job,
    scale: float,
    judged: dict[str, str] | None,
    file: str,
    report: Report,
) -> Uploaded:
    """Have `file` of the merged model on the Hub, ready for a commit: as it was made, or anew."""
    path = context.settings.work(job.key) / "merged" / file
    if judged is not None and is_made(context, job, MERGED + file, judged):
        sent = Uploaded(judged[MERGED + file], path.stat().st_size)
        context.publisher.upload(job.to_repo, path, sent)
        return sent
    work = context.settings.work(job.key) / "shards" / file
    work.mkdir(parents=True, exist_ok=True)
    journal = Journal(work / "journal.json")
    if (before := journal.get(file)) is not None:
        return before  # by an attempt that died before it could say so
    stream = open_stream(context, job, scale, work)
    is_moved = file in stream.plan.copied_files
    shards = stream.shards(context.publisher, work, journal, report)
    shards.upload([] if is_moved else [file], [file] if is_moved else [])
    done = journal.get(file)
    assert done is not None
    shutil.rmtree(work)
    return done


def open_stream(context: Context, job: Job, scale: float, work: Path) -> Stream:
    """The merged port of `scale` times the patch, which is put in `work` where that is another."""
    base = remote(context.hub, job.new_repo, job.new_sha)
    old = remote(context.hub, job.old_repo, job.old_sha)
    inputs = Inputs(base, job.patch(context.hub), old, "merged", job.policy)
    patch = scaled(inputs, scale, work).patch
    return Stream(job, base, old, Folder(patch_folder(patch)))
