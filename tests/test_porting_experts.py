"""LoRA on stacks of experts, against PEFT's own merge in float64."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import save_file
from torch import nn

from porting.base.layout import TensorInfo, read_layout
from porting.errors import Refused
from porting.mapping import Parameters
from porting.patch.experts import DEFINED, parameters_of
from porting.patch.updates import Addend
from porting.source import Folder, read_json
from tests.moe import (
    FAMILIES,
    FUSED,
    assert_equal,
    load_model,
    lora_of,
    merged,
    peft_merged,
    save_family,
    save_lora,
    touches_of,
    with_tensors,
)
from tests.tiny import tensors_of


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda family: save_family(tmp_path_factory.mktemp(family) / "base", family))


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_get_what_peft_merges(family: str, bases: Any, tmp_path: Path) -> None:
    patterns = {
        "rank_pattern": {r".*down_proj": 2, "gate.weight": 1},
        "alpha_pattern": {"gate_up_proj": 11},
        "use_rslora": family in ("mixtral", "gpt_oss"),
    }
    patch = save_lora(
        tmp_path / "patch", bases(family), **lora_of(family, lora_alpha=5, **patterns)
    )
    want = peft_merged(bases(family), patch, tmp_path / "merged")
    have = merged(bases(family), patch)
    assert_equal(have, want)
    before = tensors_of(bases(family)).items()
    changed = {name for name, tensor in before if not torch.equal(tensor.double(), have[name])}
    assert changed == {touch.tensor.name for touch in touches_of(bases(family), patch)} != set()


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_a_checkpoint_that_holds_stacks_is_one_too(family: str, bases: Any, tmp_path: Path) -> None:
    """As the model names its parameters, which Transformers loads but does not write any more."""
    patch = save_lora(tmp_path / "patch", bases(family), **lora_of(family))
    fused = with_tensors(tmp_path / "fused", bases(family), load_model(bases(family)).state_dict())
    assert any(tensor.dim() == 3 for tensor in tensors_of(fused).values())
    peft_merged(bases(family), patch, tmp_path / "merged")
    want = load_model(tmp_path / "merged", torch.float64).state_dict()
    assert_equal(merged(fused, patch), want)


def swapped(patch: Path, base: Path) -> dict[str, torch.Tensor]:
    """Write the factors as PEFT 0.17 shaped them, which took every stack for (experts, in, out).

    Returns:
        What it added to each stack: `einsum("o r e, e r i -> e i o", B, A)`.
    """
    config = json.loads((patch / "adapter_config.json").read_text())
    file, factors, deltas = patch / "adapter_model.safetensors", {}, {}
    for name, stack in load_model(base).state_dict().items():
        module, _, parameter = name.rpartition(".")
        if stack.dim() != 3:
            continue
        nested = ".base_layer" if parameter == "gate_up_proj" else ""
        experts, rows, columns = stack.shape
        a, b = torch.randn(experts * 3, rows), torch.randn(columns, experts * 3)
        factors[f"base_model.model.{module}{nested}.lora_A.weight"] = a
        factors[f"base_model.model.{module}{nested}.lora_B.weight"] = b
        left = b.double().reshape(columns, 3, experts)
        product = torch.einsum("ore,eri->eio", left, a.double().reshape(experts, 3, rows))
        deltas[name] = product * config["lora_alpha"] / 3
    save_file(factors, file)
    return deltas


def test_an_adapter_of_an_older_peft_is_told_apart_by_its_shapes(
    bases: Any, tmp_path: Path
) -> None:
    """gate_up_proj of OLMoE is square here: down_proj tells how to read both."""
    base, fused = bases("olmoe"), tmp_path / "fused"
    patch = save_lora(tmp_path / "patch", base, **lora_of("olmoe", target_modules=[]))
    deltas = swapped(patch, base)
    with_tensors(fused, base, load_model(base).state_dict())
    want = {name: tensor.double() for name, tensor in tensors_of(fused).items()}
    for name, delta in deltas.items():
        want[name] += delta
    assert_equal(merged(fused, patch), want)
    model = load_model(base, torch.float64)
    model.load_state_dict(want)
    model.save_pretrained(tmp_path / "merged")
    assert_equal(merged(base, patch), tensors_of(tmp_path / "merged"))


def test_square_stacks_that_nothing_explains_are_refused(bases: Any, tmp_path: Path) -> None:
    base = bases("gpt_oss")
    patch = save_lora(tmp_path / "patch", base, **lora_of("gpt_oss", target_parameters=FUSED[1:]))
    assert touches_of(base, patch)
    strange = with_tensors(tmp_path / "strange", base, tensors_of(base))
    (strange / "config.json").write_text('{"model_type": "none", "architectures": ["Strange"]}')
    with pytest.raises(Refused, match=r"square matrices of shape \(32, 32\)"):
        touches_of(strange, patch)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 5, "num_local_experts": 5}, r"updates 4 experts .*holds 5 experts"),
        ({"intermediate_size": 40, "moe_intermediate_size": 40}, r"updates matrices of shape"),
    ],
)
def test_another_architecture_is_refused(
    family: str, change: dict[str, Any], message: str, bases: Any, tmp_path: Path
) -> None:
    patch = save_lora(tmp_path / "patch", bases(family), **lora_of(family))
    other = save_family(tmp_path / "other", family, **change)
    with pytest.raises(Refused, match=message):
        touches_of(other, patch)


def test_an_expert_that_is_missing_is_refused(bases: Any, tmp_path: Path) -> None:
    base = bases("qwen3_moe")
    patch = save_lora(tmp_path / "patch", base, **lora_of("qwen3_moe"))
    tensors = tensors_of(base)
    del tensors["model.layers.1.mlp.experts.3.gate_proj.weight"]
    less = with_tensors(tmp_path / "less", base, tensors)
    with pytest.raises(
        Refused, match=r"no tensor for 'model\.layers\.1\.mlp\.experts\.gate_up_proj'"
    ):
        touches_of(less, patch)


def test_a_rank_that_makes_other_experts_is_refused(bases: Any, tmp_path: Path) -> None:
    base = bases("gpt_oss")
    patch = save_lora(tmp_path / "patch", base, **lora_of("gpt_oss"))
    config = json.loads((patch / "adapter_config.json").read_text())
    config["rank_pattern"] = {"gate_up_proj": 6}
    (patch / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match=r"updates 2 experts \(A has shape \(12, 32\), rank 6\)"):
        touches_of(base, patch)


def test_a_parameter_in_pieces_takes_only_a_lora(bases: Any) -> None:
    source = Folder(bases("qwen3_moe"))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    value = TensorInfo(name, "adapter_model.safetensors", "F32", (4, 48, 32), 0, 24576)
    base = Parameters(read_layout(source), read_json(source, "config.json"), "base")
    with pytest.raises(Refused, match="in 8 pieces, which only a LoRA can be moved to"):
        base.find(Addend(name, value))


class Layer(nn.Module):
    """All that a layer may define, each (3, 4) and in PEFT's eyes a matrix."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(3, 4)))


