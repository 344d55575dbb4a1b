"""Making the subscriptions of a patch equal to its file. Killed anywhere, it is done again.

Each change is a transaction of its own; what is so already stays as it is. Subscriptions that were
made by hand are left alone.
"""

from dataclasses import dataclass

from sqlalchemy import select

from bot.address import REPO, RepoAddress, parse_repo, plain
from bot.config.schema import Entry
from bot.context import Context
from bot.hub import HubRepo
from bot.register import check_wanted, register
from bot.subscribing import Wanted, begin, default_target
from bot.watching.follow import Follow, heads, parse_follow
from porting import read_adapter
from porting.errors import Refused, UsageError
from registry.configs import managed
from registry.models import Patch, Rule, Subscription, now


@dataclass(frozen=True)
class _Asked:
    """An entry, in our words."""

    entry: Entry
    follow: Follow
    to: str

    def is_of(self, subscription: Subscription) -> bool:
        base = subscription.base
        followed = Follow(Rule(base.rule), base.repo, base.ref)
        return (followed, subscription.to_repo) == (self.follow, self.to)


def obey(context: Context, repo: str, sha: str, entries: list[Entry]) -> list[str]:
    """Begin, change and end what the file at commit `sha` of `repo` says.

    Returns:
        A sentence for each subscription that could not be had; the others are as the file says.

    Raises:
        Refused, UsageError: the file asks for what it may not have; nothing was changed.
        HubError: the Hub did not say; it is to be tried again.
    """
    asked = [
        _Asked(each, parse_follow(each.follow), _target(context, repo, each)) for each in entries
    ]
    _check(context, repo, asked)
    given = next((each.base for each in entries if each.base), None)
    patch = _recorded(context, repo, sha, given)
    for each in asked:
        check_wanted(patch, each.entry.as_, each.entry.policy)
    _move(context, repo, patch, asked)
    failed = []
    for each in asked:
        try:
            _subscribe(context, patch, each)
        except (Refused, UsageError) as error:
            failed.append(f"{each.entry.follow} to {each.to}: {error}")
    return failed


def end(context: Context, repo: str) -> int:
    """End what the file of `repo` asked for: it is there no more. Returns how many that were."""
    with context.database.session() as session:
        ended = managed(session, repo)
        for subscription in ended:
            subscription.ended_at = now()
        return len(ended)


def _target(context: Context, repo: str, entry: Entry) -> str:
    """The owner's repo that is asked for, or the bot's own for such a patch.

    Raises Refused for any other: nobody sends us to others, nor chooses among the bot's repos.
    """
    owner, follow = repo.partition("/")[0], parse_follow(entry.follow)
    default = default_target(context.hub, repo, follow)
    to = plain(entry.to) if entry.to else default
    if to != default and to.partition("/")[0].lower() != owner.lower():
        raise Refused(
            f"to: {to}: the ports of {repo} may go to a repo of {owner}'s; or leave `to` out, and "
            f"they go to {default}."
        )
    return to


def _check(context: Context, repo: str, asked: list[_Asked]) -> None:
    """Refuse what is asked for twice, and what only we may see: a stranger's file asks here."""
    for number, each in enumerate(asked):
        if any(other.to == each.to for other in asked[:number]):
            raise Refused(f"to: {each.to}: two subscriptions can't go there; give each its own.")
    named = {each.follow.repo for each in asked if each.follow.rule != Rule.REPOS}
    named |= {parse_repo(each.entry.base).repo for each in asked if each.entry.base}
    for other in sorted(named):
        check_seen(context, other, repo)


def check_seen(context: Context, base: str, patch: str) -> None:
    """Refuse a private base of another owner's, in words that do not tell that there is one."""
    if _is_hidden(context, base, patch):
        raise Refused(f"{base}@main does not exist, or this token may not see it.")


def _is_hidden(context: Context, base: str, patch: str) -> bool:
    if base.partition("/")[0].lower() == patch.partition("/")[0].lower():
        return False
    return context.hub.facts(base).private


def register_seen(context: Context, source: RepoAddress, given: RepoAddress | None) -> Patch:
    """Record the patch, if its base, given or named by its config, is one that its owner may see.

    That is found out first: what else is wrong with it would tell of the base.
    """
    adapter = read_adapter(HubRepo(context.hub, source.repo, source.revision or ""))
    base = given.repo if given else adapter.base_repo
    if base is not None and REPO.fullmatch(base):
        check_seen(context, base, source.repo)
    return register(context, source, given)


def _recorded(context: Context, repo: str, sha: str, given: str | None) -> Patch:
    with context.database.session() as session:
        known = session.scalar(select(Patch).where(Patch.repo == repo, Patch.sha == sha))
    if known is not None and given is None:
        return known
    try:
        return register_seen(context, RepoAddress(repo, sha), parse_repo(given) if given else None)
    except Refused as error:
        raise Refused(str(error).replace("--base", "in portllm.yaml, base:")) from error


def _move(context: Context, repo: str, patch: Patch, asked: list[_Asked]) -> None:
    """End what the file no longer asks for; the rest is of the patch's new commit from now on."""
    with context.database.session() as session:
        for subscription in managed(session, repo):
            kept = next((each for each in asked if each.is_of(subscription)), None)
            known = select(Subscription.id).where(
                Subscription.patch_id == patch.id,
                Subscription.base_id == subscription.base_id,
                Subscription.to_repo == subscription.to_repo,
            )
            if kept is None or session.scalar(known) not in (None, subscription.id):
                subscription.ended_at = now()
                continue
            subscription.patch_id = patch.id
            paused_by_file = (subscription.manners or {}).get("enabled") is False
            if kept.entry.enabled and paused_by_file:
                subscription.paused_at = None


def _subscribe(context: Context, patch: Patch, asked: _Asked) -> None:
    """Begin it, or change what it says. Raises UsageError where somebody made it by hand."""
    entry = asked.entry
    with context.database.session() as session:
        going = select(Subscription).where(
            Subscription.to_repo == asked.to, Subscription.ended_at.is_(None)
        )
        there = session.scalar(going)
        if there is not None and not there.managed:
            raise UsageError(
                "Whoever runs the bot has subscribed something there by hand; name another repo, "
                "or ask them to end it."
            )
    if asked.follow.rule == Rule.REPOS:
        (newest,) = heads(context.hub, asked.follow)
        if _is_hidden(context, newest.repo, patch.repo):
            raise Refused(f"There is no repo {asked.follow.repo} with a version in its name.")
    wanted = Wanted(
        patch=RepoAddress(patch.repo, patch.sha),
        follow=asked.follow,
        to=asked.to,
        form=entry.as_,
        policy=entry.policy,
        verdict_policy=entry.verdict_policy(),
        manners=entry.manners(patch.owner),
        start=entry.from_ if there is None else None,  # it counts at the beginning only
        managed=True,
        delivery=entry.by,
        notify=entry.notify.receivers() if entry.notify else (),
    )
    id = begin(context, wanted)
    if not entry.enabled:
        with context.database.session() as session:
            subscription = session.get_one(Subscription, id)
            subscription.paused_at = subscription.paused_at or now()
