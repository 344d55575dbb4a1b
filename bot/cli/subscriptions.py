"""`portllm subscribe` and `unsubscribe`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bot.address import parse_repo, plain
from bot.cli import completing
from bot.cli.output import (
    WHERE,
    Json,
    PolicyOption,
    VerdictPolicyOption,
    message,
    print_json,
    print_table,
)
from bot.cli.sources import open_context, read_manners, read_policy
from bot.context import NAME, Context, Delivery
from bot.subscribing import Wanted, begin
from bot.watching.follow import parse_follow
from porting.plan import Policy
from registry import records
from registry.models import Subscription
from registry.status import Status
from registry.status import shown as shown_base
from registry.status import status as status_of

PANEL = "Keep patches up to date"


class Form(StrEnum):
    ADAPTER = "adapter"
    MERGED = "merged"
    BOTH = "both"


class By(StrEnum):
    COMMIT = "commit"
    BRANCH = "branch"
    REQUEST = "request"


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL, no_args_is_help=True)(subscribe)
    app.command(rich_help_panel=PANEL, no_args_is_help=True)(unsubscribe)


def subscribe(
    patch: Annotated[
        str,
        typer.Argument(help=f"A recorded patch: {WHERE}.", autocompletion=completing.patches),
    ],
    follow: Annotated[
        str,
        typer.Option(
            help="What to follow: namespace/name (its main), name@branch, name@v* (tags by "
            "pattern), namespace/Model-v0.* (repos by pattern), or tree:name (its fine-tunes), "
            "tree:name@tag,tag (those with the Hub's tags)."
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            help="The repo that ports are pushed to: namespace/name. Default: yours, PATCH-on-BASE."
        ),
    ] = None,
    by: Annotated[
        By, typer.Option(help="How: a commit on main, a branch each, or a pull request.")
    ] = By.COMMIT,
    as_: Annotated[Form, typer.Option("--as", help="What is pushed.")] = Form.ADAPTER,
    policy: PolicyOption = None,
    verdict_policy: VerdictPolicyOption = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="REV",
            help="Also port to what came since this commit or tag. Default: only what comes.",
        ),
    ] = None,
    minimum_release_age: Annotated[
        str, typer.Option(help="Let a release ripen before it is ported: 24h, 3d.")
    ] = "0m",
    schedule: Annotated[
        str | None,
        typer.Option(help="A crontab line (UTC): work only in minutes that match: '* 22-23 * * *'"),
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Publish together with the others of this group.")
    ] = None,
    notify: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Tell of each port: a webhook of Slack or Discord, one that takes JSON "
            "(json:https://...), or discussion, one in the patch's repo. May be given again.",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Keep a patch alive on a base: from now on, each new revision gets a port.

    Example: portllm subscribe me/tickets-lora --follow HuggingFaceTB/SmolLM2-135M-Instruct
    --to me/tickets-lora-ported
    """
    context = open_context()
    shown = take_up(
        context,
        patch,
        follow,
        to,
        as_.value,
        policy,
        verdict_policy,
        from_,
        minimum_release_age,
        schedule,
        group,
        by.value,
        tuple(notify or ()),
    )
    if json_:
        print_json(shown.to_dict())
        return
    print_table(
        ("patch", "follows", "to", "as", "by", "policy"),
        [(shown.patch, shown.follows, shown.to, as_, by, policy or "")],
    )
    asks = ""
    if NAME not in shown.to and context.hub.exists(shown.to):
        asks = "" if context.hub.may_write(shown.to) else ", by pull requests: it is not yours"
    message(f"Its ports go to {context.hub.url(shown.to)}{asks}. Next: portllm bot run")


def take_up(
    context: Context,
    patch: str,
    follow: str,
    to: str | None = None,
    as_: str = "adapter",
    policy: Policy | None = None,
    verdict_policy: Path | None = None,
    from_: str | None = None,
    minimum_release_age: str = "0m",
    schedule: str | None = None,
    group: str | None = None,
    by: Delivery = "commit",
    notify: tuple[str, ...] = (),
) -> Status:
    """Subscribe, with what a user wrote."""
    wanted = Wanted(
        parse_repo(patch),
        parse_follow(follow),
        plain(to) if to else None,
        as_,
        policy,
        read_policy(verdict_policy).model_dump(mode="json") if verdict_policy else None,
        read_manners(minimum_release_age, schedule, group),
        from_,
        delivery=by,
        notify=notify,
    )
    with context.database.session() as session:
        return status_of(session, session.get_one(Subscription, begin(context, wanted)))


def unsubscribe(
    patch: Annotated[
        str,
        typer.Argument(help="The patch: namespace/name.", autocompletion=completing.patches),
    ],
    to: Annotated[str | None, typer.Option(help="Only the subscription to this repo.")] = None,
    json_: Json = False,
) -> None:
    """End a patch's subscriptions. What was published stays.

    Example: portllm unsubscribe me/tickets-lora
    """
    with open_context().database.session() as session:
        ended = records.unsubscribe(session, parse_repo(patch).repo, plain(to) if to else None)
        rows = [(s.patch.repo, shown_base(s.base), s.to_repo) for s in ended]
    if json_:
        print_json([{"patch": p, "followed": base, "to": target} for p, base, target in rows])
        return
    print_table(("patch", "followed", "to"), rows)
