"""`portllm patch extract` and `stack`: patches made of a tuned model, or of other patches."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bot.cli.output import WHERE, Json, message, print_json, print_table
from bot.cli.progress import progress
from bot.cli.sources import open_source
from bot.hub import Hub, HubRepo
from bot.making import sandbox
from bot.making.files import base_files, patch_files
from bot.making.inputs import Place
from porting import FileEntry
from porting.errors import UsageError

RANK = 64
Out = Annotated[Path, typer.Option(help="A folder that does not exist yet.")]


def add_to(app: typer.Typer) -> None:
    for command in (extract, stack):
        app.command(no_args_is_help=True)(command)


def extract(
    tuned: Annotated[str, typer.Argument(help=f"A folder or {WHERE}.")],
    base: Annotated[str, typer.Argument(help="What it was tuned from, given likewise.")],
    out: Out,
    rank: Annotated[
        int | None, typer.Option(min=1, help=f"Make a LoRA of this rank (default: {RANK}).")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Make a LoRA whose ranks are the smallest that hold this share of each layer's "
            "squared change.",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Make no LoRA, but keep the change of every weight.")
    ] = False,
    json_: Json = False,
) -> None:
    """Make a patch of a tuned model: what it differs in from its base.

    Example: portllm patch extract me/tickets-model org/base-model@v1 --out tickets-lora --rank 32
    """
    how, value = _how(rank, energy, full)
    folder, hub = _new(out), Hub()
    after, before = open_source(tuned, hub), open_source(base, hub)
    _check_same(after, before)
    order = {
        "do": "extract",
        "as": how,
        "value": value,
        "tuned": _here(after, base_files(after)),
        "base": _here(before, base_files(before)),
        "address": _address(before),
        "out": str(folder),
    }
    with progress() as report:
        made = sandbox.run(order, report)
    if json_:
        print_json({"out": str(folder)} | made)
        return
    if full:
        _print_full(made)
    else:
        _print_lora(made)
    if made["config"]:
        message(f"config.json differs too, and no patch holds that: {', '.join(made['config'])}.")
    message(f"Written to {out}. Next: portllm inspect {out}")


def stack(
    patches: Annotated[
        list[str],
        typer.Argument(
            metavar="PATCH[=WEIGHT]",
            help=f"LoRAs of one base: folders or {WHERE}; a weight is 1 if left "
            "out, and may be negative.",
        ),
    ],
    out: Out,
    json_: Json = False,
) -> None:
    """Make one LoRA of several: the weighted sum of their updates, its rank the sum of theirs.

    Example: portllm patch stack me/tickets-lora me/tone-lora=0.5 --out stacked
    """
    folder, hub = _new(out), Hub()
    weighted = [_weighted(patch) for patch in patches]
    sources = [open_source(name, hub) for name, _ in weighted]
    order = {
        "do": "stack",
        "patches": [_here(source, patch_files(source)) for source in sources],
        "weights": [weight for _, weight in weighted],
        "out": str(folder),
    }
    made = sandbox.run(order)
    if json_:
        print_json({"out": str(folder)} | made)
        return
    print_table(("module", "rank"), [(row["module"], row["rank"]) for row in made["modules"]])
    message(f"Written to {out}. Next: portllm inspect {out}")


def _how(rank: int | None, energy: float | None, full: bool) -> tuple[str, float | None]:
    if (rank is not None) + (energy is not None) + full > 1:
        raise UsageError("--rank, --energy and --full are three ways: give one of them.")
    if energy == 0:
        raise UsageError("--energy 0 holds nothing: give a share above 0, up to 1.")
    if full:
        return "full", None
    return ("energy", energy) if energy is not None else ("rank", rank or RANK)


def _new(out: Path) -> Path:
    if out.exists():
        raise UsageError(f"{out} exists; name a new folder.")
    return out.resolve()


def _check_same(tuned: Place, base: Place) -> None:
    """Before anything is fetched."""
    from porting.weights.compare import check_same  # torch: seconds to import

    check_same(tuned, base)


def _here(place: Place, files: Mapping[str, FileEntry]) -> str:
    if not isinstance(place, HubRepo):
        return str(place.path.resolve())
    message(f"Fetching {place.name}: {len(files)} files")
    return str(place.fetch(files))


def _address(base: Place) -> dict[str, str | None]:
    repo, sha = (base.repo, base.sha) if isinstance(base, HubRepo) else (None, None)
    return {"base_model_name_or_path": repo, "revision": sha}


def _weighted(text: str) -> tuple[str, float]:
    """`PATCH=WEIGHT`; a folder whose own name has an = in it is a patch of weight 1."""
    name, equals, weight = text.rpartition("=")
    if not equals or Path(text).expanduser().is_dir():
        return text, 1.0
    try:
        value = float(weight)
    except ValueError as error:
        raise UsageError(f"{text!r}: {weight!r} is no number; write PATCH=WEIGHT.") from error
    if not math.isfinite(value) or value == 0:
        raise UsageError(f"{text!r}: the weight must be finite, and not 0.")
    return name, value


def _print_full(made: dict[str, Any]) -> None:
    rows = [(row["name"], row["elements"], row["inexact"]) for row in made["tensors"]]
    print_table(("tensor", "elements", "inexact"), rows)
    if inexact := sum(row["inexact"] for row in made["tensors"]):
        message(
            f"{inexact:,} of {sum(row['elements'] for row in made['tensors']):,} elements will not "
            "come back to the bit: F32 can't hold their difference."
        )


def _print_lora(made: dict[str, Any]) -> None:
    rows = [(row["module"], row["rank"], f"{row['energy']:.6f}") for row in made["modules"]]
    print_table(("module", "rank", "energy"), rows)
    message(f"{made['energy']:.2%} of the squared change of these layers is in the patch.")
    if made["whole"]:
        message(
            f"Kept whole, as no LoRA holds them: {len(made['whole'])} parameters, such as "
            f"{made['whole'][0]}. On another base, this one will be needed to compare them with."
        )
