"""`portllm inspect`, `plan` and `port`: what a patch is, what would be done, and doing it here."""

from collections import Counter
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bot.cli.forecasting import print_forecast
from bot.cli.output import WHERE, Json, PolicyOption, message, print_fields, print_json, print_table
from bot.cli.progress import progress
from bot.cli.sources import old_base, open_source
from bot.hub import Hub, HubRepo
from bot.making import sandbox
from bot.making.inputs import Inputs, Place, Wanted, needs_old_base
from bot.making.sandbox import Report
from judging.task import read_task
from porting import Adapter, LoraPair, Plan, read_adapter
from porting.errors import UsageError
from porting.patch.updates import Operator
from porting.plan import Policy

PANEL = "Look at a patch, port it by hand"
SHOWN = 20  # rows of a plan that a person is shown; --json has them all


class Form(StrEnum):
    MERGED = "merged"
    ADAPTER = "adapter"


Patch = Annotated[str, typer.Argument(help=f"The patch: a folder or {WHERE}.")]
Base = Annotated[str, typer.Argument(help=f"The base: a folder or {WHERE}.")]
As = Annotated[Form, typer.Option("--as", help="What is written.")]
Old = Annotated[
    str | None,
    typer.Option(
        "--old",
        metavar="BASE@REV",
        help="The base that the patch was trained on, where its values need it: a folder, or "
        "namespace/name@ a commit or tag. Default: what its config names, if that is pinned.",
    ),
]


def add_to(app: typer.Typer) -> None:
    for command in (inspect_, plan_, port):
        name = command.__name__.rstrip("_")
        app.command(name, rich_help_panel=PANEL, no_args_is_help=True)(command)


def inspect_(
    patch: Patch,
    base: Annotated[
        str | None, typer.Option(help="Also say what it would touch in this base.")
    ] = None,
    old: Old = None,
    json_: Json = False,
) -> None:
    """Say what a patch is, whether it can be ported, and what that needs.

    Example: portllm inspect me/tickets-lora --base HuggingFaceTB/SmolLM2-135M-Instruct
    """
    hub = Hub()
    source = open_source(patch, hub)
    found = read_adapter(source)
    facts = {"patch": source.name} | _facts(found)
    task = read_task(source, hub.data)
    facts["evaluation"] = task.name if task else None
    if base is not None:
        form: Wanted = "merged" if found.portability in "AB" else "adapter"
        new, before = open_source(base, hub), _old_base(hub, source, old, None)
        made = Inputs(new, source, before, form, None).plan
        facts["touches"] = [touch.tensor.name for touch in made.touched]
        facts["plan"] = made.summary
    if json_:
        print_json(facts)
        return
    shown = facts | {"touches": f"{len(facts['touches'])} tensors"} if base else facts
    print_fields({name: _shown(value) for name, value in shown.items()})


