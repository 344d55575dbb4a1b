"""Train every patch, evolution and refit of the study, in the order of what they tell.

`python -m benchmarks.portability.train DATA WORK`. What is there is not trained again. Adapters are
trained as usual: a frozen bf16 base, the factors in fp32; a full evolution has fp32 weights and
bf16 products (autocast).
"""

import argparse
import contextlib
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from benchmarks.portability.bases import TRAINED, model, new_base, put
from benchmarks.portability.tasks import TASKS, split, training
from examples.smollm2 import base_model
from examples.training import (
    ALL_LINEARS,
    Item,
    Recipe,
    batches,
    optimiser_of,
    padded,
    save_adapter,
)

# "patch", or "patch@base" for a refit, or an evolution's name
QUEUE = [
    "sst2-0",
    "sst2-weak",
    "c4-full",
    "sst2-0@c4-full",
    "sst2-0@gsm8k",
    "t0-long",
    "tickets-0@c4-full",
    "sst2-0@t0-long",
    "sst2-1",
    "rte-0",
    "wnli-0",
    "tickets-0@gsm8k",
    "sst2-0@gsm8k-x6",
    "wikitext-full",
    "sst2-0@wikitext-full",
    "rte-0@c4-full",
    "tickets-0@t0-long",
    "rte-0@gsm8k",
    "boolq-0",
    "sst2-0@noise-20",
    "tickets-1",
    "tickets-1@c4-full",
    "sst2-1@c4-full",
    "rte-0@t0-long",
    "rte-1",
    "tickets-0@wikitext-full",
    "t0-short",
]
PIECE = 128  # tokens


def answer_loss(net: nn.Module, batch: Sequence[Item]) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens, computed at their positions only.

    The width is a multiple of 8: every other shape would be compiled once more.
    """
    ids, mask = padded([item.prompt + item.answer for item in batch])
    extra = (0, -ids.shape[1] % 8)
    ids, mask = nn.functional.pad(ids, extra), nn.functional.pad(mask, extra)
    inner = net.base_model.model if hasattr(net, "peft_config") else net
    hidden = inner.model(input_ids=ids, attention_mask=mask).last_hidden_state
    at = [
        (row, len(item.prompt) + k - 1, token)
        for row, item in enumerate(batch)
        for k, token in enumerate(item.answer)
    ]
    row, column, token = torch.tensor(at).T
    return cross_entropy(inner.lm_head(hidden[row, column]).float(), token)


def fit(net: nn.Module, items: Sequence[Item], recipe: Recipe, log: Path) -> None:
    """`examples.training.train` on one thread: AdamW, linear warm-up and decay."""
    rng = random.Random(recipe.seed)
    steps = recipe.epochs * -(-len(items) // recipe.batch_size)
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    optimiser, schedule = optimiser_of(trained, recipe, steps)
    full = next(net.parameters()).dtype == torch.float32
    cast = torch.autocast("cpu", torch.bfloat16) if full else contextlib.nullcontext()
    began, step = time.monotonic(), 0
    net.train()
    with log.open("w", encoding="utf-8") as stream:
        for _ in range(recipe.epochs):
            for batch in batches(items, recipe.batch_size, rng):
                with cast:
                    loss = answer_loss(net, batch)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimiser.step()
                optimiser.zero_grad()
                schedule.step()
                step += 1
                line = {"step": step, "of": steps, "loss": round(loss.item(), 4)}
                line["seconds"] = round(time.monotonic() - began)
                print(json.dumps(line), file=stream, flush=True)


def pieces(texts: Sequence[str], tokenizer: Tokenizer, count: int, length: int) -> list[Item]:
    """`count` pieces of `length` tokens; every token but the first counts."""
    found: list[Item] = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids) - length + 1, length):
            piece = ids[start : start + length]
            found.append(Item(piece[:1], piece[1:]))
    return random.Random(0).sample(found, count)


def corpus(name: str, data: Path, tokenizer: Tokenizer) -> list[Item]:
    if name == "c4-full":  # the last 60 documents are the guard's
        texts = [row["text"] for row in split(data, "c4_demo/train")[:240]]
        return pieces(texts, tokenizer, 480, PIECE)
    if name == "wikitext-full":
        texts = [row["text"] for row in split(data, "wikitext2/train")]
        return pieces(texts, tokenizer, 200, PIECE)
    drawn = random.Random(0).sample(split(data, "t0_flan/train"), 2000)
    items = [
        Item(tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"])["input_ids"])
        for row in drawn
    ]
    short = [item for item in items if len(item) <= PIECE and item.answer and item.prompt]
    return short[: 100 if name == "t0-short" else 320]


def evolve(name: str, data: Path, out: Path, tokenizer: Tokenizer) -> None:
    net, items = model(), corpus(name, data, tokenizer)
    if name.endswith("-full"):
        lr = 1e-4 if name == "c4-full" else 3e-4
        fit(net, items, Recipe(lr=lr, batch_size=8, epochs=1), out / "train.log.jsonl")
        state = {n: w.detach().to(torch.bfloat16) for n, w in net.named_parameters()}
        save_file(state, out / "model.safetensors")
        return
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=16, lora_alpha=32, target_modules=ALL_LINEARS
    )
    adapted = get_peft_model(net.to(torch.bfloat16), config)
    fit(adapted, items, Recipe(lr=3e-4, batch_size=8, epochs=1), out / "train.log.jsonl")
    save_adapter(adapted, out, "old")


def patch(name: str, data: Path, work: Path, out: Path, tokenizer: Tokenizer) -> None:
    """Train "TASK-SEED" on the old base, or "TASK-SEED@BASE" on another."""
    which, _, base = name.partition("@")
    task, seed = which.split("-")
    number = 0 if seed == "weak" else int(seed)
    items = TASKS[task].items(training(data, TASKS[task], number), tokenizer)
    if seed == "weak":
        items = items[:40]
    net = model().to(torch.bfloat16)
    put(net, new_base(base or "old", work))
    torch.manual_seed(number)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]
    )
    adapted = get_peft_model(net, config)
    recipe = Recipe(lr=1e-3, batch_size=8, epochs=TASKS[task].epochs, seed=number)
    fit(adapted, items, recipe, out / "train.log.jsonl")
    save_adapter(adapted, out, base or "old")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(base_model())
    given.work.mkdir(parents=True, exist_ok=True)
    for name in QUEUE:
        done = given.work / name
        if done.exists():
            continue
        out = given.work / f".{name}"
        out.mkdir(exist_ok=True)
        print(time.strftime("%H:%M:%S"), name, flush=True)
        if name in TRAINED:
            evolve(name, given.data, out, tokenizer)
        else:
            patch(name, given.data, given.work, out, tokenizer)
        out.rename(done)
    print(time.strftime("%H:%M:%S"), "done", flush=True)


if __name__ == "__main__":
    main()
