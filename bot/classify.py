"""Step 1 of a release: did any weights move? From hashes and headers alone."""

from bot.context import Context
from bot.hub import HubRepo
from porting import classify
from registry.models import Release
from registry.status import QUIET


def classify_release(context: Context, release_id: int) -> bool:
    """Record what changed in the release; True if patches have to move because of it."""
    with context.database.session() as session:
        release = session.get_one(Release, release_id)
        repo, old, new = release.base.repo, release.from_sha, release.sha
    change = classify(HubRepo(context.hub, repo, old), HubRepo(context.hub, repo, new))
    with context.database.session() as session:
        release = session.get_one(Release, release_id)
        release.change, release.reason = change.kind, change.reason
    return change.kind not in QUIET
