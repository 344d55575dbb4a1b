"""`portllm doctor`: what is in the way, and what to do about it."""

from typing import Annotated

import typer

from bot.cli.output import Json, message, print_json, print_table
from bot.cli.sources import read_settings
from bot.hub import Hub
from porting.errors import HubError, Refused


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Keep patches up to date")(doctor)


def doctor(
    local: Annotated[bool, typer.Option("--local", help="Leave out what asks the Hub.")] = False,
    json_: Json = False,
) -> None:
    """Check token, Hub, clock, registry, disk and libraries; say what to fix. Changes nothing.

    Ends with 0, with 3 where something has to be fixed, and with 4 where the Hub does not answer.

    Example: portllm doctor --json
    """
    from bot.doctor import ENDPOINT, Level, diagnose

    found = diagnose(read_settings(), None if local else Hub())
    if json_:
        print_json([finding.to_dict() for finding in found])
    else:
        print_table(
            ("check", "state", "finding"),
            [(each.check, each.level, f"{each.says} {each.do}".rstrip()) for each in found],
        )
    failed = [finding.check for finding in found if finding.level is Level.ERROR]
    if ENDPOINT in failed:
        raise HubError("The Hub does not answer.")
    if failed:
        raise Refused(f"To be fixed: {', '.join(failed)}.")
    message("Nothing has to be fixed.")
