"""Step 5 of a port: one commit with everything in it, then the tag. Done twice, it is done once.

It goes on top of main, or to a branch of the release's own, or is asked for by a pull request. The
commit's message carries the port's key, which is how an attempt that died right after
committing is recognised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot.context import Context, Job
from bot.hub import MAIN, Gated, Hub, HubRepo, Published
from bot.publishing.content import Content
from bot.publishing.describe import describe, left_over, past
from bot.publishing.requests import ask, close_open, follow_up, grounds
from bot.publishing.targets import check_order
from bot.trust.signing import signed
from judging.evidence import Evidence
from patch_cards import lock
from porting.errors import Refused
from registry.models import PortState

if TYPE_CHECKING:  # SciPy takes a second to import
    from judging.verdict import Verdict

# From what stands somewhere: the port's content on top of it, and the sha256 of all its files.
Contents = Callable[[HubRepo], tuple[dict[str, Content], dict[str, str]]]
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".onnx")


def check_target(hub: Hub, job: Job) -> None:
    """Refuse a target that is not this patch's: a port never replaces anything but a port of it.

    A target that more people can read than an input is refused as well.
    """
    if not hub.exists(job.to_repo):
        return
    facts = hub.facts(job.to_repo)
    target = HubRepo(hub, job.to_repo, facts.sha)
    weights = [name for name in target.files() if name.endswith(WEIGHTS)]
    if lock.NAME in target.files():
        owner = lock.read(target).patch.repo
        if owner != job.patch_repo:
            raise Refused(f"{job.to_repo} holds ports of {owner}: name a new repo with --to.")
    elif weights:
        raise Refused(
            f"{job.to_repo} holds weights that no port wrote ({weights[0]}). "
            "Name a new repo with --to."
        )
    asked = access(hub, job)
    if not Access(facts.private, facts.gated).is_as_closed_as(asked):
        to_everybody = not (facts.private or facts.gated)
        need = "private" if asked.private else f"private or gated ({asked.gated})"
        raise Refused(
            f"{job.to_repo} is {'public' if to_everybody else 'open to more people'}, but a base "
            f"or the patch is private or gated. Make {job.to_repo} {need} on the Hub."
        )


@dataclass(frozen=True)
class Access:
    """Who may read a repo: few, all who are let in, all who ask (auto), or everybody."""

    private: bool
    gated: Gated

    def is_as_closed_as(self, other: "Access") -> bool:
        if self.private or other.private:
            return self.private
        return GATES.index(self.gated) >= GATES.index(other.gated)


GATES: tuple[Gated, ...] = (False, "auto", "manual")


def access(hub: Hub, job: Job) -> Access:
    """That of the strictest input; also of the old base, by values that are differences to it."""
    inputs = {job.new_repo, job.patch_repo, job.old_repo}
    found = list(map(hub.facts, sorted(inputs)))
    strictest = max(GATES.index(facts.gated) for facts in found)
    return Access(any(facts.private for facts in found), GATES[strictest])


@dataclass(frozen=True)
class Delivered:
    """Where a port is, in which state, and why there."""

    published: Published
    state: PortState
    reason: str


def publish(
    context: Context,
    job: Job,
    contents: Contents,
    evidence: Evidence,
    verdict: "Verdict",
) -> Delivered:
    """Push the artefact, its card and lock as the subscription wants it.

    As a pull request if the verdict asks, or this token may not write there.
    """
    hub, publisher = context.hub, context.publisher
    closed = access(hub, job)
    publisher.create(job.to_repo, closed.private, closed.gated)
    check_target(hub, job)
    patch = job.patch(hub)

    def changes(target: HubRepo) -> tuple[dict[str, Content], list[str]]:
        check_order(context, job, target)
        content, files = contents(target)
        decided, moments = verdict.model_dump(), past(context, job)
        described = describe(hub, job, patch, target, files, decided, evidence, moments)
        described |= signed(context.settings.signing_key, job.to_repo, files, described)
        return content | described, left_over(target, {*files, *described})

    follow_up(context, job.to_repo)  # what was asked before may be answered
    target = publisher.state(job.to_repo)
    if verdict.action == "publish" and target.sha and not hub.may_write(job.to_repo):
        said = f"{verdict.reason} This token may not write to {job.to_repo}, so its owner is asked."
        verdict = verdict.model_copy(update={"action": "ask", "reason": said})
    if verdict.action == "ask" or job.delivery == "request":
        asked = ask(context, job, grounds(job, verdict.reason, evidence), target, changes)
        return Delivered(asked, PortState.ASKED, verdict.reason)
    to = MAIN
    if job.delivery == "branch":
        to, target = job.tag, _branch(context, job, target)
    # Looked for below the commit that ours goes on top of: a late answer can't hide it there.
    done = hub.commit_with(job.to_repo, job.trailer, target.sha) if target.sha else None
    if done is None:
        add, delete = changes(target)
        text = f"{verdict.reason}\n\n{job.trailer}"
        done = publisher.commit(job.to_repo, add, delete, job.title, text, target.sha, to).sha
    if to == MAIN:
        publisher.tag(job.to_repo, job.tag, done)
    url = hub.url(job.to_repo, job.tag)
    close_open(context, job, target, f"A newer port is on {to}: {url}. So this is closed.")
    return Delivered(Published(sha=done, url=url), PortState.PUBLISHED, verdict.reason)


def _branch(context: Context, job: Job, main: HubRepo) -> HubRepo:
    """The release's own branch. Refused where its name would mean two things."""
    if main.sha and context.hub.is_tag(job.to_repo, job.tag):
        raise Refused(
            f"{job.to_repo} has a tag {job.tag}, which the branch of this port would be mistaken "
            "for. Delete the tag, or subscribe with --by commit."
        )
    return context.publisher.branch(main, job.tag)
