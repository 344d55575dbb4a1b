"""One base in memory; adapters are attached to it and detached again. Runs where models may."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from judging.device import DEVICE

# On a CPU, products of 16-bit numbers are slower and less exact than those of 32 bits.
DTYPE: Any = torch.float32 if DEVICE == "cpu" else "auto"


@dataclass(frozen=True)
class Loaded:
    """A model that can be asked. `name` says which in messages, as `judging.arms` does."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    name: str = "the model"


class Models:
    """Loads a base once and keeps it until another one is wanted."""

    def __init__(self) -> None:
        self.base: Path | None = None
        self._bare: Any = None
        self._tokenizer: Any = None

    @contextmanager
    def on(self, base: Path, adapter: Path | None = None) -> Iterator[Loaded]:
        """`base`, with `adapter` (unmerged) while the block runs. fp32 on a CPU, else as stored."""
        if base != self.base:
            self._load(base)
        if adapter is None:
            yield Loaded(self._bare, self._tokenizer)
            return
        before = _state(self._bare)
        patched: Any = PeftModel.from_pretrained(self._bare, adapter).train(False)
        patched.tie_weights = lambda: None  # lm-eval would tie again what the patch has untied
        try:
            yield Loaded(patched, self._tokenizer)
        finally:
            unload = getattr(patched, "unload", None)  # prompt tuning changes no module
            self._bare = unload() if unload else patched.get_base_model()
            if _state(self._bare) != before:
                self.base = None  # whole modules and biases of a patch are left behind by PEFT

    def _load(self, base: Path) -> None:
        self.base, self._bare = None, None  # the one before makes room first
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=DTYPE, use_safetensors=True)
        self._bare = model.to(DEVICE).train(False)
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self.base = base


def _state(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Where each tensor lies in memory, and how often it was written to."""
    tensors = model.state_dict(keep_vars=True)
    return {name: (value.data_ptr(), value._version) for name, value in tensors.items()}
