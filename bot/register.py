"""Recording a patch: what it is, and which base commit it was trained on (never guessed)."""

from bot.address import SHA, RepoAddress
from bot.context import Context
from bot.evaluation import read_evaluation
from bot.hub import HubRepo
from porting import Adapter, plan, read_adapter
from porting.errors import Refused
from registry.models import Patch
from registry.records import add_patch


def register(context: Context, address: RepoAddress, base: RepoAddress | None) -> Patch:
    """Record the patch at `address`. Raises Refused where it can't be ported, or not traced."""
    hub = context.hub
    facts = hub.facts(address.repo, address.revision or "main")
    source = HubRepo(hub, address.repo, facts.sha)
    adapter = read_adapter(source)
    evaluation = read_evaluation(source)
    trained_on = _trained_on(context, source.name, adapter, base)
    plan(trained_on, source, as_="adapter")  # a base that it does not fit is not the one
    patch = Patch(
        repo=address.repo,
        sha=facts.sha,
        kind=adapter.kind,
        portability=adapter.portability,
        base_repo=trained_on.repo,
        base_sha=trained_on.sha,
        license=facts.license,
        evaluation=evaluation.record() if evaluation else None,
    )
    with context.database.session() as session:
        return add_patch(session, patch)


def _trained_on(
    context: Context, name: str, adapter: Adapter, given: RepoAddress | None
) -> HubRepo:
    """The base at a commit: the one given, else the one that the patch's config pins."""
    hub = context.hub
    if given is not None:
        if given.revision is None:
            raise Refused(f"--base {given.repo} names no revision: add @ and a commit or a tag.")
        sha = hub.head(given.repo, given.revision)
        if not sha.startswith(given.revision) and not hub.is_tag(given.repo, given.revision):
            raise Refused(f"--base {given} names a branch, which moves: give a commit or a tag.")
        return HubRepo(hub, given.repo, sha)
    repo, revision = adapter.base_repo, adapter.base_revision
    if repo is None:
        raise Refused(f"{name}: adapter_config.json names no base. Give it: --base REPO@REVISION")
    pinned = revision is not None and (SHA.fullmatch(revision) or hub.is_tag(repo, revision))
    if revision is None or not pinned:
        what = "names no revision" if revision is None else f"names only the branch {revision!r}"
        raise Refused(
            f"{name}: adapter_config.json {what} of {repo}, and that has moved on or will. "
            f"Say which commit it was trained on: --base {repo}@COMMIT"
        )
    return HubRepo(hub, repo, hub.head(repo, revision))
