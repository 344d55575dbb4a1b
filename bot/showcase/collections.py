"""One Collection per base: the base, the patches that follow it, and their published ports."""

import hashlib
import json
from collections.abc import Iterator, Set

from sqlalchemy import func, select
from sqlalchemy.orm import Session, contains_eager

from bot.hub.showcase import Item, Shelf
from registry.models import Base, Patch, Port, PortState, Release, Subscription

MOST_BASES, MOST_PATCHES = 500, 200  # the most followed bases; of each, the newest subscriptions
LONGEST_TITLE, LONGEST_NOTE = 59, 500  # characters
OURS = ("Base: ", "Patch: ", "Port to ")  # how our notes begin


def shelves(session: Session, hidden: Set[str]) -> Iterator[Shelf]:
    """What each Collection is to hold: nothing, if nobody follows the base in public any more."""
    followed = select(Base.repo, func.count()).join(Subscription).group_by(Base.repo)
    rows = session.execute(followed.order_by(func.count().desc(), Base.repo).limit(MOST_BASES))
    for repo, _ in rows.all():
        items = _items(session, repo, hidden)
        made_of = json.dumps([repo, [(item.repo, item.note) for item in items]])
        digest = hashlib.sha256(made_of.encode()).hexdigest()[:12]
        kept = f"Patches that follow this base, and their ports. Kept by PortLLM ({digest})."
        yield Shelf(_title(repo), kept, items, OURS)


def _title(repo: str) -> str:
    title = f"Patches on {repo}"
    if len(title) <= LONGEST_TITLE:
        return title
    digest = hashlib.sha256(repo.encode()).hexdigest()[:6]
    return f"{title[: LONGEST_TITLE - 8]}… {digest}"


def _items(session: Session, repo: str, hidden: Set[str]) -> list[Item]:
    """The base first, then each patch with its ports, of the newest subscription first."""
    subscriptions = [
        each
        for each in session.scalars(
            select(Subscription)
            .join(Subscription.patch)
            .join(Subscription.base)
            .options(contains_eager(Subscription.patch), contains_eager(Subscription.base))
            .where(Base.repo == repo, Subscription.ended_at.is_(None), Patch.private.is_(False))
            .order_by(Subscription.id.desc())
            .limit(MOST_PATCHES)
        )
        if hidden.isdisjoint((repo, each.base.head_repo, each.patch.repo, each.patch.base_repo))
    ]
    ports = _ports(session, [each.id for each in subscriptions])
    notes: dict[str, str] = {}
    for each in subscriptions:
        notes.setdefault(each.base.head_repo or repo, "Base: what these patches follow.")
    for each in subscriptions:
        patch = each.patch
        task = f" for {patch.task}" if patch.task else ""
        notes.setdefault(patch.repo, f"Patch: {patch.kind}{task}, on {patch.base_sha[:7]}.")
        for to, note in ports.get(each.id, []):
            notes.setdefault(to, note[:LONGEST_NOTE])
    return [Item(repo, note) for repo, note in notes.items() if repo not in hidden]


def _ports(session: Session, ids: list[int]) -> dict[int, list[tuple[str, str]]]:
    """Of each subscription the repos whose newest port stands, with a line on that port."""
    rows = session.execute(
        select(
            Port.subscription_id,
            Port.job["to_repo"].as_string(),
            Port.state,
            Port.verdict["reason"].as_string(),
            Release,
        )
        .join(Release, Release.id == Port.release_id)
        .where(Port.subscription_id.in_(ids))
        # By the subscriptions, of which there are few, and not by the states.
        .where(func.lower(Port.state).in_((PortState.PUBLISHED, PortState.WITHDRAWN)))
        .order_by(Port.release_id.desc())
    )
    found: dict[int, list[tuple[str, str]]] = {}
    seen = set()
    for id, to, state, reason, release in rows:
        if to not in seen and state == PortState.PUBLISHED:
            found.setdefault(id, []).append((to, f"Port to {release.name}: {reason}"))
        seen.add(to)
    return found
