"""Tiny random models and adapters for tests: by Transformers and PEFT, or tensor by tensor."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from porting import Folder, read_layout

VOCABULARY = 96
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}
LORA_CONFIG = {
    "peft_type": "LORA",
    "base_model_name_or_path": "demo/base",
    "revision": None,
    "r": 4,
    "lora_alpha": 8,
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "init_lora_weights": True,
    "modules_to_save": None,
    "target_modules": None,
}


def config_of(family: str, tied: bool = False) -> PreTrainedConfig:
    """Hidden size 32 (48 inside the MLP of Llama and GPT-NeoX), 2 layers, 4 heads."""
    common = {"vocab_size": VOCABULARY, "tie_word_embeddings": tied, "bos_token_id": 1}
    if family == "gpt2":
        return GPT2Config(**common, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    if family == "gpt_neox":
        return GPTNeoXConfig(**common, **size, num_attention_heads=4)
    return LlamaConfig(**common, **size, num_attention_heads=4, num_key_value_heads=2)


def save_base(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    shard_size: str = "5GB",
) -> Path:
    """Save a random model of one family, all weights N(0, 0.3); return the folder."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(family, tied))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def save_tokenizer(folder: Path) -> Path:
    """Save a tokenizer of the words `w0` to `w94` (ids 1 to 95); every other word is id 0."""
    words = {"[unk]": 0} | {f"w{number}": number + 1 for number in range(VOCABULARY - 1)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[unk]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[unk]", pad_token="[unk]", eos_token="[unk]"
    )
    fast.save_pretrained(folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    """Load a saved model in the dtype it was saved in."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def save_adapter(
    folder: Path, base: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **lora: Any
) -> Path:
    """Save a random LoRA adapter of `base`, A and B both N(0, 0.3); return the folder."""
    model = load(base)
    lora.setdefault("target_modules", TARGETS[model.config.model_type])
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape).mul(0.3).to(dtype)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()  # PEFT's: it names a folder as the base, which no Hub takes
    return folder


def tensors_of(folder: Path, single: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """All tensors of a model, in whatever files its index names."""
    files = read_layout(Folder(folder), single).files
    return {name: t for file in files for name, t in load_file(folder / file).items()}


def load_adapted(base: Path, patch: Path) -> PeftModel:
    """The base with the adapter beside it, as PEFT loads it."""
    return PeftModel.from_pretrained(load(base), patch).eval()


def raw_base(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """Save tensors as a base model without a class; `config` is written to config.json."""
    folder.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "none"} | config))
    return folder


def raw_adapter(folder: Path, shapes: dict[str, tuple[int, int]], **config: Any) -> Path:
    """Save a random adapter of rank 4 for modules of shape (out, in), without any base."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(4, columns)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, 4)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(LORA_CONFIG | config))
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    """Change fields of a JSON object on disk."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
