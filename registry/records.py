"""Patches and subscriptions: each function is one change, inside the caller's transaction."""

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from porting.errors import UsageError
from registry.models import Base, Patch, Subscription, now


def add_patch(session: Session, patch: Patch) -> Patch:
    """Record `patch`; the same repo and sha is recorded once, with its newest facts."""
    # What is private is the repo, at every commit.
    follows = select(Subscription).join(Subscription.patch).join(Subscription.base)
    closed = follows.where(Patch.repo == patch.repo, Base.private)
    patch.private = bool(patch.private or session.scalars(closed.limit(1)).first())
    same = update(Patch).where(Patch.repo == patch.repo)
    session.execute(same.values(private=patch.private))
    known = session.scalar(select(Patch).where(Patch.repo == patch.repo, Patch.sha == patch.sha))
    if known is None:
        session.add(patch)
        session.flush()
        return patch
    if (known.base_repo, known.base_sha) != (patch.base_repo, patch.base_sha):
        raise UsageError(
            f"{patch.repo}@{patch.sha[:7]} is already recorded as trained on "
            f"{known.base_repo}@{known.base_sha[:7]}; a commit can't change its base. "
            "Push the patch again if that record is wrong."
        )
    return known


def bases_of(session: Session, repo: str) -> list[str]:
    """What the recorded commits of this patch were trained on."""
    return list(session.scalars(select(Patch.base_repo).where(Patch.repo == repo).distinct()))


def hide(session: Session, base_id: int) -> None:
    """Show nobody this base, which is private, nor the patches that follow it, or did."""
    session.get_one(Base, base_id).private = True
    follow = select(Patch.repo).join(Subscription).where(Subscription.base_id == base_id)
    session.execute(update(Patch).where(Patch.repo.in_(follow)).values(private=True))


def find_patch(session: Session, repo: str, revision: str | None = None) -> Patch:
    """The recorded patch of `repo`: the one whose sha starts with `revision`, or the newest."""
    query = select(Patch).where(Patch.repo == repo).order_by(Patch.id.desc())
    if revision is not None:
        query = query.where(Patch.sha.startswith(revision, autoescape=True))
    patch = session.scalars(query).first()
    if patch is None:
        name = repo if revision is None else f"{repo}@{revision}"
        raise UsageError(f"No patch {name} is recorded. Record it with: portllm patch add {name}")
    return patch


def subscribe(
    session: Session,
    patch: Patch,
    base: Base,
    to_repo: str,
    form: str,
    policy: str | None,
    verdict_policy: dict[str, Any] | None = None,
    manners: dict[str, Any] | None = None,
    start: tuple[str, str] | None = None,
) -> Subscription:
    """Subscribe `patch` to `base`; a former subscription to the same target is taken up again.

    Args:
        start: the repo and commit that it starts from, where that is not where the base stands.
    """
    known = session.scalar(
        select(Subscription).where(
            Subscription.patch == patch, Subscription.base == base, Subscription.to_repo == to_repo
        )
    )
    other = session.scalar(
        select(Subscription).where(Subscription.to_repo == to_repo, Subscription.ended_at.is_(None))
    )
    if other is not None and other is not known:
        raise UsageError(
            f"Ports of {other.patch.repo} already go to {to_repo}; give this one a repo of its own."
        )
    if known is None or known.ended_at is not None:
        repo, sha = start or (base.head_repo or base.repo, base.head_sha)
        if known is None:
            known = Subscription(patch=patch, base=base, to_repo=to_repo)
            session.add(known)
        known.from_repo = known.settled_repo = repo
        known.from_sha = known.settled_sha = sha
        known.created_at, known.paused_at = now(), None
    known.manners, known.group_name = manners, (manners or {}).get("group")
    known.form, known.policy, known.verdict_policy = form, policy, verdict_policy
    known.ended_at = None
    session.flush()
    return known


def unsubscribe(session: Session, repo: str, to_repo: str | None) -> list[Subscription]:
    """End the active subscriptions of patch `repo` (only the one to `to_repo`, if given)."""
    mine = (
        select(Subscription)
        .join(Patch, Patch.id == Subscription.patch_id)
        .where(Patch.repo == repo, Subscription.ended_at.is_(None))
        .order_by(Subscription.id)
    )
    if to_repo is not None:
        mine = mine.where(Subscription.to_repo == to_repo)
    ended = list(session.scalars(mine))
    if not ended:
        raise UsageError(f"{repo} has no such subscription; see: portllm status")
    for subscription in ended:
        subscription.ended_at = now()
    return ended
