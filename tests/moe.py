"""What a merge must make of a base, from the touches alone and in float64; and PEFT's own merge."""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from porting.base.layout import read_layout
from porting.mapping import Parameters, Touch, map_updates
from porting.patch.adapter import read_adapter
from porting.patch.updates import LoraPair
from porting.source import Folder, read_json
from tests.tiny import tensors_of

Tensors = dict[str, torch.Tensor]

SIZE = {
    "vocab_size": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}
MLA = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
BLOCKS = {"layers_block_type": ["moe", "moe"], "mamba_num_heads": 4, "mamba_head_dim": 8}
GLU = {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}
DBRX = {
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "vocab_size": 96,
    "max_seq_len": 64,
    "ffn_config": GLU,
    "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0},
}
FUSED = ["experts.gate_up_proj", "experts.down_proj"]

# family: (model class, config, target_parameters, target_modules). Of OLMoE, gate_up_proj is
# square; of GPT-OSS, which keeps (in, out), down_proj; of Nemotron-H, both.
FAMILIES: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "mixtral": ("Mixtral", SIZE, [*FUSED, "gate.weight"], ["q_proj"]),
    "qwen2_moe": ("Qwen2Moe", SIZE, ["gate_up_proj", "down_proj"], ["q_proj", "o_proj"]),
    "qwen3_moe": ("Qwen3Moe", SIZE, FUSED, []),
    "olmoe": ("Olmoe", SIZE | {"intermediate_size": 16}, FUSED, ["k_proj"]),
    "gpt_oss": ("GptOss", SIZE | {"intermediate_size": 32}, [*FUSED, "router.weight"], []),
    "llama4": ("Llama4", SIZE | {"intermediate_size_mlp": 40}, FUSED, ["q_proj"]),
    "granitemoe": ("GraniteMoe", SIZE, FUSED, []),
    "deepseek_v3": ("DeepseekV3", SIZE | MLA, FUSED, ["o_proj"]),
    "jetmoe": ("JetMoe", SIZE | {"kv_channels": 8}, ["mlp.input_linear.weight"], []),
    "nemotron_h": (
        "NemotronH",
        SIZE | BLOCKS | {"moe_intermediate_size": 32},
        ["experts.up_proj", "experts.down_proj"],
        [],
    ),
    "dbrx": ("Dbrx", DBRX, ["mlp.w1", "mlp.v1", "mlp.w2"], []),
}


def save_model(folder: Path, model_class: str, config: Any) -> Path:
    """Save a random model, all weights N(0, 0.3), as Transformers names and converts them."""
    torch.manual_seed(0)
    made = getattr(transformers, model_class)
    settings = made.config_class(**config) if isinstance(config, dict) else config
    model = made(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    name = read_json(Folder(folder), "config.json")["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, dtype=dtype)


def save_lora(folder: Path, base: Path, **lora: Any) -> Path:
    """Save an adapter made by PEFT, every factor N(0, 0.3)."""
    adapted = get_peft_model(load_model(base), LoraConfig(**lora))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape).mul(0.3)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def with_tensors(folder: Path, base: Path, tensors: Tensors) -> Path:
    """A copy of a model, with other tensors in its one file."""
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(own, folder / "model.safetensors")
    return folder


def peft_merged(base: Path, patch: Path, out: Path) -> Tensors:
    """The tensors of the checkpoint that PEFT and Transformers save, computed in float64."""
    model = load_model(base, torch.float64)
    adapted = PeftModel.from_pretrained(model, patch, autocast_adapter_dtype=False)
    adapted.merge_and_unload().save_pretrained(out)
    return tensors_of(out)


def touches_of(base: Path, patch: Path) -> tuple[Touch, ...]:
    source = Folder(base)
    new = Parameters(read_layout(source), read_json(source, "config.json"), "base")
    return map_updates(read_adapter(Folder(patch)).updates, new, None)


def merged(base: Path, patch: Path) -> Tensors:
    """Every touch as its docstring says, added in float64 to the bytes that it names."""
    layout, factors = read_layout(Folder(base)), tensors_of(patch, "adapter_model.safetensors")
    result = {name: tensor.double() for name, tensor in tensors_of(base).items()}
    for touch in touches_of(base, patch):
        pair, whole = touch.update, layout.tensors[touch.tensor.name]
        assert isinstance(pair, LoraPair)
        a, b = factors[pair.a.name].double(), factors[pair.b.name].double()
        if touch.expert is not None:
            a = a[touch.expert * pair.rank : (touch.expert + 1) * pair.rank]
            b = b[:, touch.expert :: pair.experts]
        delta = pair.scale * (b @ a)
        delta = delta.T if touch.transposed else delta
        rows = delta[touch.first_row : touch.first_row + touch.tensor.shape[0]]
        assert rows.shape == touch.tensor.shape
        size = (whole.end - whole.start) // result[whole.name].numel()
        start = (touch.tensor.start - whole.start) // size
        result[whole.name].view(-1)[start : start + rows.numel()] += rows.reshape(-1)
    return result


def assert_equal(have: Tensors, want: Tensors) -> None:
    assert have.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(have[name], tensor.double(), rtol=0, atol=1e-12, msg=name)


def save_family(folder: Path, family: str, **change: Any) -> Path:
    name, config, _, _ = FAMILIES[family]
    return save_model(folder, f"{name}ForCausalLM", copy.deepcopy(config) | change)


def lora_of(family: str, **lora: Any) -> dict[str, Any]:
    _, _, parameters, modules = FAMILIES[family]
    return {"target_parameters": parameters, "target_modules": modules, "r": 3} | lora
