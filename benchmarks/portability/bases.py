"""The new bases: every way in which the study lets the old base move.

A base is a dict of bf16 tensors. Only the trained ones lie on the disk; the others are arithmetic
on the old base.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from examples.smollm2 import base_model
from examples.training import ALL_LINEARS

State = dict[str, Tensor]
EVOLUTION = Path(__file__).parents[2] / "examples" / "evolution"
LINEARS = re.compile(rf"\.({'|'.join(ALL_LINEARS)})\.weight$")
TRAINED = ("t0-short", "t0-long", "c4-full", "wikitext-full")


def old_base() -> State:
    return load_file(base_model() / "model.safetensors")


def deltas(adapter: Path) -> State:
    """alpha / r * B A of every module that the adapter patches, fp32, by the weight's name."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    found: State = {}
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            up = tensors[name.replace("lora_A", "lora_B")]
            weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
            found[weight] = scale * (up.float() @ down.float())
    return found


def added(
    state: State, delta: State, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16
) -> State:
    """`state` + scale * `delta`, summed in fp32 and rounded once to `dtype`."""
    moved = {name: (state[name].float() + scale * part).to(dtype) for name, part in delta.items()}
    return state | moved


def noise(state: State, size: float) -> State:
    """Gaussian noise on every linear weight, of `size` times the weight's own deviation."""
    rng = torch.Generator().manual_seed(0)
    return added(
        state,
        {
            name: torch.randn(weight.shape, generator=rng) * size * weight.float().std()
            for name, weight in state.items()
            if LINEARS.search(name)
        },
    )


def requantised(state: State, bits: int, group: int = 64) -> State:
    """Every linear weight rounded to `bits` bits, symmetric, one scale per `group` inputs."""
    top = 2 ** (bits - 1) - 1

    def rounded(weight: Tensor) -> Tensor:
        parts = weight.float().view(-1, group)
        step = (parts.abs().amax(dim=1, keepdim=True) / top).clamp(min=1e-12)
        return ((parts / step).round() * step).view_as(weight).to(torch.bfloat16)

    return {n: rounded(w) if LINEARS.search(n) else w for n, w in state.items()}


def permuted(state: State) -> State:
    """The same function in other coordinates: heads and neurons of every layer change places.

    KV groups move as a whole, query heads also within their group, MLP neurons freely. It stands
    for a base that was trained apart and arrived at the same function.
    """
    config = json.loads((base_model() / "config.json").read_text(encoding="utf-8"))
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size, per = config["hidden_size"] // heads, heads // groups
    rng = torch.Generator().manual_seed(0)
    result = dict(state)
    for layer in range(config["num_hidden_layers"]):
        group = torch.randperm(groups, generator=rng)
        head = torch.cat([g * per + torch.randperm(per, generator=rng) for g in group])
        neuron = torch.randperm(config["intermediate_size"], generator=rng)
        query = (head[:, None] * size + torch.arange(size)).flatten()
        key = (group[:, None] * size + torch.arange(size)).flatten()
        at = f"model.layers.{layer}."
        for part, order in (
            ("self_attn.q_proj", query),
            ("self_attn.k_proj", key),
            ("self_attn.v_proj", key),
            ("mlp.gate_proj", neuron),
            ("mlp.up_proj", neuron),
        ):
            result[f"{at}{part}.weight"] = state[f"{at}{part}.weight"][order].contiguous()
        for part, order in (("self_attn.o_proj", query), ("mlp.down_proj", neuron)):
            result[f"{at}{part}.weight"] = state[f"{at}{part}.weight"][:, order].contiguous()
    return result


def new_base(name: str, work: Path) -> State:
    """The base of that name; the trained ones are read from `work`."""
    old = old_base()
    kind, _, argument = name.partition("-")
    if kind == "has":  # "has-sst2-1": the old base with that patch already in it
        return added(old, deltas(adapter(argument, work)))
    if name.endswith("-full"):
        return load_file(work / name / "model.safetensors")
    makers: dict[str, Callable[[], State]] = {
        "old": lambda: old,
        "reverse": lambda: added(old, deltas(EVOLUTION), -1.0),
        "noise": lambda: noise(old, int(argument) / 100),
        "int4": lambda: requantised(old, 4),
        "int8": lambda: requantised(old, 8),
        "permuted": lambda: permuted(old),
    }
    if kind in makers:
        return makers[kind]()
    plain, _, times = name.partition("-x")  # "gsm8k-x3": the drift of gsm8k, three times
    folder = EVOLUTION if plain == "gsm8k" else work / plain
    return added(old, deltas(folder), float(times or 1))


def adapter(patch: str, work: Path) -> Path:
    """The folder of a patch, "sst2-0", or of a refit, "sst2-0@c4-full"."""
    return EVOLUTION.parent / "patch" if patch == "tickets-0" else work / patch


def model() -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base_model(), dtype=torch.float32)
    return found


def put(into: PreTrainedModel, state: State) -> None:
    """Copy a base's tensors into `into`, in its own dtype."""
    mine = dict(into.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            mine[name].copy_(tensor)
