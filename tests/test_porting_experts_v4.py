"""Adapters for experts that Transformers 4 kept apart, and whole merges of mixtures of experts."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file

from porting import Folder, merge, plan
from tests.moe import (
    assert_equal,
    load_model,
    lora_of,
    merged,
    peft_merged,
    save_family,
    save_lora,
)
from tests.tiny import tensors_of


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda family: save_family(tmp_path_factory.mktemp(family) / "base", family))


def v4_adapter(folder: Path, base: Path, **config: Any) -> Path:
    """A LoRA on the linear layers that every expert of Mixtral was in Transformers 4."""
    folder.mkdir()
    torch.manual_seed(1)
    factors = {}
    for name, tensor in tensors_of(base).items():
        if ".experts." in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{module}.lora_A.weight"] = torch.randn(3, tensor.shape[1])
            factors[f"{module}.lora_B.weight"] = torch.randn(tensor.shape[0], 3)
    save_file(factors, folder / "adapter_model.safetensors")
    fields = LoraConfig(r=3, lora_alpha=5, target_modules=["w1", "w2", "w3"], **config).to_dict()
    fields["target_modules"] = sorted(fields["target_modules"])
    text = json.dumps(
        {key: value for key, value in fields.items() if value is not None}, default=str
    )
    (folder / "adapter_config.json").write_text(text)
    return folder


def test_an_adapter_of_transformers_4_fits_by_plain_names(bases: Any, tmp_path: Path) -> None:
    patch = v4_adapter(tmp_path / "patch", bases("mixtral"))
    want = peft_merged(bases("mixtral"), patch, tmp_path / "merged")
    assert_equal(merged(bases("mixtral"), patch), want)


def test_rslora_of_transformers_4_keeps_the_scale_it_was_trained_with(
    bases: Any, tmp_path: Path
) -> None:
    """PEFT 0.21 doubles both r and alpha when it fuses w1 and w3: it scales by sqrt(2) too much."""
    patch = v4_adapter(tmp_path / "patch", bases("mixtral"), use_rslora=True)
    factors = tensors_of(patch, "adapter_model.safetensors")
    want = {name: tensor.double() for name, tensor in tensors_of(bases("mixtral")).items()}
    for name in want:
        if ".experts." in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            a, b = factors[f"{module}.lora_A.weight"], factors[f"{module}.lora_B.weight"]
            want[name] += 5 / 3**0.5 * (b.double() @ a.double())
    assert_equal(merged(bases("mixtral"), patch), want)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_made_of_an_adapter_of_transformers_4_is_read_as_it_says(
    rslora: bool, bases: Any, tmp_path: Path
) -> None:
    old = v4_adapter(tmp_path / "old", bases("mixtral"), use_rslora=rslora)
    patch = tmp_path / "patch"
    PeftModel.from_pretrained(load_model(bases("mixtral")), old).save_pretrained(patch)
    config = json.loads((patch / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {r".*\.gate_up_proj": 6}
    want = peft_merged(bases("mixtral"), patch, tmp_path / "merged")
    assert_equal(merged(bases("mixtral"), patch), want)


@pytest.mark.parametrize(
    ("family", "modules"),
    [
        ("mixtral", ["q_proj", "gate", "w1", "w2", "w3"]),
        ("qwen3_moe", ["q_proj", "gate_proj", "up_proj", "down_proj"]),
        ("olmoe", "all-linear"),
    ],
)
def test_targets_that_peft_turns_into_parameters(
    family: str, modules: Any, bases: Any, tmp_path: Path
) -> None:
    patch = save_lora(tmp_path / "patch", bases(family), target_modules=modules, r=3)
    config = json.loads((patch / "adapter_config.json").read_text())
    assert "down_proj" in config["target_parameters"]
    want = peft_merged(bases(family), patch, tmp_path / "merged")
    assert_equal(merged(bases(family), patch), want)


def test_stacks_that_transformers_4_named_otherwise(bases: Any, tmp_path: Path) -> None:
    """Granite's experts were two modules, each with a stack for its weight."""
    base, patch = bases("granitemoe"), tmp_path / "patch"
    want = merged(base, save_lora(patch, base, **lora_of("granitemoe")))
    file = patch / "adapter_model.safetensors"
    renamed = {
        name.replace("experts.base_layer", "input_linear").replace("experts", "output_linear"): t
        for name, t in tensors_of(patch, file.name).items()
    }
    save_file(renamed, file)
    config = json.loads((patch / "adapter_config.json").read_text())
    config["target_parameters"] = ["input_linear.weight", "output_linear.weight"]
    (patch / "adapter_config.json").write_text(json.dumps(config))
    assert_equal(merged(base, patch), want)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_a_whole_merge_of_a_sharded_model(family: str, bases: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    load_model(bases(family)).save_pretrained(base, max_shard_size="20KB")
    patch = save_lora(tmp_path / "patch", base, **lora_of(family, use_rslora=True))
    made = plan(Folder(base), Folder(patch), as_="merged")
    assert len(made.layout.files) > 2
    merge(made, base, patch, tmp_path / "out")
    want = peft_merged(base, patch, tmp_path / "merged")
    have = tensors_of(tmp_path / "out")
    for name, tensor in want.items():
        torch.testing.assert_close(have[name], tensor.float(), rtol=1.2e-7, atol=0, msg=name)
    load_model(tmp_path / "out")
