"""`portllm patch card`: the generated part of a patch's own README.md."""

from pathlib import Path
from typing import Annotated

import typer

from bot.address import parse_repo
from bot.cli import completing
from bot.cli.output import WHERE, Json, message, print_json
from bot.cli.sources import open_context

TITLE = "Say in the card what PortLLM does with this patch"


def add_to(app: typer.Typer) -> None:
    app.command(no_args_is_help=True)(card)


def card(
    patch: Annotated[
        str,
        typer.Argument(
            metavar="PATCH", help=f"{WHERE} on the Hub.", autocompletion=completing.patches
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write README.md and the chart to this folder instead.")
    ] = None,
    push: Annotated[
        bool, typer.Option("--push", help="Commit them to the repo of the patch.")
    ] = False,
    json_: Json = False,
) -> None:
    """Print the card of a recorded patch: tags, base, how to subscribe, and its ports so far.

    Your own words and metadata stay; what stands between the markers is replaced.

    Example: portllm patch card me/tickets-lora --push
    """
    from bot.publishing.describe import CARD
    from bot.publishing.patch_page import describe_patch

    context, repo = open_context(), parse_repo(patch).repo
    target = context.publisher.state(repo)
    files = describe_patch(context, repo, target)
    context.hub.check_card(repo, files[CARD])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
            message(f"Written: {out / name}")
    if push:
        published = context.publisher.commit(repo, files, [], TITLE, "", target.sha)
        if json_:
            print_json({"url": published.url})
        else:
            print(published.url)
    elif json_:
        print_json({"card": files[CARD].decode(errors="replace")})
    elif out is None:
        print(files[CARD].decode(errors="replace"), end="")
