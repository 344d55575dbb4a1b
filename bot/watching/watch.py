"""The watch: each followed base is looked at in turn, and what is new becomes a release."""

import logging

from bot.context import Context
from bot.hub import lookups
from bot.hub.limiter import Bucket, Limiter, Priority
from bot.logs import redact
from bot.watching.cadence import Cadence, Followed, Known, Room, plan_looks
from bot.watching.follow import Follow, heads, is_step_back
from porting.errors import HubError, PortllmError, Refused
from registry.following import Head, followed_bases, observe
from registry.models import Base, Rule, now
from registry.records import hide
from registry.status import shown

log = logging.getLogger("portllm")


class Lookout:
    """The looks of one process: it learns what they cost, and keeps within the Hub's quota."""

    def __init__(self, context: Context, limiter: Limiter) -> None:
        self.context, self.limiter = context, limiter
        self.known = Known()
        self.cadence = Cadence(context.settings.poll_seconds)

    def look_at_due(self) -> None:
        """Look at every base whose time has come, as far as the quota goes."""
        with self.context.database.session() as session:
            bases = [_followed(base) for base in followed_bases(session)]
        room = Room(
            *(self.limiter.room(each, Priority.POLL) for each in (Bucket.API, Bucket.RESOLVERS))
        )
        at = now()
        looks = plan_looks(bases, self.known, at, room, self.cadence)
        for base, found in lookups.look(self.context.hub, looks, self.known, at, self._ask):
            _see(self.context, base.id, found)

    def _ask(self, base: Followed) -> list[Head]:
        return heads(self.context.hub, Follow(base.rule, base.repo, base.ref))


def look(context: Context, base_id: int) -> None:
    """Look at one base now, and record where it stands; a failure is recorded as its problem."""
    with context.database.session() as session:
        base = session.get_one(Base, base_id)
        follow = Follow(Rule(base.rule), base.repo, base.ref)
    try:
        found: list[Head] | PortllmError = heads(context.hub, follow)
    except PortllmError as error:
        found = error
    _see(context, base_id, found)


def _see(context: Context, base_id: int, found: list[Head] | PortllmError) -> None:
    """Record where the base stands, or why that can't be told, and when it is looked at again."""
    found = _hidden(context, base_id, found)
    with context.database.session() as session:
        base = session.get_one(Base, base_id)
        name, releases = shown(base), []
        problem = _problem(base, found)
        if problem is None and not isinstance(found, PortllmError):
            releases = observe(session, base_id, found)
        else:
            base.problem = problem and redact(problem)  # pages show it
            log.warning("%s: %s", name, problem, extra={"base": name})
        base.looked_at = now()
        cadence = Cadence(context.settings.poll_seconds)
        base.due_at = cadence.due_at(base_id, base.looked_at, base.changed_at)
        names = [release.name for release in releases]
    for release in names:
        log.info("%s moved to %s", name, release, extra={"base": name, "release": release})


def _hidden(
    context: Context, base_id: int, found: list[Head] | PortllmError
) -> list[Head] | PortllmError:
    """`found`; where a pattern comes to a repo that is private, nobody is shown it from here on."""
    with context.database.session() as session:
        base = session.get_one(Base, base_id)
        rule, head = base.rule, base.head_repo
    if rule != Rule.REPOS or isinstance(found, PortllmError) or found[0].repo == head:
        return found
    try:
        is_private = context.hub.facts(found[0].repo).private
    except PortllmError as error:
        return error
    if is_private:
        with context.database.session() as session:
            hide(session, base_id)
    return found


def _problem(base: Base, found: list[Head] | PortllmError) -> str | None:
    if isinstance(found, HubError):
        return f"{found} It is looked at again soon."
    if isinstance(found, Refused):
        return f"{found} It is looked at again; see to it, or unsubscribe."
    if isinstance(found, PortllmError):
        return str(found)
    follow, was = Follow(Rule(base.rule), base.repo, base.ref), _stood(base)
    if follow.rule != Rule.TREE and is_step_back(follow, was, found[0]):
        gone = was.ref if follow.rule == Rule.TAGS else was.repo
        return f"{gone} is gone; the next higher version is waited for."
    return None


def _stood(base: Base) -> Head:
    return Head(base.head_repo, base.head_ref, base.head_sha)


def _followed(base: Base) -> Followed:
    return Followed(
        base.id,
        Rule(base.rule),
        base.repo,
        base.ref,
        base.head_sha,
        base.looked_at,
        base.changed_at,
        base.due_at,
    )
