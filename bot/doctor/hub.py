"""The Hub: it answers, has our time, knows the token, and lets it read and write what it must."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bot.doctor.finding import Finding, error, ok, sentence, unchecked, warning
from bot.hub import Hub, HubRepo
from bot.hub.account import Account, account, hub_time
from porting.errors import HubError, PortllmError, Refused

ENDPOINT = "endpoint"
MOST_APART = timedelta(seconds=60)
NAMED = 5  # of many; the rest are counted
LOG_IN = "Run: hf auth login, or set HF_TOKEN to a token that may write."


@dataclass(frozen=True)
class Subscribed:
    """The repos that are followed, each at a commit, and those that ports go to."""

    bases: Sequence[tuple[str, str]]
    targets: Sequence[str]


def check_hub(hub: Hub, subscribed: Subscribed | None) -> tuple[list[Finding], int]:
    """Every finding on the Hub, and the bytes of the largest of the bases.

    `subscribed` is None where the registry can't be read.
    """
    try:
        told = hub_time(hub)
    except PortllmError as failure:
        do = "Check HF_ENDPOINT, the network and the proxy."
        endpoint = error(ENDPOINT, f"{hub.endpoint}: {sentence(failure)}", do)
        return [endpoint, *_unchecked("the Hub does not answer", "token", "targets", "bases")], 0
    found = [ok(ENDPOINT, f"{hub.endpoint} answers."), check_clock(told, datetime.now(UTC))]
    token, owner = _identify(hub)
    found.append(token)
    if subscribed is None:
        return found + _unchecked("the registry can't be read", "targets", "bases"), 0
    if owner is None:
        found += _unchecked("it is not known whose token it is", "targets")
    else:
        found.append(check_targets(owner, subscribed.targets))
    readable, largest = check_bases(hub, subscribed.bases)
    return [*found, readable], largest


def _identify(hub: Hub) -> tuple[Finding, Account | None]:
    if not hub.token:
        return error("token", "There is no token.", LOG_IN), None
    try:
        owner = account(hub)
    except Refused as failure:
        return error("token", sentence(failure), LOG_IN), None
    except HubError as failure:  # nothing else is limited as strictly as this
        return unchecked("token", f"the Hub did not say whose it is ({failure})"), None
    return check_token(owner), owner


def check_clock(told: datetime | None, now: datetime) -> Finding:
    """Whether our clock and the Hub's agree: tokens, schedules and cool-downs rest on it."""
    if told is None:
        return warning("clock", "The Hub does not tell its time.", "Check for a proxy in between.")
    apart = abs(now - told)
    if apart > MOST_APART:
        side = "ahead of" if now > told else "behind"
        return error(
            "clock",
            f"This machine's clock is {apart.total_seconds():.0f} s {side} the Hub's.",
            "Set it, or switch time synchronisation (NTP) on.",
        )
    return ok("clock", "This machine's clock agrees with the Hub's.")


def check_token(account: Account) -> Finding:
    """Whether the token may write at all."""
    anew = "Make one with the role write, or a fine-grained one that may write the targets."
    whose = f"The token is {account.name}'s"
    if account.role is None:
        return warning("token", f"{whose}; the Hub does not say what it may do.", anew)
    if account.role == "read":
        return error("token", f"{whose} and may only read.", anew)
    if account.role != "fineGrained":
        return ok("token", f"{whose}, with the role {account.role}.")
    if not account.scopes:
        return error("token", f"{whose}, fine-grained, and may write no repo.", anew)
    scopes = _named(sorted(account.scopes))
    return ok("token", f"{whose}, fine-grained, and may write what is in {scopes}.")


def check_targets(account: Account, targets: Sequence[str]) -> Finding:
    """Whether the token may write every repo that ports go to."""
    if not targets:
        return ok("targets", "Nothing is subscribed yet.")
    closed = [target for target in targets if not account.may_write(target)]
    if closed:
        return error(
            "targets",
            f"{account.name}'s token may not write {_named(closed)}.",
            "Use a token that may, or subscribe with --to a repo of yours.",
        )
    return ok("targets", f"The token may write every repo that ports go to: {len(targets)}.")


def check_bases(hub: Hub, bases: Sequence[tuple[str, str]]) -> tuple[Finding, int]:
    """Whether the bases, each a repo at a commit, can be read; and the bytes of the largest."""
    sizes, problems = [0], []
    for repo, sha in bases:
        try:
            files = HubRepo(hub, repo, sha).files()
        except PortllmError as failure:
            problems.append(sentence(failure))
        else:
            sizes.append(sum(entry.size for entry in files.values()))
    if problems:
        return warning("bases", problems[0], "portllm status says what waits for it."), max(sizes)
    return ok("bases", f"The bases that are followed can be read: {len(bases)}."), max(sizes)


def _unchecked(because: str, *checks: str) -> list[Finding]:
    return [unchecked(check, because) for check in checks]


def _named(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
