"""`portllm patch`: the patches that the registry knows, and how patches are made."""

from typing import Annotated

import typer
from sqlalchemy import select

from bot.address import parse_repo
from bot.cli import cards, completing, making
from bot.cli.output import WHERE, Json, message, print_fields, print_json, print_table
from bot.cli.sources import open_context
from bot.hub import Hub
from bot.register import register
from registry.models import Patch
from registry.records import find_patch

app = typer.Typer(name="patch", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="PATCH", help=f"{WHERE} on the Hub.")]
Known = Annotated[
    str,
    typer.Argument(metavar="PATCH", help=f"{WHERE} on the Hub.", autocompletion=completing.patches),
]


@app.callback()
def _group() -> None:
    """Record patches to be kept alive, and make patches."""


@app.command(no_args_is_help=True)
def add(
    patch: Name,
    base: Annotated[
        str | None,
        typer.Option(
            help="The base it was trained on, as namespace/name@revision: asked for where the "
            "patch's own config does not name a commit."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Record a patch at its present commit, with the base commit it was trained on.

    Example: portllm patch add me/tickets-lora --base HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f
    """
    context = open_context()
    record = register(context, parse_repo(patch), parse_repo(base) if base else None)
    found = facts(record, context.hub)
    if json_:
        print_json(found)
        return
    print_fields(found)
    message(
        f"Next: portllm subscribe {record.repo} --follow {record.base_repo} --to NAMESPACE/NAME"
    )


@app.command("list")
def list_(json_: Json = False) -> None:
    """List the recorded patches.

    Example: portllm patch list --json
    """
    context = open_context()
    with context.database.session() as session:
        rows = [
            facts(patch, context.hub) for patch in session.scalars(select(Patch).order_by(Patch.id))
        ]
    if json_:
        print_json(rows)
        return
    print_table(
        ("patch", "kind", "trained on", "evaluation"),
        [
            (row["patch"], row["kind"], row["trained_on"], row["evaluation"] or "none")
            for row in rows
        ],
    )
    if not rows:
        message("No patch is recorded yet. Next: portllm patch add NAMESPACE/NAME")


@app.command(no_args_is_help=True)
def show(patch: Known, json_: Json = False) -> None:
    """Show what is recorded of a patch.

    Example: portllm patch show me/tickets-lora
    """
    address, context = parse_repo(patch), open_context()
    with context.database.session() as session:
        record = find_patch(session, address.repo, address.revision)
        shown = facts(record, context.hub)
    if json_:
        print_json(shown | {"evaluation": record.evaluation})
        return
    print_fields(shown)


making.add_to(app)
cards.add_to(app)


def facts(patch: Patch, hub: Hub) -> dict[str, object]:
    return {
        "patch": f"{patch.repo}@{patch.sha}",
        "url": hub.url(patch.repo, patch.sha),
        "kind": patch.kind,
        "class": patch.portability,
        "trained_on": f"{patch.base_repo}@{patch.base_sha}",
        "license": patch.license,
        "evaluation": patch.evaluation["name"] if patch.evaluation else None,
        "added_at": patch.added_at.isoformat(timespec="seconds"),
    }
