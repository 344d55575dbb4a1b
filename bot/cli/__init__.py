"""`portllm`: one command. Data goes to stdout, messages to stderr.

Exit codes: 0 done, 1 our bug, 2 wrong usage, 3 refused (said why), 4 Hub or network.
"""

import logging
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from bot import logs
from bot.cli.lazy import QUIET, Commands
from bot.cli.output import complaint, console
from bot.running.machine import trouble
from porting.errors import PortllmError

app = typer.Typer(
    name="portllm",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(asked: bool) -> None:
    if asked:
        print(version("portllm"))
        raise typer.Exit


@app.callback()
def _options(
    quiet: Annotated[
        bool, typer.Option(*QUIET, help="Only data and errors; it may stand anywhere.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Print it, and end."),
    ] = False,
) -> None:
    """Keep every fine-tune alive when its base model moves."""
    console.quiet = quiet
    if quiet:
        logging.getLogger("portllm").setLevel(logging.WARNING)


def main() -> None:
    logs.set_up()
    try:
        app()
    except PortllmError as error:
        complaint(logs.redact(f"portllm: {error}"))
        sys.exit(error.exit_code)
    except Exception as error:
        if (said := trouble(error)) is None:
            raise
        complaint(logs.redact(f"portllm: {said} portllm doctor says what to mend."))
        sys.exit(PortllmError.exit_code)