def _facts(found: Adapter) -> dict[str, Any]:
    ranked = [u for u in found.updates if isinstance(u, LoraPair | Operator) and u.rank]
    modules = {update.target.rpartition(".")[0] for update in found.updates}
    return {
        "kind": found.kind,
        "class": found.portability,
        "reason": found.reason,
        "updates": dict(Counter(type(update).__name__ for update in found.updates)),
        "ranks": sorted({update.rank for update in ranked}),
        "scales": sorted({update.scale for update in ranked}),
        "modules": len(modules),
        "targets": sorted({module.rpartition(".")[2] for module in modules}),
        "forms": ["adapter"] if found.portability == "D" else ["merged", "adapter"],
        "needs_old_base": found.old_base_field,
        "needs_policy": found.portability == "C",
        "base": found.base_repo,
        "base_revision": found.base_revision,
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def plan_(
    base: Base,
    patch: Patch,
    as_: As = Form.MERGED,
    old: Old = None,
    policy: PolicyOption = None,
    forecast: Annotated[
        bool,
        typer.Option(
            "--forecast",
            help="Also compare the weights: how far the base moved from the old one, and how much "
            "of that lies where the patch acts. Fetches the files with the touched tensors.",
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """The dry run: which tensors change, which files travel, what is left behind and why.

    Example: portllm plan HuggingFaceTB/SmolLM2-135M-Instruct@main me/tickets-lora
    """
    inputs = read_inputs(base, patch, as_.value, old, policy, compared=forecast)
    found = None
    if forecast:
        merged = replace(inputs, form="merged", policy=inputs.plan.policy)
        with progress() as report:
            found = sandbox.run(merged.forecast_order(report), report)
    if json_:
        print_json(inputs.plan.to_dict() | ({"forecast": found} if forecast else {}))
        return
    _print_plan(inputs.plan)
    if found:
        print_forecast(found)


def _print_plan(made: Plan) -> None:
    touched = made.to_dict()["touched"]
    rows = [
        (t["tensor"], "x".join(map(str, t["shape"])), t["dtype"], t["update"],
         "" if t["rank"] is None else t["rank"], "" if t["scale"] is None else f"{t['scale']:g}")
        for t in touched
    ]  # fmt: skip
    print_table(("tensor", "shape", "dtype", "update", "rank", "scale"), rows[:SHOWN])
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
    old: Old = None,
    policy: PolicyOption = None,
    hash_: Annotated[
        bool, typer.Option("--hash/--no-hash", help="The sha256 of every file of a merged model.")
    ] = True,
    json_: Json = False,
) -> None:
    """Port a patch to a base, into a folder. Nothing is evaluated and nothing is pushed.

    Example: portllm port HuggingFaceTB/SmolLM2-135M-Instruct me/tickets-lora --out ported
    """
    inputs = read_inputs(base, patch, as_.value, old, policy)
    check_out(inputs, out)
    message(inputs.plan.summary)
    with progress() as report:
        files = make(inputs, out.resolve(), hash_, report)
    if json_:
        print_json({"out": str(out.resolve()), "as": as_.value, "files": files})
        return
    print_table(("file", "sha256"), sorted(files.items()))
    message(f"Written to {out}. Next: look at it with `ls {out}`, or let the bot do this for every "
            "release: portllm subscribe --help")  # fmt: skip


def check_out(inputs: Inputs, out: Path) -> None:
    """Refuse, before anything is made, a folder that is there, or an adapter of no base's."""
    if out.exists():
        raise UsageError(f"{out} exists; name a new folder.")
    if inputs.form == "adapter" and not isinstance(inputs.new, HubRepo):
        raise UsageError(
            f"An adapter points at a base on the Hub, and {inputs.new.name} is a folder. "
            "Name the repo, or use --as merged."
        )


def make(inputs: Inputs, folder: Path, hashed: bool, report: Report) -> dict[str, str]:
    """Port into `folder`, which appears once it is whole: the sha256 of each file."""
    made = folder.with_name(f".{folder.name}.portllm")
    digests = sandbox.run(inputs.order(made, report, hashed), report)
    (made / inputs.form).rename(folder)
    made.rmdir()
    return {name.partition("/")[2]: digest for name, digest in digests.items()}


def read_inputs(
    base: str,
    patch: str,
    as_: Literal["merged", "adapter"],
    old: str | None,
    policy: Policy | None,
    compared: bool = False,
) -> Inputs:
    hub = Hub()
    new, source = open_source(base, hub), open_source(patch, hub)
    before = _old_base(hub, source, old, policy, compared)
    return Inputs(new, source, before, as_, policy)


def _old_base(
    hub: Hub, patch: Place, given: str | None, policy: str | None, compared: bool = False
) -> Place | None:
    """The base that the patch was trained on: the one given, else, if needed, its config's.

    Where it is only to be `compared` with the new one, its config need not name any revision.
    """
    found = read_adapter(patch)
    wanted = needs_old_base(found, policy) or (compared and found.base_revision is not None)
    return old_base(hub, patch, given) if given is not None or wanted else None
