"""`portllm`: one command. Data goes to stdout, messages to stderr.

Exit codes: 0 done, 1 our bug, 2 wrong usage, 3 refused (said why), 4 Hub or network.
"""

import sys

import typer

from bot import logs
from bot.cli import (
    controls,
    demo,
    deploy,
    doctor,
    hub,
    judging,
    patches,
    ports,
    publishing,
    running,
    serving,
    status,
    subscriptions,
    verify,
)
from bot.cli.output import message
from bot.machine import trouble
from porting.errors import PortllmError

app = typer.Typer(
    name="portllm",
    help="Keep every fine-tune alive when its base model moves.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ports.add_to(app)
judging.add_to(app)
verify.add_to(app)
publishing.add_to(app)
app.add_typer(patches.app, name="patch", rich_help_panel="Keep patches up to date")
subscriptions.add_to(app)
status.add_to(app)
controls.add_to(app)
app.add_typer(running.app, name="bot", rich_help_panel="Keep patches up to date")
running.add_to(app)
serving.add_to(app)
doctor.add_to(app)
app.add_typer(deploy.app, name="deploy", rich_help_panel="Keep patches up to date")
app.add_typer(hub.app, name="hub", rich_help_panel="Try it out")
demo.add_to(app)


def main() -> None:
    logs.set_up()
    try:
        app()
    except PortllmError as error:
        message(logs.redact(f"portllm: {error}"))
        sys.exit(error.exit_code)
    except Exception as error:
        if (said := trouble(error)) is None:
            raise
        message(logs.redact(f"portllm: {said} portllm doctor says what to mend."))
        sys.exit(PortllmError.exit_code)
