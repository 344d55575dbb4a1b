"""Does the port work? The patch on the old base and on the new one, on the held-out tickets.

`python -m examples.study GSM8K_TEST_JSONL WORK_FOLDER` writes `examples/results.json` and the
tables in `examples/README.md`; what it trains stays in the work folder, to be used again. The port
is W_new + (alpha / r) B A, with the A and B trained on the old base (arXiv 2410.10870); it is
compared with a refit: the same training, done again on the new base.
"""

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peft import PeftModel
from scipy.stats import binomtest, bootstrap
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from examples.evolve import gsm8k, new_revision
from examples.routing import route, routing, tickets
from examples.smollm2 import base_model
from examples.train_patch import RECIPE, train_patch
from examples.training import load, save_adapter, score

HERE = Path(__file__).parent
SEEDS = (0, 1)
PROBLEMS = 100
START, END = "<!-- results -->\n", "<!-- end of results -->\n"
Hits = npt.NDArray[np.float64]


def patched(base: Path, adapter: Path | None) -> tuple[nn.Module, Tokenizer]:
    model, tokenizer = load(base)
    return (PeftModel.from_pretrained(model, adapter) if adapter else model), tokenizer


def hits(base: Path, adapter: Path | None = None) -> Hits:
    """1.0 for each held-out ticket that reaches its team, else 0.0: float64 [tickets]."""
    model, tokenizer = patched(base, adapter)
    items = tickets("heldout.jsonl")
    answers = route(model, routing(tokenizer), items)
    return np.array([float(a == t.team) for a, t in zip(answers, items, strict=True)])


def perplexity(base: Path, problems: Path, adapter: Path | None = None) -> float:
    """Perplexity per token of the answers of GSM8K problems."""
    model, tokenizer = patched(base, adapter)
    scores = score(model, gsm8k(problems, tokenizer, PROBLEMS))
    return math.exp(sum(nll for nll, _ in scores) / sum(tokens for _, tokens in scores))


def fit(base: Path, seed: int, out: Path) -> Path:
    """Train the patch on `base` with `seed`, unless `out` has it; return the adapter's folder."""
    if (out / "adapter_model.safetensors").exists():
        return out
    model, tokenizer = load(base)
    recipe = dataclasses.replace(RECIPE, seed=seed)
    items = tickets("train.jsonl")
    trained = train_patch(model, routing(tokenizer), items, out / "train.log.jsonl", recipe)
    save_adapter(trained, out, str(base))
    return out


def rate(correct: Hits) -> dict[str, Any]:
    """Accuracy with Wilson's 95 % interval."""
    low, high = binomtest(int(correct.sum()), correct.size).proportion_ci(method="wilson")
    return {"correct": int(correct.sum()), "of": correct.size, "interval": [low, high]}


def difference(one: Hits, other: Hits) -> dict[str, Any]:
    """Mean paired difference in accuracy with its 95 % interval (percentile bootstrap)."""
    paired = one - other
    drawn = bootstrap((paired,), np.mean, method="percentile", rng=np.random.default_rng(0))
    return {"mean": float(paired.mean()), "interval": list(drawn.confidence_interval)}


def measure(problems: Path, work: Path) -> dict[str, Any]:
    """Score every arm. The committed patch is seed 0; the other seeds are trained in `work`."""
    old = base_model()
    new = new_revision(old, work / "new")
    arms = {"old base": hits(old), "new base": hits(new)}
    seeds = []
    for seed in SEEDS:
        patch = fit(old, seed, work / f"patch-{seed}") if seed else HERE / "patch"
        refit = fit(new, seed, work / f"refit-{seed}")
        scored = {
            "old base + patch": hits(old, patch),
            "new base + ported patch": hits(new, patch),
            "new base + refit": hits(new, refit),
        }
        seeds.append({"seed": seed} | {arm: float(found.mean()) for arm, found in scored.items()})
        if seed == 0:
            arms |= scored
    ported, patch = arms["new base + ported patch"], HERE / "patch"
    pairs = ("old base + patch", "new base + refit", "new base")
    return {
        "date": f"{date.today():%Y-%m}",
        "machine": f"{os.cpu_count()} cores, no GPU",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "arms": {arm: rate(found) for arm, found in arms.items()},
        "ported patch minus": {arm: difference(ported, arms[arm]) for arm in pairs},
        "seeds": seeds,
        "gsm8k perplexity": {
            "old base": perplexity(old, problems),
            "old base + patch": perplexity(old, problems, patch),
            "new base": perplexity(new, problems),
            "new base + ported patch": perplexity(new, problems, patch),
            "new base + refit": perplexity(new, problems, work / "refit-0"),
        },
    }


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    used = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    perplexities = results["gsm8k perplexity"]
    arms = [
        [
            arm,
            f"{percent(found['correct'] / found['of'])} ({found['correct']}/{found['of']})",
            " to ".join(map(percent, found["interval"])),
            f"{perplexities[arm]:.2f}",
        ]
        for arm, found in results["arms"].items()
    ]
    differences = [
        [
            f"ported patch minus {arm}",
            percent(found["mean"]),
            " to ".join(map(percent, found["interval"])),
        ]
        for arm, found in results["ported patch minus"].items()
    ]
    names = [name for name in results["seeds"][0] if name != "seed"]
    seeds = [
        [str(row["seed"]), *(percent(row[name]) for name in names)] for row in results["seeds"]
    ]
    return "\n".join(
        [
            f"Measured in {results['date']} on {results['machine']} with {used}.\n",
            table(["arm", "accuracy, %", "95 % interval", "GSM8K perplexity"], arms),
            table(["paired difference, points", "mean", "95 % interval"], differences),
            table(["seed", *names], seeds),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gsm8k", type=Path, help="GSM8K's test split, .jsonl or .jsonl.gz")
    parser.add_argument("work", type=Path, help="folder for the new base and the refits")
    given = parser.parse_args()
    results = measure(given.gsm8k, given.work)
    text = json.dumps(results, indent=2) + "\n"
    (HERE / "results.json").write_text(text, encoding="utf-8")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{START}\n{tables(results)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
