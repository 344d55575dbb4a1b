"""`portllm bot`: the watch itself."""

from typing import Annotated

import typer

from bot.cli.sources import open_context

app = typer.Typer(help="Watch the followed bases, and port.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Watch the followed bases, and port."""


@app.command()
def run(
    once: Annotated[
        bool, typer.Option("--once", help="Look at every base once, do what follows, and end.")
    ] = False,
) -> None:
    """Watch until stopped. Killed at any point, it goes on where it was when it is run again.

    Example: portllm bot run --once
    """
    from bot.run import run_forever, run_once  # SciPy and DBOS: not for every command

    context = open_context()
    if once:
        run_once(context)
    else:
        run_forever(context)
