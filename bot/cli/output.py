"""How commands speak: data on stdout (a table, or JSON with --json), messages on stderr."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from porting.plan import Policy

console = Console(stderr=True, highlight=False, soft_wrap=True)
_data = Console(highlight=False)

WHERE = r"namespace/name\[@revision]"  # in a help text; for Rich, [@ would begin a tag
PolicyOption = Annotated[
    Policy | None,
    typer.Option(
        "--policy",
        help="What a patch that is not additive (class C) means in a merged model: its operator on "
        "the new base, or the change that it made to the old base.",
    ),
]
VerdictPolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--verdict-policy",
        help="A JSON file with what a port has to prove; `portllm rejudge --defaults` prints ours.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the data as JSON.")]


def message(text: str) -> None:
    """For people; --quiet leaves it out."""
    console.print(text, markup=False)


def complaint(text: str) -> None:
    """An error: not even --quiet leaves it out."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    if not _data.is_terminal:
        for row in (headings, *rows):
            print("\t".join(str(cell) for cell in row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    _data.print(table)


def print_fields(fields: dict[str, object]) -> None:
    """One `name  value` line each."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        print(f"{name:<{width}}  {'none' if value is None else value}")
