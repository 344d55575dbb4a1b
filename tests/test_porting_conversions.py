"""Names and layouts that Transformers changes when it loads, against Transformers and PEFT."""

import json
import math
import shutil
import socket
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import core_model_loading as core

from porting.base.conversions import Loaded
from porting.base.layout import Layout, TensorInfo, read_layout
from porting.base.loaded import empty_model
from porting.base.parts import NotRowsError, Value, applied, parts_of, value_of
from porting.errors import Refused
from porting.source import Folder, read_json
from tests.moe import (
    assert_equal,
    load_model,
    merged,
    peft_merged,
    save_lora,
    save_model,
    touches_of,
    with_tensors,
)
from tests.tiny import tensors_of

TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
QWEN = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 40,
    "out_hidden_size": 32,
    "patch_size": 8,
}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LINEAR = ["q_proj", "down_proj", "qkv", "fc1"]

# family: (model class, config, target_modules)
FAMILIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "gemma3_text": ("Gemma3ForCausalLM", TEXT, LINEAR),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4},
        LINEAR,
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": VISION | {"model_type": "clip_vision_model", "projection_dim": 32},
        },
        [*LINEAR, "lm_head"],
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {"text_config": TEXT | ROPE, "vision_config": QWEN},
        [*LINEAR, "lm_head"],
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoeForConditionalGeneration",
        {"text_config": TEXT | ROPE | EXPERTS, "vision_config": QWEN},
        ["q_proj", "qkv"],
    ),
    "nomic_bert": ("NomicBertForMaskedLM", TEXT, ["q_proj", "v_proj", "up_proj", "o_proj"]),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def get(family: str) -> Path:
        name, config, _ = FAMILIES[family]
        settings = getattr(transformers, name).config_class(**json.loads(json.dumps(config)))
        return save_model(tmp_path_factory.mktemp(family) / "base", name, settings)

    return get


def lora_of(family: str) -> dict[str, Any]:
    experts = ["experts.gate_up_proj", "experts.down_proj"] if family == "qwen3_vl_moe" else None
    return {"target_modules": FAMILIES[family][2], "target_parameters": experts, "r": 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_renamed_and_fused_weights_get_what_peft_merges(
    family: str, bases: Any, tmp_path: Path
) -> None:
    patch = save_lora(tmp_path / "patch", bases(family), **lora_of(family))
    want = peft_merged(bases(family), patch, tmp_path / "merged")
    have = merged(bases(family), patch)
    assert_equal(have, want)
    before = tensors_of(bases(family)).items()
    changed = {name for name, tensor in before if not torch.equal(tensor.double(), have[name])}
    assert changed == {touch.tensor.name for touch in touches_of(bases(family), patch)} != set()


@pytest.mark.parametrize("family", ["gemma3", "llava", "qwen2_5_vl", "nomic_bert"])
def test_every_parameter_is_where_transformers_reads_it(family: str, bases: Any) -> None:
    """Every parameter of the loaded model is made of its parts, and of nothing else."""
    base = bases(family)
    loaded = Loaded(read_layout(Folder(base)), read_json(Folder(base), "config.json"))
    model = load_model(base)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    parameters = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    assert parameters.keys() - loaded.parts.keys() <= {n for n, _ in model.named_buffers()} | {
        name for name in parameters if "decoder" in name
    }
    for name, parts in loaded.parts.items():
        pieces = [content(base, part.tensor) for part in parts]
        torch.testing.assert_close(torch.cat(pieces), parameters[name], rtol=0, atol=0)


def content(base: Path, tensor: TensorInfo) -> torch.Tensor:
    data = bytearray(Folder(base).read(tensor.file, tensor.start, tensor.end))
    return torch.frombuffer(data, dtype=torch.float32).view(tensor.shape)


OLD = "base_model.model.language_model.model.layers."  # Transformers before 4.52
NEW = "base_model.model.model.language_model.layers."


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_adapters_and_bases_of_any_release_fit_each_other(
    family: str, bases: Any, tmp_path: Path
) -> None:
    base = bases(family)
    lora = {"target_modules": "model.language_model.*(q_proj|down_proj)", "r": 3}
    patch = save_lora(tmp_path / "patch", base, **lora)
    new = tensors_of(patch, "adapter_model.safetensors")
    assert all(name.startswith(NEW) for name in new)
    older = shutil.copytree(patch, tmp_path / "older")
    old = {name.replace(NEW, OLD): tensor for name, tensor in new.items()}
    save_file(old, older / "adapter_model.safetensors")
    renamed = with_tensors(tmp_path / "renamed", base, load_model(base).state_dict())
    assert any(name.startswith("model.language_model.") for name in tensors_of(renamed))
    want = peft_merged(base, patch, tmp_path / "merged")
    loaded = load_model(tmp_path / "merged", torch.float64).state_dict()
    assert_equal(merged(base, older), want)
    assert_equal(merged(renamed, patch), loaded)
    assert_equal(merged(renamed, older), loaded)


def test_stacks_that_a_checkpoint_keeps_transposed(bases: Any, tmp_path: Path) -> None:
    """Qwen3-VL-MoE was published with (experts, in, out), and is transposed when it is loaded."""
    base = bases("qwen3_vl_moe")
    patch = save_lora(tmp_path / "patch", base, **lora_of("qwen3_vl_moe"))
    want = merged(base, patch)
    stacks = {name for name in want if "experts" in name}
    turned = {n: t.mT if n in stacks else t for n, t in tensors_of(base).items()}
    published = with_tensors(tmp_path / "published", base, turned)
    assert_equal(merged(published, patch), {n: t.mT if n in stacks else t for n, t in want.items()})
    assert_equal(load_model(published, torch.float64).state_dict(), load_model(base).state_dict())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": None},
        {"architectures": []},
        {"architectures": [7]},
        {"architectures": ["Strange"]},
        {"architectures": ["pipeline"]},
        {"architectures": ["LlamaConfig"]},
        {"architectures": ["PreTrainedModel"]},
        {"architectures": ["LlamaForCausalLM"], "hidden_size": "wide"},
        {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 10**12},
        {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 0},
        {"architectures": ["LlamaForCausalLM"], "rope_parameters": {"__float__": "none"}},
    ],
)
def test_what_transformers_can_not_build_has_no_parameters(config: dict[str, Any]) -> None:
    tensor = TensorInfo("model.norm.weight", "model.safetensors", "F32", (1,), 0, 4)
    layout = Layout({tensor.name: tensor}, (tensor.file,), None)
    loaded = Loaded(layout, config)
    assert not loaded.parts
    assert loaded.find(tensor.name) is None


