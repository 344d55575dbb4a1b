"""Writing to the registry: each function is one change, inside the caller's transaction."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from porting.errors import UsageError
from registry.models import Base, Patch, Port, PortState, Release, Score, Subscription, now

SETTLED = (PortState.PUBLISHED, PortState.ASKED, PortState.REJECTED)


def add_patch(session: Session, patch: Patch) -> Patch:
    """Record `patch`; the same repo and sha is recorded once, with its newest facts."""
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


def follow(session: Session, repo: str, ref: str, head_sha: str) -> Base:
    """The followed base of `repo` at `ref`. Where it stands is news only once it is watched."""
    base = session.scalar(select(Base).where(Base.repo == repo, Base.ref == ref))
    if base is not None and not active_subscriptions(session, base.id):
        base.head_sha, base.problem = head_sha, None
    if base is None:
        base = Base(repo=repo, ref=ref, head_sha=head_sha)
        session.add(base)
        session.flush()
    return base


def subscribe(
    session: Session,
    patch: Patch,
    base: Base,
    to_repo: str,
    form: str,
    policy: str | None,
    verdict_policy: dict[str, Any] | None = None,
) -> Subscription:
    """Subscribe `patch` to `base`; a former subscription to the same target is taken up again."""
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
    if known is None:
        known = Subscription(patch=patch, base=base, to_repo=to_repo, from_sha=base.head_sha)
        session.add(known)
    elif known.ended_at is not None:
        known.from_sha, known.created_at = base.head_sha, now()
    known.form, known.policy, known.verdict_policy = form, policy, verdict_policy
    known.ended_at = None
    session.flush()
    return known


def active_subscriptions(session: Session, base_id: int | None = None) -> list[Subscription]:
    query = select(Subscription).where(Subscription.ended_at.is_(None)).order_by(Subscription.id)
    if base_id is not None:
        query = query.where(Subscription.base_id == base_id)
    return list(session.scalars(query))


def unsubscribe(session: Session, repo: str, to_repo: str | None) -> list[Subscription]:
    """End the active subscriptions of patch `repo` (only the one to `to_repo`, if given)."""
    ended = [
        subscription
        for subscription in active_subscriptions(session)
        if subscription.patch.repo == repo and to_repo in (None, subscription.to_repo)
    ]
    if not ended:
        raise UsageError(f"{repo} has no such subscription; see: portllm status")
    for subscription in ended:
        subscription.ended_at = now()
    return ended


def observe(session: Session, base_id: int, sha: str) -> Release | None:
    """The base stands at `sha` now. Returns the release when that commit was never seen."""
    base = session.get_one(Base, base_id)
    base.observed_at = now()
    base.problem = None
    if sha == base.head_sha:
        return None
    seen = session.scalar(select(Release).where(Release.base == base, Release.sha == sha))
    release = seen or Release(base=base, from_sha=base.head_sha, sha=sha)
    base.head_sha = sha
    session.add(release)
    session.flush()
    return None if seen else release


def settled_sha(session: Session, subscription: Subscription) -> str:
    """The base commit that the subscription has its last judged port on, or started from."""
    sha = session.scalar(
        select(Release.sha)
        .join(Port, Port.release_id == Release.id)
        .where(Port.subscription == subscription, Port.state.in_(SETTLED))
        .where(Release.seen_at >= subscription.created_at)
        .order_by(Release.id.desc())
    )
    return sha or subscription.from_sha


def unclassified_releases(session: Session) -> list[Release]:
    return list(session.scalars(select(Release).where(Release.change.is_(None))))


def open_ports(session: Session) -> list[Port]:
    """Ports that were begun and are not at an end."""
    states = (PortState.QUEUED, PortState.RUNNING)
    return list(session.scalars(select(Port).where(Port.state.in_(states))))


def create_port(
    session: Session, key: str, subscription_id: int, release_id: int, job: dict[str, Any]
) -> Port:
    """The port under `key`, created when it is new: the same inputs are never two ports."""
    port = session.get(Port, key)
    if port is None:
        port = Port(
            key=key,
            subscription_id=subscription_id,
            release_id=release_id,
            job=job,
            reason="Waiting for its turn.",
        )
        session.add(port)
        session.flush()
    return port


def update_port(session: Session, key: str, **changes: Any) -> None:
    port = session.get_one(Port, key)
    for name, value in changes.items():
        setattr(port, name, value)


def save_score(session: Session, key: str, result: dict[str, Any]) -> None:
    session.merge(Score(key=key, result=result))
