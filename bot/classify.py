"""Step 1 of a release: what changed, and who needs a port of it. From hashes and headers alone."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from bot.context import Context
from bot.hub import HubRepo
from porting import Change, classify
from registry.models import Release, Rule, Subscription
from registry.status import OWN, QUIET, UNREADABLE

OURS = "PortLLM-Port:"  # how each commit of ours begins its last line


def classify_release(context: Context, release_id: int) -> None:
    """Record what changed since the last commit of the base that could be read."""
    with context.database.session() as session:
        release = session.get_one(Release, release_id)
        old, new = _last_read(context, session, release), (release.repo, release.sha)
    if any(line.startswith(OURS) for line in context.hub.message(*new).splitlines()):
        kind, reason = OWN, "It is a port of ours."
    else:
        change = _change(context, old, new)
        kind, reason = change.kind, change.reason
    with context.database.session() as session:
        release = session.get_one(Release, release_id)
        release.change, release.reason, release.from_sha = kind, reason, old[1]


def _last_read(context: Context, session: Session, release: Release) -> tuple[str, str]:
    if release.base.rule == Rule.TREE:  # a new fine-tune comes from its base as it is now
        sha = release.from_sha or context.hub.head(release.from_repo)
        return release.from_repo, sha
    earlier = select(Release).where(Release.base_id == release.base_id, Release.id <= release.id)
    read = earlier.where(Release.change.is_not(None), Release.change != UNREADABLE)
    if (last := session.scalars(read.order_by(Release.id.desc()).limit(1)).first()) is not None:
        return last.repo, last.sha
    first = session.scalars(earlier.order_by(Release.id).limit(1)).one()
    return first.from_repo, first.from_sha


def subscriptions_to_port(context: Context, release_id: int) -> list[int]:
    """Ids of the subscriptions whose weights moved since what they last had a port on."""
    with context.database.session() as session:
        release = session.get_one(Release, release_id)
        new, is_tree = (release.repo, release.sha), release.base.rule == Rule.TREE
        if is_tree and release.change in QUIET:
            return []
        active = select(Subscription.id, Subscription.settled_repo, Subscription.settled_sha).where(
            Subscription.base_id == release.base_id,
            Subscription.ended_at.is_(None),
            Subscription.created_at <= release.seen_at,
        )
        settled = {id: (repo, sha) for id, repo, sha in session.execute(active)}
    if is_tree:
        return list(settled)
    moved = {
        old: old != new and _change(context, old, new).kind not in QUIET
        for old in set(settled.values())
    }
    return [subscription_id for subscription_id, old in settled.items() if moved[old]]


def _change(context: Context, old: tuple[str, str], new: tuple[str, str]) -> Change:
    return classify(HubRepo(context.hub, *old), HubRepo(context.hub, *new))
