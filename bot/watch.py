"""The watch: each followed base is looked at in turn, and what is new becomes a release."""

import logging

from bot.context import Context
from bot.follow import Follow, heads, is_step_back
from porting.errors import HubError, PortllmError
from registry.following import Head, observe
from registry.models import Base, Rule, now
from registry.status import shown

log = logging.getLogger("portllm")


def look(context: Context, base_id: int, seen: list[Head] | None = None) -> None:
    """Look at one base, and record where it stands; a failure is recorded as its problem.

    Args:
        seen: where it stands, if that was just asked for.
    """
    with context.database.session() as session:
        base = session.get_one(Base, base_id)
        follow = Follow(Rule(base.rule), base.repo, base.ref)
        name, was = shown(base), Head(base.head_repo, base.head_ref, base.head_sha)
    try:
        stands = heads(context.hub, follow) if seen is None else seen
    except PortllmError as error:
        hint = "It is looked at again soon." if isinstance(error, HubError) else "See to it."
        _blocked(context, base_id, f"{error} {hint}")
        log.warning("%s: %s", name, error)
        return
    if follow.rule != Rule.TREE and is_step_back(follow, was, stands[0]):
        gone = was.ref if follow.rule == Rule.TAGS else was.repo
        _blocked(context, base_id, f"{gone} is gone; the next higher version is waited for.")
        return
    with context.database.session() as session:
        releases = observe(session, base_id, stands)
        session.get_one(Base, base_id).looked_at = now()
    for release in releases:
        log.info("%s moved to %s", name, release.name)


def _blocked(context: Context, base_id: int, problem: str) -> None:
    with context.database.session() as session:
        base = session.get_one(Base, base_id)
        base.problem, base.looked_at = problem, now()
