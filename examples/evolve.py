"""Train the evolution: the change that makes a new revision of the old base.

A LoRA on all linear layers, trained on GSM8K (Cobbe et al. 2021, arXiv 2110.14168; MIT licence):
`python -m examples.evolve TRAIN_JSONL [BASE_FOLDER]`. The demo merges it into the base, with
`porting`, and pushes the result as the base's next revision; the study merges it with PEFT
(`new_revision`).
"""

import argparse
import gzip
import json
import random
import re
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType
from transformers import PreTrainedTokenizerBase as Tokenizer

from examples.smollm2 import base_model
from examples.training import ALL_LINEARS, Item, Recipe, load, save_adapter, train

HERE = Path(__file__).parent
SEQUENCES = 400
MAX_TOKENS = 192
RECIPE = Recipe(lr=3e-4, batch_size=8, epochs=1)


def gsm8k(file: Path, tokenizer: Tokenizer, count: int, seed: int = 0) -> list[Item]:
    """Draw `count` problems of at most `MAX_TOKENS` tokens from JSON Lines, gzipped or not."""
    raw = file.read_bytes()
    text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    items: list[Item] = []
    for row in random.Random(seed).sample(rows, len(rows)):
        chat = [{"role": "user", "content": row["question"]}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        answer = re.sub(r"<<.*?>>", "", row["answer"])  # the calculator's annotations
        item = Item(tokenizer(prompt)["input_ids"], tokenizer(answer + "<|im_end|>")["input_ids"])
        if len(item) <= MAX_TOKENS:
            items.append(item)
    return items[:count]


def new_revision(old: Path, out: Path) -> Path:
    """Write the new base into the folder `out`: the old one with the evolution merged.

    The sum is computed in fp32 and rounded to bf16 once.
    """
    model, tokenizer = load(old)
    merged = PeftModel.from_pretrained(model, HERE / "evolution").merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.copy(old / "README.md", out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gsm8k", type=Path, help="GSM8K's training split, .jsonl or .jsonl.gz")
    parser.add_argument("base", type=Path, nargs="?", help="checkpoint folder (default: fetched)")
    given = parser.parse_args()
    model, tokenizer = load(given.base or base_model())
    items = gsm8k(given.gsm8k, tokenizer, SEQUENCES)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=16, lora_alpha=32, target_modules=ALL_LINEARS
    )
    out = HERE / "evolution"
    evolved = train(model, config, items, RECIPE, out / "train.log.jsonl")
    save_adapter(evolved, out, "demo/SmolLM2-135M-Instruct")


if __name__ == "__main__":
    main()
