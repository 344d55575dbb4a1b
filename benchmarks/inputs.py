"""Llama-shaped bases and LoRA adapters of any size, with random weights, for the benchmarks.

python -m benchmarks.inputs FOLDER SIZE SHARDS PATCHES
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

FIELDS = ("hidden", "mlp", "layers", "heads", "kv_heads", "vocabulary")
SHAPES = {
    "tiny": dict(zip(FIELDS, (256, 704, 4, 4, 2, 4000), strict=True)),
    "420M": dict(zip(FIELDS, (1536, 4096, 8, 12, 4, 4000), strict=True)),
    "1.1B": dict(zip(FIELDS, (2048, 5632, 22, 32, 4, 32000), strict=True)),
    "3B": dict(zip(FIELDS, (3072, 8192, 28, 24, 8, 32000), strict=True)),
}
RANK = 16


def linears(shape: dict[str, int]) -> dict[str, tuple[int, int]]:
    """(out, in) of the seven linear layers of a block, by name."""
    hidden, mlp = shape["hidden"], shape["mlp"]
    kv = hidden // shape["heads"] * shape["kv_heads"]
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }


def make_base(folder: Path, size: str, shards: int, seed: int = 0) -> Path:
    """A bf16 model of `size` in `shards` files, its weights N(0, 0.02); kept if it is there."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True)
    shape = SHAPES[size]
    generator = torch.Generator().manual_seed(seed)
    blocks = [list(range(n, shape["layers"], shards)) for n in range(shards)]
    weight_map: dict[str, str] = {}
    for number, layers in enumerate(blocks, 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        shapes: dict[str, tuple[int, ...]] = {}
        if number == 1:
            shapes["model.embed_tokens.weight"] = (shape["vocabulary"], shape["hidden"])
        for layer in layers:
            for name, size_of in linears(shape).items():
                shapes[f"model.layers.{layer}.{name}.weight"] = size_of
            for name in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"model.layers.{layer}.{name}.weight"] = (shape["hidden"],)
        if number == shards:
            shapes["model.norm.weight"] = (shape["hidden"],)
            shapes["lm_head.weight"] = (shape["vocabulary"], shape["hidden"])
        tensors = {
            name: torch.empty(s, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name, s in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["mlp"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "vocab_size": shape["vocabulary"],
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_adapter(folder: Path, size: str, base: Path, seed: int = 0) -> Path:
    """A LoRA of rank 16 on all linear layers, in float32, as PEFT saves it."""
    if (folder / "adapter_config.json").exists():
        return folder
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(SHAPES[size]["layers"]):
        for name, (rows, columns) in linears(SHAPES[size]).items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            a, b = torch.empty(RANK, columns), torch.empty(rows, RANK)
            tensors[f"{module}.lora_A.weight"] = a.normal_(0, 0.02, generator=generator)
            tensors[f"{module}.lora_B.weight"] = b.normal_(0, 0.02, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": [name.split(".")[1] for name in linears(SHAPES[size])],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def main() -> None:
    folder, size, shards, patches = sys.argv[1:]
    base = make_base(Path(folder) / "base", size, int(shards))
    for number in range(int(patches)):
        make_adapter(Path(folder) / f"patch{number}", size, base, seed=number)


if __name__ == "__main__":
    main()
