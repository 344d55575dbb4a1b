"""`portllm showcase`: the registry on the Hub, for everybody to read."""

from pathlib import Path
from typing import Annotated

import typer

from bot.cli.output import Json, message, print_json, print_table
from bot.cli.sources import open_context
from porting.errors import UsageError


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Keep patches up to date")(showcase)


def showcase(
    to: Annotated[
        str | None,
        typer.Option(help="The user or organisation to show it. Default: PORTLLM_SHOWCASE."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Push nothing: write it to this folder, which is new or empty."),
    ] = None,
    json_: Json = False,
) -> None:
    """Show the registry on the Hub: a data set, a static Space and a Collection per base.

    Only public records. A bot with PORTLLM_SHOWCASE does it by itself.

    Example: portllm showcase --to my-org --out preview
    """
    from bot.hub.limiter import Limiter, install
    from bot.showcase.show import show, write

    context = open_context()
    namespace = to or context.settings.showcase
    if namespace is None:
        raise UsageError("Say who is to show it: --to NAMESPACE, or set PORTLLM_SHOWCASE.")
    install(Limiter(), context.hub.endpoint)
    if out is None:
        done = show(context, namespace)
        if json_:
            print_json([each._asdict() for each in done])
        else:
            print_table(("what", "name", "changes", "url"), done)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is to be a new or an empty folder.")
    write(context, out, namespace)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    if json_:
        print_json([{"file": path, "bytes": path.stat().st_size} for path in files])
    else:
        print_table(("file", "bytes"), [(path, path.stat().st_size) for path in files])
    message("Nothing was pushed.")
