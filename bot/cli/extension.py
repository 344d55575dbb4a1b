"""`portllm hf-extension`: `hf portllm ...`."""

import typer

from bot.cli.output import Json, message, print_fields, print_json


def add_to(app: typer.Typer) -> None:
    app.command("hf-extension", rich_help_panel="Try it out")(hf_extension)


def hf_extension(json_: Json = False) -> None:
    """Let `hf portllm ...` run this portllm: enter it among the extensions of `hf`.

    Example: portllm hf-extension
    """
    from bot.hub import extension  # the client of the Hub, and its commands

    facts: dict[str, object] = {"command": "hf portllm", "folder": str(extension.install())}
    if json_:
        print_json(facts)
        return
    print_fields(facts)
    message("Next: hf portllm status. To take it away: hf extensions remove portllm")
