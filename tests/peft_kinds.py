"""Tiny adapters of every kind that PEFT 0.21 trains, saved by PEFT itself."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_config, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.tiny import TARGETS, config_of

# (kind, family, config); what follows trains a delta that is nothing like zero.
ADDITIVE: list[tuple[str, str, dict[str, Any]]] = [
    ("ADALORA", "llama", {"init_r": 6, "lora_alpha": 7, "total_step": 10}),
    ("ADALORA", "gpt2", {"init_r": 6, "lora_alpha": 7, "total_step": 10}),
    ("BEFT", "llama", {"target_modules": ["q_proj", "v_proj"]}),
    ("C3A", "llama", {"block_size": 16, "block_size_pattern": {"q_proj": 8}}),
    ("DELORA", "llama", {"r": 4, "rank_pattern": {"q_proj": 3}}),
    ("FOURIERFT", "llama", {"n_frequency": 50, "random_loc_seed": 5}),
    ("FOURIERFT", "gpt2", {"n_frequency": 50, "n_frequency_pattern": {"c_fc": 30}}),
    ("GRALORA", "llama", {"r": 4, "hybrid_r": 2}),
    ("GRALORA", "gpt2", {"r": 4}),
    ("LOHA", "llama", {"r": 4, "alpha": 6, "rank_pattern": {"q_proj": 3}}),
    ("LOHA", "llama", {"r": 4, "alpha_pattern": {"layers.1.*k_proj": 2}}),
    ("LOKR", "llama", {"r": 2, "alpha": 6, "decompose_both": True}),
    ("LOKR", "llama", {"r": 4, "rank_pattern": {"q_proj": 30, "up_proj": 1}}),
    ("PVERA", "llama", {"r": 5}),
    ("PVERA", "gpt2", {"r": 5, "save_projection": False}),
    ("RANDLORA", "llama", {"r": 5}),
    ("RANDLORA", "gpt2", {"r": 5}),
    ("RANDLORA", "llama", {"r": 5, "save_projection": False, "sparse": True}),
    ("RANDLORA", "gpt2", {"r": 5, "save_projection": False, "very_sparse": True}),
    ("SHIRA", "llama", {"r": 2}),
    ("SUPERTUNING", "llama", {"sparsity": 0.9}),
    ("SUPERTUNING", "llama", {"sparsity": 0.9, "r": 3}),
    ("VBLORA", "gpt2", {"r": 2, "num_vectors": 20, "vector_length": 8}),
    (
        "VBLORA",
        "llama",
        {"r": 2, "num_vectors": 20, "vector_length": 8, "save_only_topk_weights": True},
    ),
    ("VERA", "llama", {"r": 5}),
    ("VERA", "gpt2", {"r": 5, "save_projection": False, "projection_prng_key": 7}),
    ("WAVEFT", "llama", {"n_frequency": 50, "wavelet_family": "db2"}),
    ("WAVEFT", "llama", {"n_frequency": 40, "proportional_parameters": True, "use_idwt": False}),
]
OPERATORS: list[tuple[str, str, dict[str, Any]]] = [
    ("BOFT", "llama", {"boft_block_size": 8}),
    ("DEFT", "llama", {"r": 4, "alpha": 8, "decomposition_method": "qr"}),
    ("DEFT", "gpt2", {"r": 4, "para": True}),
    ("GLORA", "llama", {"r": 3, "target_modules": ["up_proj", "down_proj"]}),
    ("GLORA", "llama", {"config_A_B": "vector", "target_modules": ["up_proj"]}),
    ("GLORA", "llama", {"config_A_B": "constant", "target_modules": ["up_proj"]}),
    ("HIRA", "gpt2", {"r": 3}),
    ("HIRA", "llama", {"r": 3, "target_modules": ["q_proj", "embed_tokens"]}),
    ("HRA", "llama", {"r": 3}),
    ("HRA", "llama", {"r": 4, "apply_GS": True}),
    ("IA3", "llama", {"feedforward_modules": ["down_proj"]}),
    ("IA3", "gpt2", {"feedforward_modules": ["mlp.c_proj"], "target_modules": ["mlp.c_proj"]}),
    ("LORA", "llama", {"r": 4, "use_dora": True}),
    ("LORA", "gpt2", {"r": 4, "use_dora": True, "use_rslora": True}),
    ("LORA", "llama", {"r": 4, "use_dora": True, "target_modules": ["embed_tokens"]}),
    ("MISS", "llama", {"r": 5}),
    ("MISS", "llama", {"r": 8, "init_weights": "bat"}),
    ("MISS", "llama", {"r": 8, "init_weights": "mini", "mini_r": 4}),
    ("OFT", "llama", {"oft_block_size": 8}),
    ("OFT", "llama", {"r": 4, "oft_block_size": 0, "coft": True, "eps": 0.1}),
    ("OFT", "llama", {"oft_block_size": 16, "block_share": True, "use_cayley_neumann": False}),
    ("OSF", "llama", {"effective_rank": 20}),
    ("PEANUT", "llama", {"r": 4, "depth": 2, "act_fn": "gelu"}),
    ("ROAD", "llama", {"group_size": 8, "variant": "road_4"}),
    ("ROAD", "llama", {"group_size": 4}),
]


def tiny_model(family: str) -> PreTrainedModel:
    """The same random model at every call; the Llama one has biases in its attention."""
    config = config_of(family)
    config.attention_bias = True
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def adapted(model: nn.Module, kind: str, **fields: Any) -> PeftModel:
    """`model` with a random adapter: what PEFT would train is moved by N(0, 0.3)."""
    torch.manual_seed(2)
    model = get_peft_model(model, get_peft_config({"peft_type": kind, **fields}))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape) * 0.3
    return model.eval()


def save_kind(folder: Path, kind: str, family: str, **fields: Any) -> dict[str, torch.Tensor]:
    """Save a random adapter; return what PEFT makes of the model when it loads and merges it."""
    fields.setdefault("target_modules", TARGETS[family])
    adapted(tiny_model(family), kind, **fields).save_pretrained(folder)
    loaded = PeftModel.from_pretrained(tiny_model(family), folder)
    return loaded.merge_and_unload().state_dict()
