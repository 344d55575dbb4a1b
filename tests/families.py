"""Tiny random models of many families, as Transformers saves them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

COMMON = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = {**SIZE, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# family: (config class, model class, config, linear layers)
FAMILIES: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", DECODER | {"attention_bias": True}, LLAMA),
    "mistral": ("MistralConfig", "MistralForCausalLM", DECODER, LLAMA),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", DECODER, LLAMA),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", DECODER, LLAMA),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", DECODER, LLAMA),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", DECODER, LLAMA),
    "phi3": (
        "Phi3Config",
        "Phi3ForCausalLM",
        DECODER,
        ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        ["c_attn", "c_proj", "c_fc"],
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        SIZE | {"intermediate_size": 48},
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    ),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        SIZE | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
        ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    ),
    "falcon": (
        "FalconConfig",
        "FalconForCausalLM",
        SIZE,
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        DECODER | {"num_local_experts": 4},
        ["q_proj", "k_proj", "v_proj", "o_proj"],
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        DECODER | EXPERTS,
        ["q_proj", "k_proj", "v_proj", "o_proj"],
    ),
    "bert": (
        "BertConfig",
        "BertForMaskedLM",
        SIZE | {"intermediate_size": 48, "max_position_embeddings": 64},
        ["query", "key", "value", "dense"],
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        ["q", "k", "v", "o", "wi", "wo"],
    ),
}


def save_family(
    folder: Path,
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    shard_size: str = "5GB",
    seed: int = 0,
) -> Path:
    """Save a random model, all weights N(0, 0.3); return the folder."""
    config_class, model_class, sizes, _ = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**COMMON | sizes | {"tie_word_embeddings": tied})
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def load_family(folder: Path, family: str, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    model: PreTrainedModel = getattr(transformers, FAMILIES[family][1]).from_pretrained(
        folder, dtype=dtype
    )
    return model.eval()
