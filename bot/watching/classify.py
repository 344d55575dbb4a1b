"""Step 1 of a release: what changed, and who needs a port of it. From hashes and headers alone."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from bot.context import PORT_TITLE, Context
from bot.hub import HubRepo, Missing
from porting import Change, classify
from registry.following import settle, subscribers
from registry.models import Port, Release, Rule
from registry.records import hide
from registry.status import OWN, QUIET, UNREADABLE

OURS = "PortLLM-Port:"  # how each commit of ours begins its last line


@dataclass(frozen=True)
class Found:
    """What a release is: the kind of change since `from_sha`, and a sentence."""

    change: str
    reason: str
    from_sha: str


def classify_release(context: Context, release_id: int) -> Found:
    """What changed since the last commit of the base that could be read."""
    with context.database.session() as session:
        release = session.get_one(Release, release_id)
        old, new = _last_read(context, session, release), (release.repo, release.sha)
        base_id, is_late = release.base_id, release.attempt > 1
    if context.hub.facts(*new).private:
        with context.database.session() as session:
            hide(session, base_id)
    if _is_own(context, release.repo, context.hub.message(*new)):
        return Found(OWN, "It is a port of ours.", old[1])
    change = _change(context, old, new, is_late)
    return Found(change.kind, change.reason, old[1])


def _is_own(context: Context, repo: str, message: str) -> bool:
    """Whether the commit brought a port of ours: anybody may write so, but our records know."""
    title = PORT_TITLE.match(message)  # all that a merged pull request leaves
    keys = [title[1]] if title else []
    lines = message.splitlines()
    keys += [line.removeprefix(OURS).strip() for line in lines if line.startswith(OURS)]
    with context.database.session() as session:
        found = session.scalars(select(Port).where(Port.key.in_(keys)))
        return any(port.job["to_repo"] == repo for port in found)


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


def subscriptions_to_port(context: Context, release_id: int, kind: str) -> list[int]:
    """Ids of the subscriptions whose weights moved since what they last had a port on."""
    with context.database.session() as session:
        release = session.get_one(Release, release_id)
        new, is_tree = (release.repo, release.sha), release.base.rule == Rule.TREE
        is_late = release.attempt > 1
        if is_tree and kind in QUIET:
            return []
        settled = subscribers(session, release)
        if kind == OWN:  # nor is it what a later release is held against
            for old in settled:
                settle(session, release, old)
            return []
    wanted: list[int] = []
    for old, ids in settled.items():
        if is_tree or (old != new and _change(context, old, new, is_late).kind not in QUIET):
            wanted += ids
        elif kind not in QUIET:
            with context.database.session() as session:
                settle(session, release, old)
    return wanted


def _change(context: Context, old: tuple[str, str], new: tuple[str, str], is_late: bool) -> Change:
    """Raises Missing where a commit is not there; `is_late`, only where it is the new one."""
    before, now = HubRepo(context.hub, *old), HubRepo(context.hub, *new)
    now.files()
    try:
        return classify(before, now)
    except Missing:
        if not is_late:
            raise
        # Its history was written anew. What a port needs is held against the patch's own base.
        return Change("weights", f"{before.name}, where it stood, is gone: all may have moved.", ())
