"""`portllm retry`, `cancel`, `pause`, `resume`, `rollback` and `withdraw`."""

from typing import Annotated

import typer

from bot.address import parse_repo
from bot.cli import completing
from bot.cli.output import Json, message, print_json, print_table
from bot.cli.sources import open_context
from bot.cli.status import PANEL, PortName
from bot.running import controls
from bot.trust import takeback
from porting.errors import UsageError
from registry.models import Subscription

WhatOption = Annotated[
    str | None,
    typer.Argument(
        metavar="[TARGET|PATCH]",
        help="The repo that ports go to, or a patch.",
        autocompletion=completing.targets_and_patches,
    ),
]


def add_to(app: typer.Typer) -> None:
    for command in (retry, cancel, pause, resume, rollback, withdraw):
        app.command(rich_help_panel=PANEL, no_args_is_help=True)(command)


def retry(
    what: Annotated[
        str,
        typer.Argument(
            metavar="PORT|BASE",
            help="A port, or a repo that could not be read.",
            autocompletion=completing.ports,
        ),
    ],
    json_: Json = False,
) -> None:
    """Begin a port again, from the start; or look again at a base's last release.

    Example: portllm retry port-0123456789abcdef
    """
    with open_context().database.session() as session:
        if "/" in what:
            name = controls.retry_release(session, parse_repo(what).repo).name
            said = {"release": name, "state": "classifying"}
        else:
            port = controls.retry(session, what)
            said = {"port": port.key, "state": str(port.state)}
    _tell(said, json_)
    message("A running bot begins at once; else: portllm bot run")


def cancel(port: PortName, json_: Json = False) -> None:
    """Stop a port, after the step that it is at. The next release gets one again.

    Example: portllm cancel port-0123456789abcdef
    """
    with open_context().database.session() as session:
        found = controls.cancel(session, port)
        said = {"port": found.key, "state": str(found.state)}
        reason = found.reason
    _tell(said, json_)
    message(reason)


def pause(
    what: WhatOption = None,
    all_: Annotated[bool, typer.Option("--all", help="Everything, at once.")] = False,
    reason: Annotated[
        str | None, typer.Option(help="With --all: why, for whoever wonders.")
    ] = None,
    json_: Json = False,
) -> None:
    """Begin and publish nothing for a while. What is being made is made and judged, and waits.

    Example: portllm pause --all --reason "The Hub is being moved"
    """
    _check_one(what, all_, "pause")
    if reason is not None and not all_:
        raise UsageError("--reason goes with --all.")
    with open_context().database.session() as session:
        if what is None:
            controls.pause_all(session, reason or "Somebody said so.")
            rows = ["everything"]
        else:
            rows = _targets(controls.pause(session, parse_repo(what).repo))
    _print_targets("paused", rows, json_)
    message(f"To go on: portllm resume {what or '--all'}")


def resume(
    what: WhatOption = None,
    all_: Annotated[bool, typer.Option("--all", help="End the pause of everything.")] = False,
    json_: Json = False,
) -> None:
    """Go on with what was paused.

    Example: portllm resume me/tickets-lora-ported
    """
    _check_one(what, all_, "resume")
    with open_context().database.session() as session:
        if what is None:
            controls.resume_all(session)
            rows = ["everything"]
        else:
            rows = _targets(controls.resume(session, parse_repo(what).repo))
    _print_targets("resumed", rows, json_)
    message("Next: portllm status")


def rollback(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="The repo that ports go to.",
            autocompletion=completing.targets,
        ),
    ],
    json_: Json = False,
) -> None:
    """Put the port before the present one back onto a repo's main, by one commit on top.

    Both stay under their tags; the next release is ported again.

    Example: portllm rollback me/tickets-lora-ported
    """
    context, repo = open_context(), parse_repo(target).repo
    left, restored = takeback.rollback(context, repo)
    _tell({"rolled back": left, "restored": restored, "url": context.hub.url(repo)}, json_)
    message(f"Next: portllm show {left}")


def withdraw(
    port: PortName,
    reason: Annotated[str, typer.Option(help="Why nobody should use it; shown on its card.")],
    json_: Json = False,
) -> None:
    """Say on a port's card that it is not to be used. Its files and tag stay.

    Example: portllm withdraw port-0123456789abcdef --reason "It leaks the prompt"
    """
    context = open_context()
    key = takeback.withdraw(context, port, reason)
    _tell({"port": key, "state": "withdrawn"}, json_)
    message(f"Next: portllm show {key}")


def _check_one(what: str | None, all_: bool, command: str) -> None:
    if (what is None) != all_:
        raise UsageError(f"Name a target or a patch, or everything: portllm {command} --all")


def _targets(found: list[Subscription]) -> list[str]:
    return [subscription.to_repo for subscription in found]


def _tell(said: dict[str, str], json_: bool) -> None:
    if json_:
        print_json(said)
    else:
        print_table(tuple(said), [tuple(said.values())])


def _print_targets(heading: str, rows: list[str], json_: bool) -> None:
    if json_:
        print_json({heading: rows})
    else:
        print_table((heading,), [(row,) for row in rows])