def test_a_config_starts_no_code_of_strangers() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "strange/repo--modeling.Llama"},
        "attn_implementation": "strange/kernels",
        "_attn_implementation": "strange/kernels",
        "num_labels": 10**9,
        **TEXT,
    }
    model = empty_model(config, 100)
    assert type(model) is transformers.LlamaForCausalLM
    assert model.config._attn_implementation == "eager"
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.config.num_labels == 2


def test_a_config_sends_nobody_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *place, **_: asked.append(place) or [])
    config = {"architectures": ["DetrForObjectDetection"], "backbone": "strange/repo"}
    empty_model(config | {"use_timm_backbone": False}, 100)
    assert asked == []


def test_names_that_would_break_the_tables_are_left_out() -> None:
    names = ["model.layers.²", f"model.{'a.' * 5_000}b", "model.norm.weight"]
    tensors = {n: TensorInfo(n, "model.safetensors", "F32", (32,), 0, 128) for n in names}
    loaded = Loaded(Layout(tensors, (), None), {"architectures": ["LlamaForCausalLM"], **TEXT})
    assert [*loaded.parts] == ["model.norm.weight"]
    assert loaded.find(names[1]) is None


@pytest.mark.parametrize(
    "operation",
    [
        core.PermuteForRope(),
        core.Interleave(dim=1),
        core.MergeModulelist(dim=1),
        core.Chunk(dim=1),
        core.Concatenate(dim=0, num_shards_attribute="parts"),
        core.ErnieFuseAndSplitTextVisionExperts(),
    ],
)
def test_other_operations_are_left_out(operation: core.ConversionOps) -> None:
    tensor = TensorInfo("w", "model.safetensors", "F32", (4, 2), 0, 32)
    with pytest.raises(NotRowsError):
        applied(operation, [[value_of(tensor)]], [(4, 2)])


MERGE, JOIN = core.MergeModulelist(dim=0), core.Concatenate(dim=1)
TURN = core.Transpose(dim0=1, dim1=2)
# (operations, dimensions of a source, number of sources, whether each is a list, of targets)
CHAINS: list[tuple[list[core.ConversionOps], int, int, bool, int]] = [
    ([MERGE], 2, 1, True, 1),
    ([MERGE, JOIN], 2, 2, True, 1),
    ([MERGE, JOIN], 2, 3, True, 1),
    ([MERGE, JOIN, TURN], 2, 2, True, 1),
    ([MERGE, TURN], 2, 1, True, 1),
    ([JOIN], 3, 2, False, 1),
    ([JOIN, TURN], 3, 2, False, 1),
    ([TURN], 3, 1, False, 1),
    ([core.Concatenate(dim=0)], 2, 3, False, 1),
    ([core.Concatenate(dim=0)], 1, 3, False, 1),
    ([core.Transpose(dim0=0, dim1=1)], 2, 1, False, 1),
    ([core.Chunk(dim=0)], 2, 1, False, 3),
    ([core.Chunk(dim=0)], 1, 1, False, 3),
]


