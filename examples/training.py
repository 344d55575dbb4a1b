"""Small helpers shared by the training scripts: items, batches, one loop, scores. Plain PyTorch."""

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

ALL_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Item:
    """Token ids of a prompt and of the answer whose loss counts."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained."""

    lr: float
    batch_size: int
    epochs: int
    seed: int = 0
    warmup: float = 0.1  # share of the steps


def load(folder: Path) -> tuple[PreTrainedModel, Tokenizer]:
    """Load a checkpoint in fp32: on a CPU, bf16 products are about four times slower."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def batches(items: Sequence[Item], size: int, rng: random.Random) -> Iterator[list[Item]]:
    """Shuffled batches of items of about the same length, so that little is padding."""
    order = sorted(rng.sample(items, len(items)), key=len)
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    yield from rng.sample(groups, len(groups))


def padded(rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, int64 [rows, longest].

    The padding is on the right, where causal attention never looks.
    """
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids, mask


def losses(model: torch.nn.Module, batch: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the negative log-likelihoods of each answer, fp32 [batch], and its tokens [batch]."""
    ids, mask = padded([item.prompt + item.answer for item in batch])
    width = ids.shape[1]
    labels = torch.full_like(ids, -100)
    for row, item in enumerate(batch):
        labels[row, len(item.prompt) : len(item)] = torch.tensor(item.answer)
    # The vocabulary is the widest layer of a small model: logits only where an answer may be.
    keep = width - min(len(item.prompt) for item in batch) + 1
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=keep).logits[:, :-1]
    labels = labels[:, width - keep + 1 :]
    per_token = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return per_token.sum(dim=1), (labels != -100).sum(dim=1)


@torch.no_grad()
def score(model: torch.nn.Module, items: Sequence[Item], size: int = 16) -> list[tuple[float, int]]:
    """Negative log-likelihood (nats) and number of tokens of every item's answer, in order."""
    model.eval()
    order = sorted(range(len(items)), key=lambda index: len(items[index]))
    result: list[tuple[float, int]] = [(0.0, 0)] * len(items)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        sums, counts = losses(model, [items[index] for index in chosen])
        for index, total, count in zip(chosen, sums.tolist(), counts.tolist(), strict=True):
            result[index] = (total, count)
    return result


def optimiser_of(
    trained: list[torch.nn.Parameter], recipe: Recipe, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW without weight decay; the rate rises linearly over the warm-up, then falls to zero."""
    warm = max(1, round(steps * recipe.warmup))
    optimiser = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    return optimiser, schedule


def train(
    base: PreTrainedModel, config: LoraConfig, items: Sequence[Item], recipe: Recipe, log: Path
) -> PeftModel:
    """Train a LoRA adapter on `base`, and write a line per step to `log`.

    The loss is the mean over a batch's answer tokens.
    """
    torch.set_num_threads(2)
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    model = get_peft_model(base, config)
    model.train()
    steps = recipe.epochs * -(-len(items) // recipe.batch_size)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser, schedule = optimiser_of(trained, recipe, steps)
    began = time.monotonic()
    plan = (batch for _ in range(recipe.epochs) for batch in batches(items, recipe.batch_size, rng))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        for step, batch in enumerate(plan, start=1):
            sums, counts = losses(model, batch)
            loss = sums.sum() / counts.sum()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            rate = schedule.get_last_lr()[0]
            schedule.step()
            line = {
                "step": step,
                "of": steps,
                "loss": round(loss.item(), 4),
                "lr": rate,
                "seconds": round(time.monotonic() - began),
            }
            print(json.dumps(line), file=stream, flush=True)
    model.eval()
    return model


def save_adapter(model: PeftModel, folder: Path, base: str) -> None:
    """Write the adapter in PEFT's format, with bf16 tensors and `base` as the base's name."""
    folder.mkdir(parents=True, exist_ok=True)
    config = cast(LoraConfig, model.peft_config["default"])
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules or ())  # a set has no order of its own
    config.save_pretrained(str(folder))
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
