"""Step 1 of a release: what changed, and who needs a port of it. From hashes and headers alone."""

from sqlalchemy import select

from bot.context import Context
from bot.hub import HubRepo
from porting import Change, classify
from registry.models import Release
from registry.records import active_subscriptions, settled_sha
from registry.status import QUIET, UNREADABLE


def classify_release(context: Context, release_id: int) -> None:
    """Record what changed since the last commit of the base that could be read."""
    with context.database.session() as session:
        release = session.get_one(Release, release_id)
        repo, new = release.base.repo, release.sha
        earlier = session.scalars(
            select(Release)
            .where(Release.base == release.base, Release.id <= release.id)
            .order_by(Release.id)
        ).all()
        readable = [r.sha for r in earlier if r.change not in (None, UNREADABLE)]
        old = readable[-1] if readable else earlier[0].from_sha
    change = _change(context, repo, old, new)
    with context.database.session() as session:
        release = session.get_one(Release, release_id)
        release.change, release.reason = change.kind, change.reason


def subscriptions_to_port(context: Context, release_id: int) -> list[int]:
    """Ids of the subscriptions whose weights moved since what they last had a port on."""
    with context.database.session() as session:
        release = session.get_one(Release, release_id)
        repo, new = release.base.repo, release.sha
        settled = {
            subscription.id: settled_sha(session, subscription)
            for subscription in active_subscriptions(session, release.base_id)
            if subscription.created_at <= release.seen_at
        }
    moved = {
        sha: sha != new and _change(context, repo, sha, new).kind not in QUIET
        for sha in set(settled.values())
    }
    return [subscription_id for subscription_id, sha in settled.items() if moved[sha]]


def _change(context: Context, repo: str, old: str, new: str) -> Change:
    return classify(HubRepo(context.hub, repo, old), HubRepo(context.hub, repo, new))
