"""Adapters whose values have a meaning only beside their base, rewritten for another one."""

import math
from dataclasses import replace
from typing import Any

import torch

from porting.base.layout import TensorInfo
from porting.mapping import Touch
from porting.patch.lora import is_safe_init
from porting.patch.updates import Absolute, LoraPair, Operator
from porting.plan import Plan
from porting.source import Folder
from porting.weights.deltas import DTYPES, converted_pair, load, oriented, slice_of
from porting.weights.peft_layer import PeftLayer


def rebased_tensors(
    plan: Plan, config: dict[str, Any], patch: Folder, base: Folder, old_base: Folder | None
) -> dict[str, torch.Tensor]:
    """The tensors of the adapter that change, by name, in the dtypes they had.

    A saved value V becomes `V + W_new - W_old`, so that what the vendor changed stays changed;
    rows that the new base appended are its own, and a pair leaves them as they are. A pair that
    started from the old base (class B) becomes `(2 rank, in)` and `(out, 2 rank)`, a
    plain LoRA with the same product.
    """
    found: dict[str, torch.Tensor] = {}
    for touch in plan.touched:
        update = touch.update
        if isinstance(update, Absolute):
            whole = plan.layout.tensors.get(touch.tensor.name, touch.tensor)
            value = _moved(touch, update, whole, patch, base, old_base)
            found[update.value.name] = value.to(DTYPES[update.value.dtype])
        elif isinstance(update, LoraPair) and (rows := plan.appended_rows(touch)):
            found |= _padded(update, rows, patch)
        elif isinstance(update, Operator) and update.meaning == "initialised":
            found |= _converted(touch, update, config, patch, old_base)
    return found


def _moved(
    touch: Touch,
    update: Absolute,
    whole: TensorInfo,
    patch: Folder,
    base: Folder,
    old_base: Folder | None,
) -> torch.Tensor:
    assert touch.old is not None and old_base is not None
    value = load(patch, update.value)
    if update.rows is None:
        moved = value + load(base, touch.tensor) - load(old_base, touch.old)
        if len(moved) == whole.shape[0]:
            return moved
        rows = (whole.shape[0] - len(moved), *whole.shape[1:])
        return torch.cat([moved, load(base, replace(whole, start=touch.tensor.end, shape=rows))])
    columns = value.shape[1]
    for number, row in enumerate(update.rows):
        value[number] += load(base, slice_of(touch.tensor, row * columns, columns))
        value[number] -= load(old_base, slice_of(touch.old, row * columns, columns))
    return value


def _padded(pair: LoraPair, rows: int, patch: Folder) -> dict[str, torch.Tensor]:
    tensor = pair.a if pair.embedding else pair.b
    value = load(patch, tensor).to(DTYPES[tensor.dtype])
    padding = (0, rows) if pair.embedding else (0, 0, 0, rows)
    return {tensor.name: torch.nn.functional.pad(value, padding)}


def _converted(
    touch: Touch, update: Operator, config: dict[str, Any], patch: Folder, old_base: Folder | None
) -> dict[str, torch.Tensor]:
    assert touch.old is not None and old_base is not None
    tensors = {tensor.name: load(patch, tensor) for tensor in update.tensors}
    weight = oriented(load(old_base, touch.old), touch)
    layer = PeftLayer(config, update, tensors, {update.module: tuple(weight.shape)})
    pair = converted_pair(tensors, layer.initial(weight))
    names = {name.rsplit(".", 2)[1]: name for name in tensors if name.endswith(".weight")}
    dtypes = {tensor.name: DTYPES[tensor.dtype] for tensor in update.tensors}
    return {
        names[part]: value.to(dtypes[names[part]]).contiguous()
        for part, value in zip(("lora_A", "lora_B"), pair, strict=True)
    }


def rebased_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a class B adapter whose pairs were converted: twice the rank, same scale."""
    if is_safe_init(config.get("init_lora_weights", True)):
        return config
    grow = math.sqrt(2) if config.get("use_rslora") else 2
    return config | {
        "init_lora_weights": True,
        "r": config.get("r", 8) * 2,
        "lora_alpha": config.get("lora_alpha", 8) * grow,
        "rank_pattern": {k: v * 2 for k, v in (config.get("rank_pattern") or {}).items()},
        "alpha_pattern": {k: v * grow for k, v in (config.get("alpha_pattern") or {}).items()},
    }
