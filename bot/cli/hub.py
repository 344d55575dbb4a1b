"""`portllm hub`: a Hub on your disk, to try things out and to test against."""

from pathlib import Path
from typing import Annotated

import typer

from bot.cli.output import message

app = typer.Typer(name="hub", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """A Hub on your own disk."""


@app.command(no_args_is_help=True)
def serve(
    dir: Annotated[Path, typer.Option(help="Where its repos are kept; made if missing.")],
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
) -> None:
    """Serve a Hub on 127.0.0.1 until stopped; hf, transformers and peft talk to it.

    Example: portllm hub serve --dir ~/hub --port 8080
    """
    from localhub.server import first_token  # slow to import, and only needed here
    from localhub.server import serve as serve_hub

    user, token = first_token(dir)

    def ready(endpoint: str) -> None:
        print(f"export HF_ENDPOINT={endpoint} HF_TOKEN={token}", flush=True)
        message(f"The Hub of {user} is at {endpoint} (Ctrl-C ends it). In another shell, run the "
                "line above; then, for example: hf upload "
                f"{user}/my-model FOLDER")  # fmt: skip

    serve_hub(dir, "127.0.0.1", port, ready)