@given(st.sampled_from(CHAINS), st.tuples(*[st.integers(1, 4)] * 3), st.booleans())
@settings(max_examples=150, deadline=None)
def test_parts_are_the_rows_that_transformers_puts_there(
    chain: tuple[list[core.ConversionOps], int, int, bool, int],
    sizes: tuple[int, int, int],
    is_transposed: bool,
) -> None:
    """Its own operations, run on tensors whose values are their places in one file."""
    operations, dims, many, lists, targets = chain
    shape = (sizes[0], sizes[1] * targets, sizes[2])[
        slice(1, 2) if dims == 1 else slice(3 - dims, 3)
    ]
    patterns = [f"source{number}" for number in range(many)]
    names = [f"target{number}" for number in range(targets)]
    count, infos = math.prod(shape), []
    for place in range(0, count * many * (sizes[0] if lists else 1), count):
        infos.append(TensorInfo(str(place), "f", "F32", shape, 4 * place, 4 * (place + count)))
    groups = [infos[n :: len(patterns)] for n in range(many)]
    made: Any = {p: [places(info) for info in g] for p, g in zip(patterns, groups, strict=True)}
    own: list[list[Value]] = [[value_of(info) for info in group] for group in groups]
    for operation in operations:
        made = operation.convert(made, source_patterns=patterns, target_patterns=names)
        own = applied(operation, own, [()] * targets)
    for name, [value] in zip(names, own, strict=True):
        parts = list(parts_of(value, is_transposed))
        for part in parts:
            matrix = made[name] if made[name].dim() < 3 else made[name][part.expert]
            if part.expert is not None and part.transposed != is_transposed:
                matrix = matrix.T
            rows = matrix[part.first_row : part.first_row + part.tensor.shape[0]]
            assert torch.equal(places(part.tensor), rows)
        assert sum(math.prod(part.tensor.shape) for part in parts) == made[name].numel()


def places(tensor: TensorInfo) -> torch.Tensor:
    return torch.arange(tensor.start // 4, tensor.end // 4).view(tensor.shape)


def test_a_split_goes_by_the_sizes_of_the_parameters() -> None:
    tensor = TensorInfo("qkv", "f", "F32", (6, 2), 0, 48)
    values = applied(core.Split(dim=0), [[value_of(tensor)]], [(3, 2), (1, 2), (2, 2)])
    cut = [part.tensor for [value] in values for part in parts_of(value, False)]
    assert [(t.shape, t.start, t.end) for t in cut] == [
        ((3, 2), 0, 24),
        ((1, 2), 24, 32),
        ((2, 2), 32, 48),
    ]
    with pytest.raises(NotRowsError):
        applied(core.Split(dim=0), [[value_of(tensor)]], [(3, 2), (4, 2)])


@pytest.mark.parametrize(
    "operations", [[core.Concatenate(dim=1)], [MERGE, core.Concatenate(dim=2)], [MERGE, TURN, JOIN]]
)
def test_columns_side_by_side_have_no_rows(operations: list[core.ConversionOps]) -> None:
    tensor = TensorInfo("w", "f", "F32", (2, 2), 0, 16)
    values: list[list[Value]] = [[value_of(tensor)], [value_of(tensor)]]
    with pytest.raises(NotRowsError):
        for operation in operations:
            if isinstance(operation, core.Transpose):
                values = [[applied(operation, [group], [()])[0][0]] for group in values]
            else:
                values = applied(operation, values, [()])
        list(parts_of(values[0][0], False))


def test_a_dense_lora_does_not_reach_into_a_stack(bases: Any, tmp_path: Path) -> None:
    base, patch = bases("qwen3_vl_moe"), tmp_path / "patch"
    save_lora(patch, base, target_modules=["q_proj"], r=3)
    name = "base_model.model.model.language_model.layers.0.mlp.experts.0.gate_proj"
    factors = {
        f"{name}.lora_A.weight": torch.ones(3, 32),
        f"{name}.lora_B.weight": torch.ones(24, 3),
    }
    save_file(factors, patch / "adapter_model.safetensors")
    config = json.loads((patch / "adapter_config.json").read_text())
    config["target_modules"] = ["gate_proj"]
    (patch / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match=r"no tensor for '.*experts\.0\.gate_proj\.weight'"):
        touches_of(base, patch)
