"""PortLLM from Python: what the commands of the same names do, with data in place of print.

A base and a patch are named as on the command line. Errors are those of `porting.errors`. What a
call needs is imported when it is made.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from bot.trust.verify import Verification
    from porting import Plan
    from porting.plan import Policy
    from registry.models import Patch
    from registry.status import Status

Form = Literal["merged", "adapter"]


def plan(
    base: str,
    patch: str,
    as_: Form = "merged",
    old: str | None = None,
    policy: "Policy | None" = None,
) -> "Plan":
    """The dry run of a port: which tensors change, which files travel. Nothing is downloaded.

    Raises:
        Refused: the patch can't be ported there; the message says why.
    """
    from bot.cli.ports import read_inputs

    return read_inputs(base, patch, as_, old, policy).plan


def port(
    base: str,
    patch: str,
    out: str | Path,
    as_: Form = "adapter",
    old: str | None = None,
    policy: "Policy | None" = None,
) -> dict[str, str]:
    """Port a patch to a base, into the folder `out`; the sha256 of each file written.

    Nothing is evaluated and nothing is pushed.

    Raises:
        UsageError: `out` exists, or an adapter shall point at a folder.
        Refused: the patch can't be ported there.
    """
    from bot.cli.ports import check_out, make, read_inputs
    from bot.making.sandbox import silent

    inputs = read_inputs(base, patch, as_, old, policy)
    check_out(inputs, Path(out))
    return make(inputs, Path(out).resolve(), True, silent)


def add_patch(patch: str, base: str | None = None) -> "Patch":
    """Record a patch at its present commit, with the `base` commit that it was trained on.

    Raises:
        Refused: it can't be ported, or nothing names that commit.
    """
    from bot.address import parse_repo
    from bot.cli.sources import open_context
    from bot.register import register

    return register(open_context(), parse_repo(patch), parse_repo(base) if base else None)


def subscribe(patch: str, follow: str, to: str | None = None, **options: Any) -> "Status":
    """Keep a recorded patch alive on what it follows, in the repo `to`, once a bot runs.

    Args:
        options: those of `portllm subscribe`, such as `as_="both"`, `minimum_release_age="24h"`.

    Raises:
        UsageError: it contradicts itself, or another subscription.
        Refused: the patch can't have this form, or there is nothing to follow.
    """
    from bot.cli.sources import open_context
    from bot.cli.subscriptions import take_up

    return take_up(open_context(), patch, follow, to, **options)


def status(
    owner: str | None = None, patch: str | None = None, state: str | None = None
) -> "list[Status]":
    """Every subscription: its state, and one sentence why."""
    from bot.cli.status import read_status

    return read_status(owner, patch, state)


def verify(port: str, public_key: Path | None = None) -> "Verification":
    """Make a published port again from what its lock names, and compare it to the byte.

    `.check()` of what is returned raises Refused where anything differs, or where it is not signed
    by the owner of `public_key`, if that is given.
    """
    from bot.cli.sources import open_source
    from bot.hub import Hub, HubRepo
    from bot.making.sandbox import silent
    from bot.trust.verify import verify as verify_port
    from patch_cards import lock
    from porting.errors import UsageError

    repo = open_source(port, Hub())
    if not isinstance(repo, HubRepo):
        raise UsageError(f"{port} is a folder; what is verified is a repo: namespace/name.")
    return verify_port(repo, lock.read(repo), silent, public_key)
