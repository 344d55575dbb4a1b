"""Recording a patch: what it is, and which base commit it was trained on (never guessed)."""

from bot.address import SHA, RepoAddress
from bot.context import Context
from bot.hub import Hub, HubRepo, Missing, NoRepo
from judging.task import read_task
from porting import Adapter, plan, read_adapter
from porting.errors import Refused, UsageError
from registry.models import Patch
from registry.records import add_patch, bases_of


def register(context: Context, address: RepoAddress, base: RepoAddress | None) -> Patch:
    """Record the patch at `address`. Raises Refused where it can't be ported, or not traced."""
    hub = context.hub
    facts = hub.facts(address.repo, address.revision or "main")
    source = HubRepo(hub, address.repo, facts.sha)
    adapter = read_adapter(source)
    task = read_task(source, hub.data)
    old = trained_on(hub, source.name, adapter, base, "--base")
    plan(old, source, as_="adapter", old_base=old)  # a base that it does not fit is not the one
    patch = Patch(
        repo=address.repo,
        owner=address.repo.partition("/")[0],
        sha=facts.sha,
        kind=adapter.kind,
        portability=adapter.portability,
        base_repo=old.repo,
        base_sha=old.sha,
        license=facts.license,
        pipeline_tag=facts.pipeline_tag,
        evaluation=task.record() if task else None,
        task=task.name if task else None,
    )
    with context.database.session() as session:
        named = {address.repo, old.repo, *bases_of(session, address.repo)}
    patch.private = any(_is_private(hub, repo) for repo in named)
    with context.database.session() as session:
        return add_patch(session, patch)


def _is_private(hub: Hub, repo: str) -> bool:
    """Whether not everybody may see the repo; of one that is gone it can't be told."""
    try:
        return hub.facts(repo).private
    except (Missing, NoRepo):
        return True


def trained_on(
    hub: Hub, name: str, adapter: Adapter, given: RepoAddress | None, option: str
) -> HubRepo:
    """The base at a commit: the one given by `option`, else the one that the patch's config pins.

    Raises Refused where neither names a commit or a tag.
    """
    if given is not None:
        if given.revision is None:
            raise Refused(f"{option} {given.repo} names no revision: add @ and a commit or a tag.")
        sha = hub.head(given.repo, given.revision)
        if not sha.startswith(given.revision) and not hub.is_tag(given.repo, given.revision):
            raise Refused(f"{option} {given} names a branch, which moves: give a commit or a tag.")
        return HubRepo(hub, given.repo, sha)
    repo, revision = adapter.base_repo, adapter.base_revision
    if repo is None:
        raise Refused(
            f"{name}: {adapter.config_file} names no base. Give it: {option} REPO@REVISION"
        )
    pinned = revision is not None and (SHA.fullmatch(revision) or hub.is_tag(repo, revision))
    if revision is None or not pinned:
        what = "names no revision" if revision is None else f"names only the branch {revision!r}"
        raise Refused(
            f"{name}: {adapter.config_file} {what} of {repo}, and that has moved on or will. "
            f"Say which commit it was trained on: {option} {repo}@COMMIT"
        )
    return HubRepo(hub, repo, hub.head(repo, revision))


def check_policy(name: str, kind: str, portability: str, policy: str | None) -> None:
    """Refuse a policy for a patch whose meaning on another base is not in doubt."""
    if policy is not None and portability != "C":
        raise UsageError(
            f"--policy is for patches of class C, and {name} ({kind}) is of class {portability}: "
            "leave it out."
        )


def check_wanted(patch: Patch, form: str, policy: str | None) -> None:
    """Refuse, before anything is subscribed, a form or a policy that this patch can't have."""
    name, kind = f"{patch.repo}@{patch.sha[:7]}", patch.kind
    if patch.portability == "D" and form != "adapter":
        raise Refused(f"{name}: {kind} can't be merged (class D); subscribe it --as adapter.")
    check_policy(name, kind, patch.portability, policy)
    if patch.portability != "C":
        return
    if form != "adapter" and policy is None:
        raise Refused(
            f"{name}: {kind} is not additive (class C), so a merged model may mean two things. Say "
            "which: --policy reapply (its operator on the new base) or --policy freeze (the change "
            "it made to the old base); or subscribe it --as adapter."
        )
    elif form != "merged" and policy == "freeze":
        raise Refused(
            f"{name}: an adapter of kind {kind} applies itself to the new base, so it can't be "
            "frozen: subscribe it --as merged, or with --policy reapply."
        )
