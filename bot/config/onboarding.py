"""Proposing a `portllm.yaml`: one pull request that shows what would happen, and is never repeated.

It is found again by its title, so that one that was opened just before a crash is not opened twice.
"""

from dataclasses import dataclass

import yaml

from bot.address import RepoAddress
from bot.config.schema import FILE
from bot.config.sync import register_seen
from bot.context import Context
from bot.hub import PULL_REQUEST, HubRepo, PullRequest
from bot.hub.tagged import commits
from bot.making.inputs import Inputs
from bot.making.plan import check_change
from bot.subscribing import default_target
from bot.watching.follow import Follow
from patch_cards import lock
from porting import classify
from porting.errors import Refused
from registry import configs
from registry.models import Patch, Rule

TITLE = f"Keep this patch alive: {FILE}"


@dataclass(frozen=True)
class Proposal:
    """The file, and what a person wants to know before it is merged."""

    sha: str
    file: str
    description: str


def propose(context: Context, repo: str, base: RepoAddress | None = None) -> PullRequest:
    """Open the pull request, or find the one that was: done twice, it is opened once.

    Raises:
        Refused: there is nothing to propose: it has the file, said no, or can't be ported.
    """
    request = _opened(context, repo)
    if request is None:
        proposal = draft(context, repo, base)
        content = {FILE: proposal.file.encode()}
        context.publisher.commit(
            repo, content, [], TITLE, proposal.description, proposal.sha, PULL_REQUEST
        )
        request = _opened(context, repo)
    if request is None:
        raise Refused(f"{repo}: nothing was opened: it is a dry run, or the Hub does not tell yet.")
    with context.database.session() as session:
        configs.propose(session, repo, context.hub.head(repo), request.number)
    if not request.is_open:
        raise Refused(f"{repo} was asked by {request.url}, which is {request.status}: not again.")
    return request


def _opened(context: Context, repo: str) -> PullRequest | None:
    ours = context.hub.pull_requests(repo)
    return next((each for each in ours if each.title == TITLE), None)


def draft(context: Context, repo: str, base: RepoAddress | None = None) -> Proposal:
    """What would be proposed. Nothing is written to the Hub."""
    hub = context.hub
    sha = hub.head(repo)
    there = HubRepo(hub, repo, sha).files()
    for name, what in ((FILE, "it has one"), (lock.NAME, "it holds ports, and is no patch")):
        if name in there:
            raise Refused(f"{repo}: no {FILE} is proposed: {what} ({name}).")
    patch = register_seen(context, RepoAddress(repo, sha), base)
    to = default_target(hub, repo, Follow(Rule.REF, patch.base_repo, "main"))
    asked = {"follow": patch.base_repo, "to": to, "as": "adapter", "by": "request"}
    if base is not None:
        asked["base"] = f"{patch.base_repo}@{patch.base_sha}"
    file = yaml.safe_dump(asked, sort_keys=False)
    return Proposal(sha, file, _description(context, patch, to, file))


def _description(context: Context, patch: Patch, to: str, file: str) -> str:
    base = f"[{patch.base_repo}](/{patch.base_repo})"
    return (
        f"**What.** This adds `{FILE}`. With it, [PortLLM](https://arxiv.org/abs/2410.10870) keeps "
        f"this patch alive: whenever {base} moves, the patch is moved along without training, "
        "judged, and proposed to you.\n\n"
        f"```yaml\n{file}```\n\n"
        f"**What would happen.** {_rehearsed(context, patch)}\n\n"
        f"Nothing is ported before the next release; each port then comes as a pull request to "
        f"`{to}`, never to this repo. To have what came since as well, add "
        f"`from: {patch.base_sha[:7]}`.\n\n"
        f"**To say yes**, merge this; edit it before or later, it is obeyed as it stands.\n\n"
        "**To say no**, close this. You are not asked again.\n\n"
        f"**To stop later**, delete `{FILE}`."
    )


def _rehearsed(context: Context, patch: Patch) -> str:
    """What became of the base since the patch was trained, and the plan of a port to its head."""
    hub = context.hub
    old = HubRepo(hub, patch.base_repo, patch.base_sha)
    new = HubRepo(hub, patch.base_repo, hub.head(patch.base_repo))
    trained = f"The patch was trained on `{patch.base_sha[:7]}`"
    if new.sha == old.sha:
        return f"{trained}, where `{patch.base_repo}` still is; there is nothing to port yet."
    history = list(commits(hub, patch.base_repo, new.sha))
    many = history.index(old.sha) if old.sha in history else len(history)
    since = f"{trained}; `{patch.base_repo}` is at `{new.sha[:7]}` now, {many} commits on"
    change = classify(old, new)
    try:
        check_change(old, new)
        patched = HubRepo(hub, patch.repo, patch.sha)
        plan = Inputs(new, patched, old, "adapter", None).plan.summary
    except Refused as error:
        return f"{since}. It would not be ported there: {error}"
    return f"{since} ({change.kind}: {change.reason}). The plan of a port to it: {plan}"


def complaint(sha: str, problem: str) -> str:
    """What the owner is told of a file that can't be obeyed."""
    quoted = problem.replace("`", "'")
    return (
        f"At {sha[:7]}, `{FILE}` says what can't be done:\n\n```\n{quoted}\n```\n\n"
        "What could be read before holds until this is mended; nothing else was changed. "
        f"`portllm validate-config {FILE}` checks it before you push. Close this, and it is not "
        "mentioned again."
    )
