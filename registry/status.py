"""Inaction is explained: a subscription's state and one sentence why, derived, never stored."""

from dataclasses import asdict, dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.models import Port, Release, Subscription

# What a change is called in `Release.change` when it moves no weights and asks nothing of anybody.
QUIET = ("nothing", "metadata")
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
    patch, base = subscription.patch, subscription.base
    port, state, reason = _state(session, subscription)
    return Status(
        patch=f"{patch.repo}@{patch.sha[:7]}",
        follows=f"{base.repo}@{base.ref}",
        to=subscription.to_repo,
        form=subscription.form,
        policy=subscription.policy,
        state=state,
        reason=reason,
        port=port.key if port else None,
        url=port.url if port else None,
    )


def _state(session: Session, subscription: Subscription) -> tuple[Port | None, str, str]:
    base = subscription.base
    releases = list(
        session.scalars(
            select(Release)
            .where(Release.base == base, Release.seen_at >= subscription.created_at)
            .order_by(Release.id)
        )
    )
    port = session.scalar(
        select(Port)
        .where(Port.subscription == subscription, Port.release_id.in_(r.id for r in releases))
        .order_by(Port.release_id.desc(), Port.created_at.desc())
    )
    if base.problem is not None:
        before = f" Before that: {port.reason}" if port else ""
        return port, "blocked", base.problem + before
    if releases and releases[-1].change is None:
        return port, "classifying", f"{base.repo} moved to {releases[-1].sha[:7]}; looking at it."
    loud = [release for release in releases if release.change not in QUIET]
    if port is not None and (not loud or port.release_id >= loud[-1].id):
        since = releases[-1]
        return (
            port,
            port.state,
            port.reason + (f" Since then: {since.reason}" if since.id > port.release_id else ""),
        )
    if not loud:
        return None, "up to date", _quiet(subscription, releases)
    state = "skipped" if loud[-1].change == UNREADABLE else "classifying"
    return port, state, f"{base.repo}@{loud[-1].sha[:7]}: {loud[-1].reason}"


def _quiet(subscription: Subscription, releases: list[Release]) -> str:
    base, patch = subscription.base, subscription.patch
    if releases:
        return f"{base.repo}@{releases[-1].sha[:7]}: {releases[-1].reason}"
    sentence = f"{base.repo} has not moved since {base.head_sha[:7]}"
    if (base.repo, subscription.from_sha) != (patch.base_repo, patch.base_sha):
        return (
            f"{sentence}, where it stood at subscription; the patch was trained on "
            f"{patch.base_repo}@{patch.base_sha[:7]}, so to have it on the present one, run: "
            f"portllm port {base.repo} {patch.repo} --out DIR "
            f"--old {patch.base_repo}@{patch.base_sha[:7]} {_options(subscription)}"
        )
    return f"{sentence}, the revision that the patch was trained on."


def _options(subscription: Subscription) -> str:
    """The options of `portllm port` for what is subscribed."""
    form = "adapter" if subscription.form == "adapter" else "merged"
    return f"--as {form}" + (f" --policy {subscription.policy}" if subscription.policy else "")
