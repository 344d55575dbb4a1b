"""`portllm inspect`, `plan` and `port`: what a patch is, what would be done, and doing it here."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bot import sandbox
from bot.cli.output import Json, console, message, print_fields, print_json, print_table
from bot.cli.sources import open_source
from bot.evaluation import read_evaluation
from bot.files import base_files, patch_files
from bot.hub import Hub, HubRepo
from porting import Folder, Plan, Source, plan, read_adapter
from porting.errors import Refused, UsageError

PANEL = "Look at a patch, port it by hand"
SHOWN = 20  # rows of a plan that a person is shown; --json has them all


class Form(StrEnum):
    MERGED = "merged"
    ADAPTER = "adapter"


Patch = Annotated[str, typer.Argument(help="The patch: a folder or namespace/name[@revision].")]
Base = Annotated[str, typer.Argument(help="The base: a folder or namespace/name[@revision].")]
As = Annotated[Form, typer.Option("--as", help="What is written.")]


def add_to(app: typer.Typer) -> None:
    for command in (inspect_, plan_, port):
        name = command.__name__.rstrip("_")
        app.command(name, rich_help_panel=PANEL, no_args_is_help=True)(command)


def inspect_(
    patch: Patch,
    base: Annotated[
        str | None, typer.Option(help="Also say what it would touch in this base.")
    ] = None,
    json_: Json = False,
) -> None:
    """Say what a patch is and whether it can be ported.

    Example: portllm inspect me/tickets-lora --base HuggingFaceTB/SmolLM2-135M-Instruct
    """
    hub = Hub()
    source = open_source(patch, hub)
    found = read_adapter(source)
    evaluation = read_evaluation(source)
    facts: dict[str, Any] = {
        "patch": source.name,
        "kind": found.kind,
        "class": f"{found.portability}: additive, it can be ported",
        "ranks": sorted({pair.rank for pair in found.pairs}),
        "scales": sorted({pair.scale for pair in found.pairs}),
        "modules": len(found.pairs),
        "targets": sorted({pair.module.rsplit(".", 1)[-1] for pair in found.pairs}),
        "base": found.base_repo,
        "base_revision": found.base_revision,
        "evaluation": evaluation.spec.name if evaluation else None,
    }
    if base is not None:
        made = plan(open_source(base, hub), source, as_="merged")
        facts["touches"] = [touch.tensor.name for touch in made.touched]
        facts["plan"] = made.summary
    if json_:
        print_json(facts)
        return
    shown = facts | {"touches": f"{len(facts['touches'])} tensors"} if base else facts
    print_fields({name: _shown(value) for name, value in shown.items()})


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "not recorded" if value is None else str(value)


def plan_(base: Base, patch: Patch, as_: As = Form.MERGED, json_: Json = False) -> None:
    """The dry run: which tensors change, which files travel, what is left behind and why.

    Example: portllm plan HuggingFaceTB/SmolLM2-135M-Instruct@main me/tickets-lora
    """
    hub = Hub()
    made = plan(open_source(base, hub), open_source(patch, hub), as_=as_.value)
    if json_:
        print_json(made.to_dict())
        return
    _print_plan(made)


def _print_plan(made: Plan) -> None:
    rows = [
        (t.tensor.name, "x".join(map(str, t.tensor.shape)), t.tensor.dtype, t.pair.rank,
         f"{t.pair.scale:g}")
        for t in made.touched
    ]  # fmt: skip
    print_table(("tensor", "shape", "dtype", "rank", "scale"), rows[:SHOWN])
    if len(rows) > SHOWN:
        message(f"... and {len(rows) - SHOWN} more tensors (--json lists them all)")
    for file in made.copied_files:
        print(f"copied   {file}")
    for file, reason in made.skipped_files:
        print(f"skipped  {file}: {reason}")
    print(made.summary)


def port(
    base: Base,
    patch: Patch,
    out: Annotated[Path, typer.Option(help="A folder that does not exist yet.")],
    as_: As = Form.ADAPTER,
    json_: Json = False,
) -> None:
    """Port a patch to a base, into a folder. Nothing is evaluated and nothing is pushed.

    Example: portllm port HuggingFaceTB/SmolLM2-135M-Instruct me/tickets-lora --out ported
    """
    if out.exists():
        raise UsageError(f"{out} exists; name a new folder.")
    hub = Hub()
    base_source, patch_source = open_source(base, hub), open_source(patch, hub)
    message(plan(base_source, patch_source, as_=as_.value).summary)
    order: dict[str, Any] = {"do": "port", "form": as_.value}
    if as_ is Form.ADAPTER:
        if not isinstance(base_source, HubRepo):
            raise UsageError(
                f"An adapter points at a base on the Hub, and {base} is a folder. "
                "Name the repo, or use --as merged."
            )
        order |= {"base_repo": base_source.repo, "base_sha": base_source.sha}
    else:
        order["base"] = str(_local(base_source, base_files(base_source)))
    order["patch"] = str(_local(patch_source, patch_files(patch_source)))
    folder = out.resolve()
    order["out"] = str(folder.with_name(f".{folder.name}.portllm"))
    with console.status("porting") as status:
        digests = sandbox.run(order, lambda what, done, of: status.update(f"{what} {done}/{of}"))
    made = Path(order["out"])
    (made / as_.value).rename(folder)
    made.rmdir()
    files = {name.partition("/")[2]: digest for name, digest in digests.items()}
    if json_:
        print_json({"out": str(folder), "as": as_.value, "files": files})
        return
    print_table(("file", "sha256"), sorted(files.items()))
    message(f"Written to {out}. Next: look at it with `ls {out}`, or let the bot do this for every "
            "release: portllm subscribe --help")  # fmt: skip


def _local(source: Source, files: dict[str, Any]) -> Path:
    if isinstance(source, Folder):
        return source.path.resolve()
    if isinstance(source, HubRepo):
        message(f"Fetching {source.name}: {len(files)} files")
        return source.hub.snapshot(source.repo, source.sha, files)
    raise Refused(f"{source.name} is neither a folder nor a repo.")
