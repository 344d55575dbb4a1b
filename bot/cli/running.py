"""`portllm bot` and `portllm worker`: the processes that do the work."""

from typing import Annotated

import typer

from bot.cli.output import message, print_table
from bot.cli.sources import open_context
from bot.publishing.dry_run import pushed, rehearsal
from porting.errors import UsageError

app = typer.Typer(name="bot", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Keep patches up to date")(worker)


@app.callback()
def _group() -> None:
    """Watch the followed bases, and port."""


@app.command()
def run(
    once: Annotated[
        bool, typer.Option("--once", help="Look at every base once, do what follows, and end.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="With --once: push nothing and remember nothing; what would be pushed is "
            "written to a folder.",
        ),
    ] = False,
) -> None:
    """Watch until stopped. Killed at any point, it goes on where it was when it is run again.

    Of several that share a Postgres database, one watches and all work.

    Example: portllm bot run --once
    """
    from bot.running.run import run_forever, run_once  # SciPy and DBOS: not for every command

    context = open_context()
    if dry_run and not once:
        raise UsageError("--dry-run goes with --once: a bot that watches for good remembers.")
    if dry_run:
        with rehearsal(context) as pretended:
            run_once(pretended)
        print_table(("repo", "to", "title", "folder"), pushed(context.settings))
        message("Nothing was pushed, and nothing is remembered. Why nothing more: portllm status")
    elif once:
        run_once(context)
    else:
        run_forever(context)


def worker() -> None:
    """Work until stopped, beside a bot that watches; any number of them, on any machines.

    They share the Postgres database that PORTLLM_DATABASE_URL names.

    Example: portllm worker
    """
    from bot.running.run import work  # SciPy and DBOS: not for every command

    work(open_context())
