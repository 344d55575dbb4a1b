"""`portllm validate-config` and `portllm config`: the `portllm.yaml` of a patch's repo."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bot.address import parse_repo
from bot.cli.output import Json, message, print_fields, print_json, print_table
from bot.cli.sources import open_context
from porting.errors import Refused, UsageError

app = typer.Typer(name="config", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    app.command(no_args_is_help=True)(validate_config)


@app.callback()
def _group() -> None:
    """The portllm.yaml of a patch's own repo: propose one, or see what one may say."""


def validate_config(
    file: Annotated[str, typer.Argument(metavar="FILE", help="portllm.yaml, or - for stdin.")],
    json_: Json = False,
) -> None:
    """Say everything that is wrong with a portllm.yaml, with its lines. Asks no Hub.

    Example: portllm validate-config portllm.yaml
    """
    from bot.config.schema import check

    if file != "-" and not Path(file).is_file():
        raise UsageError(f"{file} is no file.")
    name = "stdin" if file == "-" else file
    entries, faults = check(sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes())
    if json_:
        print_json({"valid": not faults, "faults": [fault.to_dict() for fault in faults]})
    elif faults:
        print_table(
            ("line", "field", "fault"),
            [(fault.line or "", fault.field, fault.said) for fault in faults],
        )
    if faults:
        raise Refused(f"{name} can't be obeyed. Faults: {len(faults)}. Mend them, and check again.")
    message(f"{name} is sound. Subscriptions: {len(entries)}.")


@app.command()
def schema() -> None:
    """Print the JSON Schema of portllm.yaml, for editors and other programs.

    Example: portllm config schema
    """
    from bot.config.schema import json_schema

    print_json(json_schema())


@app.command(no_args_is_help=True)
def propose(
    repo: Annotated[str, typer.Argument(metavar="PATCH", help="A patch: namespace/name.")],
    base: Annotated[
        str | None,
        typer.Option(help="The base it was trained on, as namespace/name@commit, if need be."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be proposed, and open nothing.")
    ] = False,
    json_: Json = False,
) -> None:
    """Open a pull request that adds a portllm.yaml and shows what would happen. Only ever one.

    Example: portllm config propose me/tickets-lora
    """
    from bot.config import onboarding

    context, name = open_context(), parse_repo(repo).repo
    given = parse_repo(base) if base else None
    if dry_run:
        proposal = onboarding.draft(context, name, given)
        if json_:
            print_json({"file": proposal.file, "description": proposal.description})
        else:
            print(proposal.description)
        return
    opened = onboarding.propose(context, name, given)
    found: dict[str, object] = {"patch": name, "url": opened.url, "status": opened.status}
    if json_:
        print_json(found)
    else:
        print_fields(found)
