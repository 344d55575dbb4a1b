"""Inaction is explained: a subscription's state and one sentence why, derived, never stored.

A handful of queries for any number of subscriptions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session, joinedload, load_only

from registry import configs
from registry.following import THERE_BEFORE
from registry.models import Base, Patch, Port, PortState, Release, Rule, Subscription
from registry.ports import AT_WORK
from registry.scene import CLASSIFYING, PENDING, Scene, moment

# What a change is called in `Release.change` when it moves no weights and asks nothing of anybody.
OWN = "ours"
QUIET = ("nothing", "metadata", OWN, THERE_BEFORE)
UNREADABLE = "unreadable"

UP_TO_DATE, PAUSED = "up to date", "paused"
BLOCKED, SKIPPED, ENDED = "blocked", "skipped", "ended"
STATES = (UP_TO_DATE, CLASSIFYING, *PortState, PAUSED, BLOCKED, SKIPPED, ENDED)
MANY = 1000  # subscriptions in one query


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


def chosen(
    session: Session, owner: str | None = None, patch: str | None = None, ended: bool = False
) -> list[Subscription]:
    """The subscriptions of these patches, the ended ones too if asked for."""
    query = (
        select(Subscription)
        .join(Patch, Patch.id == Subscription.patch_id)
        .options(joinedload(Subscription.patch), joinedload(Subscription.base))
        .order_by(Subscription.id)
    )
    if owner is not None:
        query = query.where(Patch.owner == owner)
    if patch is not None:
        query = query.where(Patch.repo == patch)
    if not ended:
        query = query.where(Subscription.ended_at.is_(None))
    return list(session.scalars(query))


def status(session: Session, subscription: Subscription) -> Status:
    return statuses(session, [subscription])[0]


def statuses(session: Session, subscriptions: Sequence[Subscription]) -> list[Status]:
    """Where each stands: the newest release that moved weights, or why there is none."""
    scene = Scene.now(session)
    found = []
    for start in range(0, len(subscriptions), MANY):
        part = subscriptions[start : start + MANY]
        ports = _newest_ports(session, [each.id for each in part])
        releases = _newest_releases(session, sorted({each.base_id for each in part}))
        managed = {each.patch.repo for each in part if each.managed}
        problems = configs.problems(session, managed) if managed else {}
        for each in part:
            newest, loud = releases.get(each.base_id, (None, None))
            found.append(_status(scene, each, ports.get(each.id), newest, loud))
            if each.managed and each.ended_at is None and each.patch.repo in problems:
                reason = f"{problems[each.patch.repo].rstrip('.')}. {found[-1].reason}"
                found[-1] = replace(found[-1], reason=reason)
    return found


def shown(base: Base) -> str:
    """What is followed, as a user writes it."""
    if base.rule == Rule.REPOS:
        return base.repo
    name = f"tree:{base.repo}" if base.rule == Rule.TREE else base.repo
    return f"{name}@{base.ref}" if base.ref else name


# Of a port: what a sentence is made of. Evidence may be megabytes.
TOLD = (
    Port.subscription_id,
    Port.release_id,
    Port.state,
    Port.reason,
    Port.url,
    Port.due_at,
    Port.created_at,
    Port.updated_at,
)


def _newest_ports(session: Session, ids: list[int]) -> dict[int, Port]:
    newest = (
        select(Port.subscription_id, func.max(Port.release_id).label("release_id"))
        .where(Port.subscription_id.in_(ids))
        .group_by(Port.subscription_id)
        .subquery()
    )
    same = and_(
        Port.subscription_id == newest.c.subscription_id,
        Port.release_id == newest.c.release_id,
    )
    rows = session.scalars(select(Port).join(newest, same).options(load_only(*TOLD)))
    return {port.subscription_id: port for port in rows}


def _newest_releases(
    session: Session, base_ids: list[int]
) -> dict[int, tuple[Release | None, Release | None]]:
    """The newest release of each base, and the newest that moved weights or could not be read."""

    def newest(*conditions: ColumnElement[bool]) -> Any:
        mine = select(Release.id).where(Release.base_id == Base.id, *conditions)
        return mine.order_by(Release.id.desc()).limit(1).correlate(Base).scalar_subquery()

    loud = Release.change.not_in(QUIET)
    rows = session.execute(
        select(Base.id, newest(), newest(loud)).where(Base.id.in_(base_ids))
    ).all()
    wanted = {id for row in rows for id in row[1:] if id is not None}
    found = session.scalars(select(Release).where(Release.id.in_(wanted)))
    releases = {release.id: release for release in found}
    return {base: (releases.get(any_), releases.get(loud_)) for base, any_, loud_ in rows}


def _status(
    scene: Scene,
    subscription: Subscription,
    port: Port | None,
    newest: Release | None,
    loud: Release | None,
) -> Status:
    began, patch = subscription.created_at, subscription.patch
    # What was before it was taken up again is none of it.
    port = port if port is not None and port.created_at >= began else None
    newest = newest if newest is not None and newest.seen_at >= began else None
    loud = loud if loud is not None and loud.seen_at >= began else None
    state, reason, due_at = _state(subscription, port, newest, loud)
    follows = shown(subscription.base)
    if subscription.ended_at is not None:
        ended = f"Ended on {moment(subscription.ended_at)}; portllm subscribe takes it up again."
        state, reason = ENDED, f"{ended} Before that: {reason}" if port else ended
    elif (pause := scene.pause(subscription)) is not None:
        if state in (UP_TO_DATE, *PENDING) and state != PortState.RUNNING:
            state, reason = PAUSED, f"{pause} Before that: {reason}"
        else:
            reason = f"{reason} {pause}"
    elif neglect := scene.neglect(state, due_at) or scene.unwatched(subscription.base, follows):
        reason = f"{reason} {neglect}"
    return Status(
        patch=f"{patch.repo}@{patch.sha[:7]}",
        follows=follows,
        to=subscription.to_repo,
        form=subscription.form,
        policy=subscription.policy,
        state=state,
        reason=reason,
        port=port.key if port else None,
        url=port.url if port else None,
    )


def _state(
    subscription: Subscription, port: Port | None, newest: Release | None, loud: Release | None
) -> tuple[str, str, datetime]:
    """Its state, why, and since when something is to be done about it."""
    base = subscription.base
    if base.problem is not None:
        before = f" Before that: {port.reason}" if port else ""
        return BLOCKED, base.problem + before, base.observed_at
    if newest is not None and newest.change is None:
        waits = newest.reason or "looking at it."
        reason = f"{shown(base)} moved to {newest.name}; {waits}"
        return CLASSIFYING, reason, newest.due_at or newest.seen_at
    if port is not None and (loud is None or port.release_id >= loud.id):
        since = newest if newest is not None and newest.id > port.release_id else None
        reason = port.reason + (f" Since then: {since.reason}" if since else "")
        return port.state, reason, _since(port)
    if loud is None:
        return UP_TO_DATE, _quiet(subscription, newest), base.observed_at
    if (loud.repo, loud.sha) == (subscription.settled_repo, subscription.settled_sha):
        return UP_TO_DATE, f"{loud.name} has had its port before.", loud.seen_at
    state = SKIPPED if loud.change == UNREADABLE else CLASSIFYING
    return state, f"{loud.name}: {loud.reason}", loud.seen_at


def told(scene: Scene, port: Port) -> str:
    """Why the port is where it is, and who or what keeps it there."""
    if port.state not in PENDING:
        return port.reason
    more = scene.pause(port.subscription) or scene.neglect(port.state, _since(port))
    return f"{port.reason} {more}" if more else port.reason


def _since(port: Port) -> datetime:
    """Since when, or from when on, somebody has to be at work on it."""
    return port.updated_at if port.state in AT_WORK else port.due_at


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
            f"{patch.base_repo}@{patch.base_sha[:7]}. To have it on the present one: "
            f"portllm port {base.head_repo} {patch.repo} --out DIR "
            f"--old {patch.base_repo}@{patch.base_sha[:7]} {_options(subscription)}"
        )
    return f"{sentence}, the revision that the patch was trained on."


def _options(subscription: Subscription) -> str:
    """The options of `portllm port` for what is subscribed."""
    form = "adapter" if subscription.form == "adapter" else "merged"
    return f"--as {form}" + (f" --policy {subscription.policy}" if subscription.policy else "")
