"""Inaction is explained: a subscription's state and one sentence why, derived, never stored."""

from dataclasses import asdict, dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.following import THERE_BEFORE, newest_release
from registry.models import Base, Port, Release, Rule, Subscription
from registry.ports import newest_port

# What a change is called in `Release.change` when it moves no weights and asks nothing of anybody.
OWN = "ours"
QUIET = ("nothing", "metadata", OWN, THERE_BEFORE)
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Status:
    patch: str
    follows: str
    to: str
    form: str
    policy: str | None
    state: str
    reason: str
    port: str | None
    url: str | None

    def to_dict(self) -> dict[str, str | None]:
        return asdict(self)


def status(session: Session, subscription: Subscription) -> Status:
    """Where `subscription` stands: the newest release that moved weights, or why there is none."""
    patch = subscription.patch
    port, state, reason = _state(session, subscription)
    if subscription.paused_at is not None and port is None:
        state = "paused"
        reason = f"Paused since {subscription.paused_at:%Y-%m-%d %H:%M} UTC. Before that: {reason}"
    return Status(
        patch=f"{patch.repo}@{patch.sha[:7]}",
        follows=shown(subscription.base),
        to=subscription.to_repo,
        form=subscription.form,
        policy=subscription.policy,
        state=state,
        reason=reason,
        port=port.key if port else None,
        url=port.url if port else None,
    )


def shown(base: Base) -> str:
    """What is followed, as a user writes it."""
    if base.rule == Rule.REPOS:
        return base.repo
    name = f"tree:{base.repo}" if base.rule == Rule.TREE else base.repo
    return f"{name}@{base.ref}" if base.ref else name


def _state(session: Session, subscription: Subscription) -> tuple[Port | None, str, str]:
    base = subscription.base
    port = newest_port(session, subscription)
    newest = newest_release(session, base.id)
    if newest is not None and newest.seen_at < subscription.created_at:
        newest = None
    if base.problem is not None:
        before = f" Before that: {port.reason}" if port else ""
        return port, "blocked", base.problem + before
    if newest is not None and newest.change is None:
        waits = newest.reason or "looking at it."
        return port, "classifying", f"{shown(base)} moved to {newest.name}; {waits}"
    loud = _newest_loud(session, subscription)
    if port is not None and (loud is None or port.release_id >= loud.id):
        since = newest if newest is not None and newest.id > port.release_id else None
        return port, port.state, port.reason + (f" Since then: {since.reason}" if since else "")
    if loud is None:
        return None, "up to date", _quiet(subscription, newest)
    if loud.change == UNREADABLE:
        return port, "skipped", f"{loud.name}: {loud.reason}"
    return port, "classifying", f"{loud.name}: {loud.reason}"


def _newest_loud(session: Session, subscription: Subscription) -> Release | None:
    """The newest release since the subscription that moved weights, or could not be read."""
    loud = select(Release).where(
        Release.base_id == subscription.base_id,
        Release.seen_at >= subscription.created_at,
        Release.change.not_in(QUIET),
    )
    return session.scalars(loud.order_by(Release.id.desc()).limit(1)).first()


def _quiet(subscription: Subscription, newest: Release | None) -> str:
    base, patch = subscription.base, subscription.patch
    if newest is not None:
        return f"{newest.name}: {newest.reason}"
    if base.rule == Rule.TREE:
        return f"There is no new fine-tune of {base.repo} yet."
    stands = f"{base.head_repo}@{base.head_ref}"
    sentence = f"{stands} has not moved since {base.head_sha[:7]}"
    settled = (subscription.from_repo, subscription.from_sha)
    if settled != (patch.base_repo, patch.base_sha):
        return (
            f"{sentence}, where it stood at subscription; the patch was trained on "
            f"{patch.base_repo}@{patch.base_sha[:7]}, so to have it on the present one, run: "
            f"portllm port {base.head_repo} {patch.repo} --out DIR "
            f"--old {patch.base_repo}@{patch.base_sha[:7]} {_options(subscription)}"
        )
    return f"{sentence}, the revision that the patch was trained on."


def _options(subscription: Subscription) -> str:
    """The options of `portllm port` for what is subscribed."""
    form = "adapter" if subscription.form == "adapter" else "merged"
    return f"--as {form}" + (f" --policy {subscription.policy}" if subscription.policy else "")
