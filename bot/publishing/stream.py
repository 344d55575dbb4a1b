"""Publish the merged port of a model that may be larger than the disk: one shard at a time.

Large files are uploaded first, and one commit at the end refers to all of them: before it, nothing
is to be seen; killed before it, the next attempt goes on with what was not uploaded yet.
"""

import fcntl
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bot.context import Job
from bot.hub import Forgotten, HubRepo, NotCopied, Published, Publisher
from bot.making.files import patch_files
from bot.making.inputs import Inputs, needs_old_base
from bot.making.plan import check_card, check_change
from bot.making.remote import Remote
from bot.making.sandbox import Report
from bot.publishing.content import Content
from bot.publishing.describe import describe, left_over
from bot.publishing.journal import Journal
from bot.publishing.parts import Parts, Sent
from bot.publishing.publish import access, check_target
from bot.publishing.reuse import made_before
from bot.publishing.shards import Shards
from bot.trust.signing import check_key, signed
from porting import Folder, Plan, read_adapter
from porting.errors import HubError, Refused, UsageError

VERDICT = {
    "action": "not judged",
    "reason": "It was published by hand, and nothing was measured.",
}


@dataclass(frozen=True)
class Stream:
    """A merged port that is never on a disk as a whole: `patch` is, and of the bases what is read.

    Attributes:
        old: the base that the patch was trained on.
    """

    job: Job
    base: Remote
    old: Remote
    patch: Folder

    @cached_property
    def plan(self) -> Plan:
        return Inputs(self.base, self.patch, self.old, "merged", self.job.policy).plan

    def parts(self, target: HubRepo, sent: Sent, known: dict[str, str]) -> Parts:
        """What the commit on top of `target` consists of; `known` are sha256 that will come out."""
        parts = Parts(self.job, self.base, target, sent)
        parts.decide(self.plan, known)
        return parts

    def made_before(self, scale: float, target: HubRepo) -> dict[str, str]:
        return made_before(self.job, scale, self.plan, self.base, self.patch, self.old, target)

    def shards(self, publisher: Publisher, work: Path, journal: Journal, report: Report) -> Shards:
        compared = needs_old_base(read_adapter(self.patch), self.job.policy)
        return Shards(
            self.job,
            self.plan,
            publisher,
            self.base,
            self.old if compared else None,
            self.patch.path,
            work,
            journal,
            report,
        )


@dataclass(frozen=True)
class Publication:
    """What became of one publication; `parts` is None where an earlier attempt had made it."""

    published: Published
    parts: Parts | None


def publish_streamed(
    job: Job,
    patch: Remote,
    publisher: Publisher,
    work: Path,
    private: bool,
    report: Report,
    signing_key: Path | None = None,
) -> Publication:
    """Port `patch` as `job` says, as a merged model, in the folder `work`, and publish it.

    Raises:
        Refused: the port or the target is refused, or there is no room for a shard.
        UsageError: another process is at it.
        HubError: the Hub or the network failed; the next call goes on from there.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{job.to_repo} is being published by another process.") from error
        return _publish(job, patch, publisher, work, private, report, signing_key)


def _publish(
    job: Job,
    patch: Remote,
    publisher: Publisher,
    work: Path,
    private: bool,
    report: Report,
    signing_key: Path | None,
) -> Publication:
    hub = patch.hub
    if signing_key is not None:
        check_key(signing_key)
    check_target(hub, job)
    if hub.exists(job.to_repo):
        if private and not hub.facts(job.to_repo).private:
            raise Refused(f"{job.to_repo} is public: make it private on the Hub.")
        if (done := hub.commit_with(job.to_repo, job.trailer)) is not None:
            shutil.rmtree(work)
            return Publication(_tagged(publisher, job, done), None)
    base = Remote(hub, job.new_repo, job.new_sha)
    old = Remote(hub, job.old_repo, job.old_sha)
    check_change(old, base)
    check_card(publisher, job)
    stream = Stream(job, base, old, _fetch(patch, work / "patch"))

    closed = access(hub, job)
    publisher.create(job.to_repo, private or closed.private, closed.gated)
    check_target(hub, job)
    target = Remote(hub, job.to_repo, hub.head(job.to_repo))
    journal = Journal(work / "journal.json")
    parts = stream.parts(target, journal, stream.made_before(1.0, target))
    shards = stream.shards(publisher, work, journal, report)
    shards.upload(parts.to_port, parts.to_move)
    parts.uploaded()

    described = describe(hub, job, stream.patch, target, parts.digests, VERDICT, None)
    described |= signed(signing_key, job.to_repo, parts.digests, described)

    def commit() -> Published:
        check_target(hub, job)  # hours may have passed
        content: dict[str, Content] = {**parts.contents, **described}
        return publisher.commit(
            job.to_repo,
            add=content,
            delete=left_over(target, {*parts.digests, *described}),
            title=job.title,
            description=f"{VERDICT['reason']}\n\n{job.trailer}",
            parent=target.sha,
        )

    try:
        try:
            published = commit()
        except NotCopied:
            parts.move_instead()
            shards.upload([], parts.to_move)
            parts.uploaded()
            published = commit()
    except Forgotten as error:
        journal.clear()
        raise HubError(f"{error} Run it again: everything is uploaded anew.") from error
    tagged = _tagged(publisher, job, published.sha)
    shutil.rmtree(work)
    return Publication(tagged, parts)


def _fetch(patch: Remote, folder: Path) -> Folder:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in patch_files(patch):
        patch.download(file, folder)
    return Folder(folder)


def _tagged(publisher: Publisher, job: Job, sha: str) -> Published:
    publisher.tag(job.to_repo, job.tag, sha)
    return Published(sha, publisher.hub.url(job.to_repo, job.tag))
