"""Train the patch: a LoRA that teaches a base to route support tickets.

`python -m examples.train_patch [BASE_FOLDER]` writes `examples/patch/`. With `--check` it trains on
four fifths of the training tickets, scores the rest, and writes nothing but its log: that is how
the hyperparameters were chosen. The held-out tickets are never read here.
"""

import argparse
import tempfile
from pathlib import Path

from peft import LoraConfig, PeftModel, TaskType
from transformers import PreTrainedModel

from examples.routing import Routing, Ticket, accuracy, route, routing, tickets
from examples.smollm2 import base_model
from examples.training import Recipe, load, save_adapter, train

HERE = Path(__file__).parent
RECIPE = Recipe(lr=1e-3, batch_size=8, epochs=3)


def train_patch(
    base: PreTrainedModel, task: Routing, items: list[Ticket], log: Path, recipe: Recipe = RECIPE
) -> PeftModel:
    """Train the patch's LoRA on `base`; the loss is on the label's token only."""
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]
    )
    return train(base, config, [task.item(ticket) for ticket in items], recipe, log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, nargs="?", help="checkpoint folder (default: fetched)")
    parser.add_argument("--check", action="store_true", help="score a split of the training data")
    given = parser.parse_args()
    base, tokenizer = load(given.base or base_model())
    task, items = routing(tokenizer), tickets("train.jsonl")
    if not given.check:
        out = HERE / "patch"
        model = train_patch(base, task, items, out / "train.log.jsonl")
        save_adapter(model, out, "demo/SmolLM2-135M-Instruct")
        return
    kept, left = items[128:], items[:128]
    print(f"zero-shot accuracy on {len(left)} tickets: {accuracy(route(base, task, left), left)}")
    with tempfile.TemporaryDirectory() as scratch:
        model = train_patch(base, task, kept, Path(scratch) / "train.log.jsonl")
    print(f"after training on {len(kept)}: {accuracy(route(model, task, left), left)}")


if __name__ == "__main__":
    main()
