"""Bases and their releases: what is followed, where it stands, and every step that it made."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import String, and_, cast, exists, func, or_, select, update
from sqlalchemy.orm import Session

from registry.database import changed
from registry.models import Base, Release, Rule, Subscription, now

# How long a commit that was left before has to stand before it is believed to be back.
DOUBT = timedelta(minutes=5)
THERE_BEFORE = "there before"  # the change of what a tree had when it was first looked at


@dataclass(frozen=True)
class Head:
    """A ref of a repo, and the commit it stands for."""

    repo: str
    ref: str
    sha: str


def follow(session: Session, rule: Rule, repo: str, ref: str, heads: list[Head]) -> Base:
    """The base that stands at `heads`. Where it stands is news only once it is watched.

    A tree may stand nowhere, or at many; every other base at one.
    """
    base = session.scalar(select(Base).where(Base.rule == rule, Base.repo == repo, Base.ref == ref))
    if base is not None and is_followed(session, base.id):
        return base
    if base is None:
        base = Base(rule=rule, repo=repo, ref=ref, head_repo="", head_ref="", head_sha="")
        session.add(base)
    base.problem, base.due_at = None, now()
    if rule == Rule.TREE:
        session.flush()
        known = _known(session, base.id)
        for head in heads:
            if known.get(head.repo) != head.sha:
                reason = "It was there when the following began."
                session.add(_release(base, head, head, change=THERE_BEFORE, reason=reason))
    else:
        (head,) = heads
        base.head_repo, base.head_ref, base.head_sha = head.repo, head.ref, head.sha
    session.flush()
    return base


def is_followed(session: Session, base_id: int) -> bool:
    active = exists().where(Subscription.base_id == base_id, Subscription.ended_at.is_(None))
    return bool(session.scalar(select(active)))


def followed_bases(session: Session) -> list[Base]:
    active = exists().where(Subscription.base_id == Base.id, Subscription.ended_at.is_(None))
    return list(session.scalars(select(Base).where(active).order_by(Base.id)))


def bases_touched(session: Session, repo: str) -> list[Base]:
    """Followed bases that a commit to `repo` may be a release of; the owner's patterns may be.

    So may any tree.
    """
    active = exists().where(Subscription.base_id == Base.id, Subscription.ended_at.is_(None))
    owner = repo.partition("/")[0]
    pattern = and_(Base.rule == Rule.REPOS, Base.repo.startswith(f"{owner}/", autoescape=True))
    touched = or_(Base.repo == repo, pattern, Base.rule == Rule.TREE)
    return list(session.scalars(select(Base).where(touched, active)))


def observe(session: Session, base_id: int, heads: list[Head]) -> list[Release]:
    """The base stands at `heads` now. Returns the releases that this makes.

    Two that observe the same at once make one release.
    """
    base = session.get_one(Base, base_id)
    base.observed_at, base.problem = now(), None
    session.flush()
    if base.rule == Rule.TREE:
        return _observe_tree(session, base, heads)
    (head,) = heads
    was = Head(base.head_repo, base.head_ref, base.head_sha)
    if head == was:
        base.doubted_sha = base.doubted_at = None
        return []
    if head.sha != was.sha and not _believed(session, base, head):
        return []
    here = (Base.head_repo == was.repo, Base.head_ref == was.ref, Base.head_sha == was.sha)
    moved = (
        update(Base)
        .where(Base.id == base.id, *here)
        .values(
            head_repo=head.repo,
            head_ref=head.ref,
            head_sha=head.sha,
            changed_at=now(),
            doubted_sha=None,
            doubted_at=None,
        )
        .execution_options(synchronize_session="fetch")
    )
    if changed(session, moved) != 1 or head.sha == was.sha:
        return []
    release = _release(base, was, head)
    release.seen_at = _seen_at(session, base_id)
    session.add(release)
    session.flush()
    return [release]


def _seen_at(session: Session, base_id: int) -> datetime:
    """Now; but news to all who are subscribed, even if the clock was set back since they were."""
    mine = (Subscription.base_id == base_id, Subscription.ended_at.is_(None))
    newest = session.scalar(select(func.max(Subscription.created_at)).where(*mine))
    return max(now(), newest or now())


def _observe_tree(session: Session, base: Base, heads: list[Head]) -> list[Release]:
    known = _known(session, base.id)
    made = []
    for head in heads:
        was = known.get(head.repo)
        if was == head.sha or _was_at(session, base.id, head):
            continue
        before = Head(head.repo, head.ref, was) if was else Head(base.repo, "main", "")
        made.append(_release(base, before, head))
    if made:
        base.changed_at = now()
        at = _seen_at(session, base.id)
        for release in made:
            release.seen_at = at
    session.add_all(made)
    session.flush()
    return made


def _known(session: Session, base_id: int) -> dict[str, str]:
    """Where each repo of a tree was last."""
    newest = select(func.max(Release.id)).where(Release.base_id == base_id).group_by(Release.repo)
    rows = session.execute(select(Release.repo, Release.sha).where(Release.id.in_(newest)))
    return {repo: sha for repo, sha in rows}


def _was_at(session: Session, base_id: int, head: Head) -> bool:
    at = or_(
        (Release.repo == head.repo) & (Release.sha == head.sha),
        (Release.from_repo == head.repo) & (Release.from_sha == head.sha),
    )
    return bool(session.scalar(select(exists().where(Release.base_id == base_id, at))))


def _believed(session: Session, base: Base, head: Head) -> bool:
    """Whether a commit that it was at before has stood for long enough to be there again."""
    if not _was_at(session, base.id, head):
        return True
    # Doubted in times to come: the clock was set back.
    if base.doubted_sha != head.sha or base.doubted_at is None or base.doubted_at > now():
        base.doubted_sha, base.doubted_at = head.sha, now()
        return False
    return now() - base.doubted_at >= DOUBT


def _release(base: Base, was: Head, head: Head, **facts: str) -> Release:
    return Release(
        base=base,
        from_repo=was.repo,
        from_ref=was.ref,
        from_sha=was.sha,
        repo=head.repo,
        ref=head.ref,
        sha=head.sha,
        **facts,
    )


def times_before(session: Session, release: Release) -> int:
    """How often the base had been at this commit before."""
    same = select(func.count()).where(
        Release.base_id == release.base_id,
        Release.id < release.id,
        Release.repo == release.repo,
        Release.sha == release.sha,
    )
    return session.scalar(same) or 0


def subscribers(session: Session, release: Release) -> dict[tuple[str, str], list[int]]:
    """Ids of the subscriptions that the release is news to, by the commit they are settled on.

    Of a popular base there are very many: a row per commit, read from an index alone.
    """
    ids = func.aggregate_strings(cast(Subscription.id, String), ",")
    rows = (
        select(Subscription.settled_repo, Subscription.settled_sha, ids)
        .where(
            Subscription.base_id == release.base_id,
            Subscription.ended_at.is_(None),
            Subscription.created_at <= release.seen_at,
        )
        .group_by(Subscription.settled_repo, Subscription.settled_sha)
    )
    return {(repo, sha): json.loads(f"[{joined}]") for repo, sha, joined in session.execute(rows)}


def settle(session: Session, release: Release, old: tuple[str, str]) -> None:
    """Whoever is settled on `old` is on the release as well: it has the same weights."""
    session.execute(
        update(Subscription)
        .where(
            Subscription.base_id == release.base_id,
            Subscription.settled_repo == old[0],
            Subscription.settled_sha == old[1],
            Subscription.ended_at.is_(None),
            Subscription.created_at <= release.seen_at,
        )
        .values(settled_repo=release.repo, settled_sha=release.sha)
    )


def unclassified_releases(session: Session, at: datetime | None = None) -> list[Release]:
    """Those not looked at yet; with `at`, only those whose time has come."""
    waiting = select(Release).where(Release.change.is_(None)).order_by(Release.id)
    if at is not None:
        waiting = waiting.where(or_(Release.due_at.is_(None), Release.due_at <= at))
    return list(session.scalars(waiting))
