"""Is the merged checkpoint what base + adapter are? A fixed batch through both, and their files."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from judging.device import DEVICE
from judging.evidence import Probe
from judging.guard import guard
from judging.model import Loaded, Models
from porting import Folder, read_layout

TEXTS, TOKENS = 8, 64
# By what the checkpoint stores, since merged weights are rounded to it. Measured on SmolLM2-135M
# in float32: a right merge differs by 0.006 (0.011 if its patch is so weak that a third of it is
# rounded away), 0.0006 and 0.000004; one with 0.95, 0.9, 0.5 or none of the patch by 0.14, 0.20,
# 0.66 and 1.3.
BOUNDS = {"BF16": 0.03, "F16": 0.003, "F32": 0.0005}
# Computing in 16 bits alone makes 0.14, so that only half a patch or less is found out.
BOUND_16_BIT = 0.3
IGNORED = ("transformers_version", "_from_model_config")  # of a generation config


def probe(models: Models, base: Path, adapter: Path, merged: Path) -> Probe:
    """Compare `merged`, loaded from its bytes, with `base` + `adapter`, unmerged."""
    with models.on(base, adapter) as patched:
        wanted = _logits(patched)
    with models.on(merged) as loaded:
        found = _logits(loaded)
        is_exact = loaded.model.dtype == torch.float32
    stored = {tensor.dtype for tensor in read_layout(Folder(merged)).tensors.values()}
    bound = max(BOUNDS[dtype] for dtype in {"F32", *stored} & set(BOUNDS))
    if not is_exact:
        bound = BOUND_16_BIT
    spread = (wanted - wanted.mean(dim=-1, keepdim=True)).square().mean().sqrt()
    difference = float((found - wanted).square().mean().sqrt() / spread)
    return Probe(difference=difference, bound=bound)


@torch.no_grad()
def _logits(loaded: Loaded) -> torch.Tensor:
    """float32 [tokens of all texts, vocabulary]."""
    text = guard()[0]
    rows = []
    for item in sorted(text.items, key=lambda item: item.number)[:TEXTS]:
        ids = loaded.tokenizer(item.query, return_tensors="pt")["input_ids"][:, :TOKENS]
        rows.append(loaded.model(input_ids=ids.to(DEVICE)).logits[0].float().cpu())
    return torch.cat(rows)


def faults(models: Models, base: Path, merged: Path) -> list[str]:
    """What of `merged` is not as in `base`, though no patch may change it; one sentence each."""
    # Not those that were asked: lm-eval gives them a padding token.
    wanted, found = (AutoTokenizer.from_pretrained(folder) for folder in (base, merged))
    with models.on(merged) as loaded:
        rows = loaded.model.get_input_embeddings().weight.shape[0]
    facts = {
        "vocabulary": (wanted.get_vocab(), found.get_vocab()),
        "special tokens": (wanted.special_tokens_map, found.special_tokens_map),
        "chat template": (wanted.chat_template, found.chat_template),
        "end of sequence": tuple(_ends(folder) for folder in (base, merged)),
        "generation config": tuple(
            _config(folder, "generation_config.json") for folder in (base, merged)
        ),
    }
    changed = [f"its {what} is not the new base's" for what, (a, b) in facts.items() if a != b]
    if max(found.get_vocab().values(), default=0) >= rows:
        changed.append(f"its tokenizer knows more tokens than its embedding has rows ({rows})")
    return changed


def _ends(folder: Path) -> Any:
    return _config(folder, "config.json").get("eos_token_id")


def _config(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        return {}
    found = json.loads((folder / name).read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in IGNORED}
