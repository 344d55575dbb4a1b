"""Step 5 of a port: one commit with everything in it, then the tag. Done twice, it is done once.

The commit's message carries the port's key, which is how an attempt that died right after
committing is recognised.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from bot.content import Content
from bot.context import Context, Job
from bot.describe import describe, left_over
from bot.hub import Hub, HubRepo, Published
from bot.requests import ask, close_open, follow_up
from judging.evidence import Evidence
from patch_cards import lock
from porting.errors import Refused

if TYPE_CHECKING:  # SciPy takes a second to import
    from judging.verdict import Verdict

# From what stands somewhere: the port's content on top of it, and the sha256 of all its files.
Contents = Callable[[HubRepo], tuple[dict[str, Content], dict[str, str]]]
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".onnx")


def check_target(hub: Hub, job: Job) -> None:
    """Refuse a target that is not this patch's: a port never replaces anything but a port of it.

    A target that everybody can read is refused where an input is private or gated.
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
    if not (facts.private or facts.gated) and is_closed(hub, job):
        raise Refused(
            f"{job.to_repo} is public, but a base or the patch is private or gated. "
            f"Make {job.to_repo} private or gated on the Hub."
        )


def is_closed(hub: Hub, job: Job) -> bool:
    """Whether a port holds something that not everybody may read; also of the old base, by values
    that are differences to it."""
    inputs = {job.new_repo, job.patch_repo, job.old_repo}
    return any(facts.private or facts.gated for facts in map(hub.facts, sorted(inputs)))


def publish(
    context: Context,
    job: Job,
    contents: Contents,
    evidence: Evidence,
    verdict: "Verdict",
) -> Published:
    """Push the artefact, its card and lock: to main, or as a pull request if the verdict asks."""
    hub, publisher = context.hub, context.publisher
    publisher.create(job.to_repo, private=is_closed(hub, job))
    check_target(hub, job)
    patch = job.patch(hub)

    def changes(target: HubRepo) -> tuple[dict[str, Content], list[str]]:
        content, files = contents(target)
        described = describe(hub, job, patch, target, files, verdict.model_dump(), evidence)
        return content | described, left_over(target, {*files, *described})

    follow_up(context, job.to_repo)  # what was asked before may be answered
    target = publisher.state(job.to_repo)
    if verdict.action == "ask":
        return ask(context, job, verdict.reason, target, changes)
    # Looked for below the commit that ours goes on top of: a late answer can't hide it there.
    done = hub.commit_with(job.to_repo, job.trailer, target.sha) if target.sha else None
    if done is None:
        add, delete = changes(target)
        description = f"{verdict.reason}\n\n{job.trailer}"
        done = publisher.commit(job.to_repo, add, delete, job.title, description, target.sha).sha
    publisher.tag(job.to_repo, job.tag, done)
    url = hub.url(job.to_repo, job.tag)
    close_open(context, job, target, f"A newer port is on main: {url}. So this is closed.")
    return Published(sha=done, url=url)