@given(
    st.lists(st.sampled_from(DEFINED), min_size=1, unique=True),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_wrappers_nest_as_peft_nests_them(names: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    prefixes = data.draw(st.lists(st.sampled_from(["", "layer.", "block.layer."]), min_size=1))
    targets = [f"{prefixes[n % len(prefixes)]}{name}" for n, name in enumerate(chosen)]
    model = nn.ModuleDict(
        {"block": nn.ModuleDict({"layer": Layer(sorted(names, key=DEFINED.index))})}
    )
    inject_adapter_in_model(LoraConfig(target_parameters=targets), model)
    wrapper, nested, want = model["block"]["layer"], "", {}
    while isinstance(wrapper, ParamWrapper):
        want["block.layer", nested] = wrapper.parameter_name
        wrapper, nested = wrapper.base_layer, f"{nested}.base_layer"
    assert parameters_of(list(want), {"target_parameters": targets}, "config") == want


NESTED = [("m.experts", ""), ("m.experts", ".base_layer")]


@pytest.mark.parametrize(
    ("groups", "config", "message"),
    [
        (NESTED, {}, r"does not say what 'm\.experts\.base_layer' updates"),
        (NESTED, {"target_parameters": "experts.w1"}, "must be a list of names"),
        (NESTED, {"target_parameters": [1]}, "must be a list of names"),
        (NESTED, {"target_parameters": ["experts.w1"]}, r"gives \['w1'\].*2 LoRA pairs"),
        (NESTED[1:], {"target_parameters": ["experts.w1"]}, "does not say what"),
        (NESTED, {"target_parameters": ["experts.b", "experts.a"]}, "nothing says which"),
        (NESTED, {"target_parameters": ["w1", "w2"], "target_modules": ".*q"}, "the same module"),
        ([("h.0.attn.c_proj", "")], {"target_parameters": ["c_proj.weight"]}, r"\(in, out\)"),
    ],
)
def test_what_a_config_leaves_open_is_refused(
    groups: list[tuple[str, str]], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused, match=message):
        parameters_of(groups, config, "adapter_config.json")


def test_a_module_of_target_modules_is_no_parameter() -> None:
    groups = [("a.q_proj", ""), ("a.gate", ""), *NESTED]
    config = {
        "target_modules": ["q_proj"],
        "target_parameters": ["gate.weight", "gate_up_proj", "down_proj"],
    }
    assert parameters_of(groups, config, "config") == {
        ("a.gate", ""): "weight",
        ("m.experts", ""): "down_proj",
        ("m.experts", ".base_layer"): "gate_up_proj",
    }
