"""Subscribing: what is followed is looked at once, so that only what comes later is news."""

import re
from dataclasses import dataclass
from typing import Any

from bot.address import RepoAddress, parse_repo
from bot.context import NAME, Context, Delivery
from bot.hub import Hub
from bot.notify import parse
from bot.register import check_wanted
from bot.running.manners import Manners
from bot.watching.follow import Follow, heads
from patch_cards.licences import Licence, combine
from porting.errors import UsageError
from registry import following, records
from registry.models import Release, Rule

LONGEST = 96  # characters of a repo's name


@dataclass(frozen=True)
class Wanted:
    """A subscription as a user asks for it; `start` is a revision of what is followed.

    It is `managed` where the patch's own portllm.yaml asks for it. Without `to`, its ports go to
    the account of the token. `notify` are receivers as `bot.notify.parse` takes them.
    """

    patch: RepoAddress
    follow: Follow
    to: str | None
    form: str
    policy: str | None
    verdict_policy: dict[str, Any] | None
    manners: Manners
    start: str | None
    managed: bool = False
    delivery: Delivery = "commit"
    notify: tuple[str, ...] = ()


def begin(context: Context, wanted: Wanted) -> int:
    """Record the subscription, and return its id.

    Raises:
        UsageError: it contradicts itself, or another subscription.
        Refused: the patch can't have this form or policy, there is nothing to follow, or the
            licences don't go together.
    """
    follow = wanted.follow
    to = wanted.to or default_target(context.hub, wanted.patch.repo, follow)
    _check_target(wanted, to)
    told = list(
        dict.fromkeys(parse(text, is_secret=not wanted.managed).text for text in wanted.notify)
    )
    stands = heads(context.hub, follow)
    is_named = follow.rule == Rule.REF and follow.ref != "main"
    if is_named and follow.ref not in context.hub.branches(follow.repo):
        raise UsageError(
            f"--follow {follow.repo}@{follow.ref}: only a branch moves, and {follow.ref} is none. "
            "Follow a branch, or tags by a pattern such as @v*."
        )
    start = _start(context, wanted)
    manners = wanted.manners.model_dump(mode="json", exclude_defaults=True) or None
    with context.database.session() as session:
        record = records.find_patch(session, wanted.patch.repo, wanted.patch.revision)
        check_wanted(record, wanted.form, wanted.policy)
        licence = Licence(record.license)
    is_tree = follow.rule == Rule.TREE
    at = (follow.repo,) if is_tree else (stands[0].repo, stands[0].sha)
    of_base = context.hub.facts(*at)
    if not is_tree:  # of a tree it can't be told yet
        combine(of_base.licence, licence, wanted.form)
    with context.database.session() as session:
        record = records.find_patch(session, wanted.patch.repo, wanted.patch.revision)
        base = following.follow(session, follow.rule, follow.repo, follow.ref, stands)
        subscription = records.subscribe(
            session,
            record,
            base,
            to,
            wanted.form,
            wanted.policy,
            wanted.verdict_policy,
            manners,
            start,
        )
        subscription.managed, subscription.delivery = wanted.managed, wanted.delivery
        subscription.notify = {"receivers": told} if told else None
        if start is not None and start != (base.head_repo, base.head_sha):
            session.add(
                Release(
                    base=base,
                    from_repo=start[0],
                    from_ref=wanted.start,
                    from_sha=start[1],
                    repo=base.head_repo,
                    ref=base.head_ref,
                    sha=base.head_sha,
                )
            )
        session.flush()
        # A pattern may have been at a private repo before.
        base.private = of_base.private or (follow.rule == Rule.REPOS and base.private)
        if base.private:
            records.hide(session, base.id)
        return subscription.id


def default_target(hub: Hub, patch: str, follow: Follow) -> str:
    """Where ports go that nobody said anything about: to a repo of who the token is of."""
    name = patch.partition("/")[2]
    if follow.rule == Rule.TREE:
        return f"{hub.user}/{name}-on-{NAME}"
    base = re.sub(r"[\W_]*\*.*", "", follow.repo.partition("/")[2])
    return f"{hub.user}/{f'{name}-on-{base}'[:LONGEST].rstrip('-.')}"


def _check_target(wanted: Wanted, to: str) -> None:
    is_tree = wanted.follow.rule == Rule.TREE
    if is_tree != (NAME in to):
        raise UsageError(
            f"--to {to}: a tree has many fine-tunes, so its ports go to a repo each: put "
            f"{NAME} where the fine-tune's name shall stand, as me/mine-on-{NAME}."
            if is_tree
            else f"--to {to}: {NAME} is for --follow tree:..., which has many bases."
        )
    target = parse_repo(to.replace(NAME, "x"))
    if target.revision is not None:
        raise UsageError(f"--to {to} is a repo: leave out the @.")
    if target.repo in (wanted.patch.repo, wanted.follow.repo):
        raise UsageError(f"--to {target.repo} would overwrite an original; name another repo.")


def _start(context: Context, wanted: Wanted) -> tuple[str, str] | None:
    """The repo and commit of `--from`, which for repos by pattern names the repo as well."""
    if wanted.start is None:
        return None
    follow = wanted.follow
    if follow.rule == Rule.TREE:
        raise UsageError("--from is not for a tree: port to a fine-tune that is there by hand.")
    if follow.rule == Rule.REPOS:
        address = parse_repo(wanted.start)
        return address.repo, context.hub.head(address.repo, address.revision or "main")
    return follow.repo, context.hub.head(follow.repo, wanted.start)
