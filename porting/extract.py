"""A LoRA out of a tuned model and its base: truncated singular value decompositions."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from porting.base.layout import TensorInfo
from porting.errors import Refused
from porting.patch.adapter import CONFIG, WEIGHTS
from porting.places import WAY_OUT, Place, Places
from porting.source import Folder, read_json
from porting.weights.compare import Compared, Progress, raw
from porting.weights.deltas import DTYPES
from porting.weights.staging import staged
from porting.weights.writing import PREFIX, data, lora_config, tensor_file

Rank = Callable[[torch.Tensor], int]  # of the shares of the energy that 1, 2, ... values hold


def of_rank(rank: int) -> Rank:
    """`rank` for every module, or all that a smaller matrix has."""
    return lambda shares: min(rank, len(shares))


def of_energy(energy: float) -> Rank:
    """The smallest rank that holds `energy`, in (0, 1], of the squared Frobenius norm."""
    return lambda shares: int(torch.searchsorted(shares, energy)) + 1


def extract_lora(
    tuned: Path, base: Path, out: Path, rank: Rank, address: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Write a LoRA to `out` that stock PEFT loads: the changes of the linear layers, cut to a rank.

    The truncated SVD is the nearest matrix of its rank (Eckart and Young, 1936). It is LAPACK's,
    in float64, one layer after the other: some 5 s for a square layer of 2048 on one core, eight
    times that for each doubling. Both A `(rank, in)` and B `(out, rank)` get the roots of the
    singular values and are F32; the scale is 1.

    Changed biases are kept as `bias`, and any other layer that changed as `modules_to_save`, whole;
    a head that is tied to the embedding beside it. On another base, those values become
    differences to the old one.

    Args:
        rank: `of_rank` or `of_energy`.
        address: the base's `base_model_name_or_path` and `revision`, or None for both.

    Returns:
        `modules`: `module`, `rank` and `energy` of each; `energy`: of all of them together;
        `whole`: the parameters that are kept as they are; `config`: fields that a patch can't
        change; `files`: sha256 by name.

    Raises:
        Refused: the models do not have the same tensors, or the same values; one is not finite;
            a change that no adapter holds, or none of a linear layer.
    """
    both = Compared(Folder(tuned), Folder(base))
    changed = both.changed(progress)
    places = Places(both.after, read_json(both.base, "config.json"), both.base.name)
    found = _sort(changed, places)
    modules: list[dict[str, Any]] = []
    held, total, done = 0.0, 0.0, 0
    with staged(out) as stage:
        with tensor_file(stage / WEIGHTS, _largest(found, both)) as add:
            for name, place in found.pairs.items():
                pair = _cut(both.difference(name), place, rank)
                add(_half(place, "A"), "F32", pair.a.shape, [data(pair.a)])
                add(_half(place, "B"), "F32", pair.b.shape, [data(pair.b)])
                modules.append({"module": place.module, "rank": len(pair.a), "energy": pair.share})
                held, total = held + pair.share * pair.energy, total + pair.energy
                done += both.size([name])
                progress("decomposing, bytes", done, both.size(found.pairs))
            for parameter, tensor in found.whole.items():
                for value, _ in both.blocks(tensor.name):
                    both.check_finite(tensor.name, value)
                add(PREFIX + parameter, tensor.dtype, tensor.shape, raw(both.tuned, tensor))
        config = lora_config(
            {module["module"]: module["rank"] for module in modules},
            task_type=places.task_type,
            fan_in_fan_out=any(place.kind == "conv1d" for place in found.pairs.values()),
            bias="all" if found.biases else "none",
            modules_to_save=found.saved or None,
            **address,
        )
        (stage / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        told = {"modules": modules, "energy": held / total if total else 1.0}
        return told | {"whole": list(found.whole)} | both.finish(stage)


@dataclass(frozen=True)
class _Found:
    """What changed: weights of linear layers by the names of their tensors, and what is kept whole.

    `whole` is by parameter, as PEFT names it in a file; `saved` are the modules of some of them.
    """

    pairs: dict[str, Place]
    whole: dict[str, TensorInfo]
    saved: list[str]
    biases: bool


def _sort(changed: list[str], places: Places) -> _Found:
    found = {name: places.of(name) for name in changed}
    pairs = {name: place for name, place in found.items() if place.kind in ("linear", "conv1d")}
    if not pairs:
        raise Refused(f"No weight of a linear layer changed, so there is no LoRA; {WAY_OUT}")
    whole: dict[str, TensorInfo] = {}
    for place in found.values():
        if place.kind == "whole":
            whole |= places.whole(place.module)
    # PEFT takes `norm` for every path that ends so, and wants to find all of them in the file.
    saved = places.ending({parameter.rpartition(".")[0] for parameter in whole})
    for module in saved:
        whole |= places.whole(module)
    adapted = {place.module for place in pairs.values()}
    if both := sorted(adapted & set(saved)):
        raise Refused(
            f"{both[0]!r} changed, and PEFT's modules_to_save would take it for another module of "
            f"that name; {WAY_OUT}"
        )
    biases = {
        f"{place.module}.base_layer.bias"
        if place.module in adapted
        else f"{place.module}.bias": places.tensor(f"{place.module}.bias")
        for place in found.values()
        if place.kind == "bias" and place.module not in saved
    }
    whole |= biases
    # Behind the pairs, the widest first: every tensor begins at a multiple of its own width.
    whole = dict(sorted(whole.items(), key=lambda item: -DTYPES[item[1].dtype].itemsize))
    return _Found(pairs, whole, saved, bool(biases))


def _half(place: Place, half: str) -> str:
    return f"{PREFIX}{place.module}.lora_{half}.weight"


def _largest(found: _Found, both: Compared) -> dict[str, tuple[int, ...]]:
    halves = {
        _half(place, half): both.after.tensors[name].shape
        for name, place in found.pairs.items()
        for half in "AB"
    }
    return halves | {PREFIX + name: tensor.shape for name, tensor in found.whole.items()}


@dataclass(frozen=True)
class _Pair:
    """A `(rank, in)` and B `(out, rank)`; BA has `share` of `energy`, the change's squared norm."""

    a: torch.Tensor
    b: torch.Tensor
    share: float
    energy: float


def _cut(delta: torch.Tensor, place: Place, rank: Rank) -> _Pair:
    left, values, right = torch.linalg.svd(
        delta.T if place.kind == "conv1d" else delta, full_matrices=False
    )
    energies = values.square().cumsum(0)
    shares = (energies / energies[-1]).nan_to_num(1.0)  # where only the sign of a zero changed
    kept = rank(shares)
    roots = values[:kept].sqrt()
    return _Pair(
        a=roots[:, None] * right[:kept],
        b=left[:, :kept] * roots,
        share=float(shares[kept - 1]),
        energy=float(energies[-1]),
    )
