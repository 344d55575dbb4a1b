"""`portllm verify`: is a port what its lock says, to the byte?"""

from pathlib import Path
from typing import Annotated

import typer

from bot.address import parse_repo
from bot.cli.output import WHERE, Json, message, print_json, print_table
from bot.cli.progress import progress
from bot.context import ENGINE
from bot.hub import Hub, HubRepo
from bot.trust.verify import Signed
from bot.trust.verify import verify as verify_port
from patch_cards import lock


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Look at a patch, port it by hand", no_args_is_help=True)(verify)


def verify(
    port: Annotated[str, typer.Argument(help=f"A published port: {WHERE}.")],
    public_key: Annotated[
        Path | None,
        typer.Option(help="The PEM file of the public key that it has to be signed with."),
    ] = None,
    json_: Json = False,
) -> None:
    """Make a published port again from what its lock names, and compare it to the byte.

    Its verdict, the numbers of its card and its signature, if it has one, are checked as well.

    Example: portllm verify me/tickets-lora-ported@base-12fd25f
    """
    address, hub = parse_repo(port), Hub()
    repo = HubRepo(hub, address.repo, hub.head(address.repo, address.revision or "main"))
    locked = lock.read(repo)
    if locked.engine != ENGINE:
        message(f"It was made by {locked.engine}, and this is {ENGINE}: trying all the same.")
    with progress() as report:
        found = verify_port(repo, locked, report, public_key)
    if json_:
        print_json(found.to_dict())
    else:
        for role, name in found.inputs.items():
            message(f"{role}: {name}")
        print_table(
            ("file", "locked", "made again", "on the Hub"),
            [
                (file.name, file.locked or "missing", _compared(file.locked, file.made),
                 _compared(file.locked, file.held))
                for file in found.files
            ],
        )  # fmt: skip
    for notice in found.notices:
        message(f"Its card says: {notice}")
    found.check()
    if not json_:
        message(f"{found.port} is what its lock says: {len(found.files)} files, to the byte.")
        message("Its verdict and its card are those of its lock.")
        message(_said(found.signature))


def _said(signature: Signed | None) -> str:
    if signature is None:
        return "It is not signed."
    if signature.is_checked:
        return f"It is signed with this key ({signature.key})."
    return (
        f"It says that it is signed with the key {signature.key}, which was not checked: that "
        "takes the key's owner's public key, as --public-key FILE."
    )


def _compared(locked: str | None, other: str | None) -> str:
    if other is None:
        return "missing"
    return "equal" if other == locked else other
