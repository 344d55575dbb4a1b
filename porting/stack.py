"""Several LoRAs of one base as one: their ranks side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from porting.errors import Refused
from porting.patch.adapter import CONFIG, WEIGHTS, Adapter, read_adapter
from porting.patch.updates import Addend, LoraPair
from porting.source import Folder, sha256
from porting.weights.deltas import check_finite, load
from porting.weights.staging import staged
from porting.weights.writing import PREFIX, lora_config

HALVES = ("lora_A.weight", "lora_B.weight")
EMBEDDING_HALVES = ("lora_embedding_A", "lora_embedding_B")
MERGE = "merge the patches into the base one after the other (portllm port --as merged)"


def stack(patches: Sequence[Path], weights: Sequence[float], out: Path) -> dict[str, Any]:
    """Write one LoRA to `out` whose update is the sum of `weight * update` of all `patches`.

    As PEFT's `add_weighted_adapter(combination_type="cat")`: of every module, the rows of all A lie
    above each other, and the columns of all B beside each other. The scale is 1; weight and scale
    are multiplied into B in float64, which is then rounded to F32. The biases of `lora_bias`, which
    PEFT leaves out, are summed likewise. All that is written is held in memory.

    Args:
        patches: folders of LoRA or rsLoRA adapters of the same base at the same revision.
        weights: one for each; a negative one subtracts.

    Returns:
        `modules`: `module` and `rank` of each; `files`: sha256 by name.

    Raises:
        Refused: patches of different bases, updates that are no pairs of two matrices, pairs that
            do not fit on one layer, or values that are not finite.
    """
    folders = [Folder(path) for path in patches]
    found = [read_adapter(folder) for folder in folders]
    for adapter, folder in zip(found, folders, strict=True):
        _check(adapter, folder.name, found[0], folders[0].name)
        check_finite(folder, [t for update in adapter.updates for t in update.tensors])
    layers: dict[str, list[_Part]] = {}
    for adapter, folder, weight in zip(found, folders, weights, strict=True):
        biases = {u.target: u for u in adapter.updates if isinstance(u, Addend)}
        for pair in adapter.pairs:
            part = _Part(folder, pair, biases.get(f"{pair.module}.bias"), weight)
            layers.setdefault(pair.module, []).append(part)
    has_bias = bool(found[0].config.get("lora_bias"))
    tensors = {
        f"{PREFIX}{module}.{name}": value
        for module, parts in layers.items()
        for name, value in _stacked(module, parts, has_bias).items()
    }
    ranks = {module: sum(part.pair.rank for part in parts) for module, parts in layers.items()}
    tasks = {adapter.config.get("task_type") for adapter in found}
    config = lora_config(
        ranks,
        task_type=tasks.pop() if len(tasks) == 1 else None,
        base_model_name_or_path=found[0].base_repo,
        revision=found[0].base_revision,
        fan_in_fan_out=found[0].pairs[0].fan_in_fan_out,
        lora_bias=has_bias,
    )
    with staged(out) as stage:
        save_file(tensors, stage / WEIGHTS, metadata={"format": "pt"})
        (stage / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        return {
            "modules": [{"module": module, "rank": rank} for module, rank in ranks.items()],
            "files": {file.name: sha256(file) for file in sorted(stage.iterdir())},
        }


@dataclass(frozen=True)
class _Part:
    """What one patch does to one module, times `weight`."""

    folder: Folder
    pair: LoraPair
    bias: Addend | None
    weight: float

    @property
    def factor(self) -> float:
        return self.weight * self.pair.scale


def _check(adapter: Adapter, name: str, first: Adapter, other: str) -> None:
    """That `adapter` is a plain LoRA, and of the same base as `first`."""
    pairs = [pair for pair in adapter.pairs if pair.parameter == "weight"]
    biases = [update for update in adapter.updates if isinstance(update, Addend)]
    if not pairs or len(pairs) + len(biases) < len(adapter.updates):
        raise Refused(
            f"{adapter.config_file} in {name}: {adapter.old_base_field or f'kind {adapter.kind}'} "
            "makes it more than pairs of two matrices, and only their ranks can be stacked; "
            f"{MERGE}"
        )
    for field in ("base_model_name_or_path", "revision", "fan_in_fan_out", "lora_bias"):
        one, two = (config.get(field) or None for config in (adapter.config, first.config))
        if one != two:
            raise Refused(
                f"{adapter.config_file}: {field} is {one!r} in {name} and {two!r} in {other}; "
                "stack patches that were trained alike, on one base at one revision"
            )


def _stacked(module: str, parts: Sequence[_Part], has_bias: bool) -> dict[str, torch.Tensor]:
    """The F32 tensors of one module, by what follows its name."""
    shapes = {part.pair.shape for part in parts}
    if len(shapes) > 1 or len({part.pair.embedding for part in parts}) > 1:
        names = " and ".join(part.folder.name for part in parts)
        raise Refused(
            f"{module!r} is not the same layer in {names} (shapes {sorted(shapes)}); stack patches "
            "of one base"
        )
    halves = EMBEDDING_HALVES if parts[0].pair.embedding else HALVES
    values = {
        halves[0]: torch.cat([load(part.folder, part.pair.a) for part in parts]),
        halves[1]: torch.cat([load(p.folder, p.pair.b) * p.factor for p in parts], dim=1),
    }
    if has_bias:
        values["lora_B.bias"] = sum(
            (load(p.folder, p.bias.value) * p.factor for p in parts if p.bias),
            torch.zeros(len(values[halves[1]]), dtype=torch.float64),
        )
    rounded = {name: value.float() for name, value in values.items()}
    if not all(value.isfinite().all() for value in rounded.values()):
        raise Refused(f"{module!r}: its update, weighted, overflows F32; give smaller weights")
    return rounded
