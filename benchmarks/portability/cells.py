"""Score every arm of every cell: one JSON per arm in the work folder, never scored twice.

`python -m benchmarks.portability.cells DATA WORK [--wait]`. An arm is (base, adapter or none); a
cell is a patch on a base: the old base, old + patch, the new base, the port and, where one was
trained, the refit. What has not been trained yet is left out; with `--wait` the run comes back to
it. All in fp32. A port is rounded to bf16 as its checkpoint would be; a patch on the old base and
a refit are not, as an attached adapter is not.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from benchmarks.portability import bases
from benchmarks.portability.bases import State, adapter, added, deltas, new_base, put
from benchmarks.portability.tasks import TASKS, Task, rows, split, training
from benchmarks.portability.train import QUEUE, pieces
from examples.smollm2 import base_model
from examples.training import Item, padded

SCALES = (0.0, 0.5, 1.0, 1.25)
SLICE_ITEMS = 32
CORE = ["gsm8k", "c4-full", "t0-long", "wikitext-full"]
FREE = ["gsm8k-x6", "permuted", "noise-20", "int4", "gsm8k-x3", "gsm8k-x10", "reverse"]
FREE += ["t0-long-x3", "noise-5", "t0-long-x6", "t0-short", "noise-1", "int8"]
MAIN = ["sst2-0", "tickets-0"]
# (bases, patches), in the order of what they tell
PLAN: list[tuple[list[str], list[str]]] = [
    (CORE[:3], MAIN),
    (["gsm8k", "c4-full"], ["boolq-0"]),
    (["gsm8k-x3"], MAIN),
    (["has-sst2-1"], ["sst2-0"]),
    (CORE[:3], ["sst2-weak", "rte-0"]),
    (FREE[:8], MAIN),
    (CORE[:3], ["wnli-0", "sst2-1", "tickets-1", "boolq-0"]),
    (CORE, MAIN),
    (CORE, ["rte-0", "tickets-1", "wnli-0", "sst2-1", "boolq-0", "rte-1"]),
    (FREE, [*MAIN, "sst2-weak"]),
    (["has-tickets-1"], ["tickets-0"]),
    (FREE, ["sst2-1", "wnli-0"]),
    (FREE, ["tickets-1", "rte-0"]),
]


class Bench:
    """One model in memory, whose weights become those of one arm after the other."""

    def __init__(self, data: Path, work: Path) -> None:
        self.data, self.work = data, work
        self.net: PreTrainedModel = bases.model().eval()
        self.tokenizer: Tokenizer = AutoTokenizer.from_pretrained(base_model())
        self.base, self.state = "", State()
        self.guards = guard_texts(data, self.tokenizer)
        self.heldout = {
            name: task.items(rows(data, task, "validation")[: task.scored], self.tokenizer)
            for name, task in TASKS.items()
        }

    def become(self, base: str, patch: str | None) -> None:
        """Put the arm's weights into the model."""
        if base != self.base:
            self.base, self.state = base, new_base(base, self.work)
        state = self.state
        if patch:
            exact = base == "old" or "@" in patch
            dtype = torch.float32 if exact else torch.bfloat16
            state = added(state, deltas(adapter(patch, self.work)), dtype=dtype)
        put(self.net, state)

    def arm(self, kind: str, base: str, patch: str | None, task: Task | None = None) -> None:
        """Measure one thing of one arm, unless it has been measured."""
        name = f"{task.name}.{patch or 'alone'}" if task else patch or "alone"
        file = self.work / "cells" / base / f"{kind}.{name}.json"
        if file.exists() or not self.trained(base, patch):
            return
        began = time.monotonic()
        if kind == "scores":
            self.become(base, patch)
            result: Any = likelihoods(
                self.net, self.heldout[task.name], task.label_ids(self.tokenizer)
            )
        elif kind == "guard":
            self.become(base, patch)
            result = perplexities(self.net, self.guards)
        else:
            self.become(base, None)
            items = task.items(training(self.data, task, 99)[:SLICE_ITEMS], self.tokenizer)
            labels = task.label_ids(self.tokenizer)
            result = line(self.net, self.state, deltas(adapter(patch, self.work)), items, labels)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(result), encoding="utf-8")
        partial.rename(file)
        seconds = round(time.monotonic() - began)
        print(time.strftime("%H:%M:%S"), base, kind, name, f"{seconds} s", flush=True)

    def trained(self, base: str, patch: str | None) -> bool:
        needs = [base.removeprefix("has-").partition("-x")[0]] if base != "old" else []
        needs = [name for name in (*needs, patch) if name in QUEUE]
        return all((self.work / name).exists() for name in needs)

    def cell(self, base: str, patch: str) -> None:
        task = TASKS[patch.split("-")[0]]
        refit = f"{patch}@{base}"
        arms = [("old", None), ("old", patch), (base, None), (base, patch)]
        arms += [(base, refit)] if refit in QUEUE else []
        for where, adapted in arms:
            self.arm("scores", where, adapted, task)
        self.arm("slice", base, patch, task)
        for where, adapted in arms:
            if adapted is None or (base in CORE and patch in MAIN):
                self.arm("guard", where, adapted)


def guard_texts(data: Path, tokenizer: Tokenizer) -> list[Item]:
    """60 pieces of 48 tokens of text that no training here has seen."""
    web = [row["text"] for row in split(data, "c4_demo/train")[240:]]
    wiki = [row["text"] for row in split(data, "wikitext2/validation")]
    return pieces(web, tokenizer, 30, 48) + pieces(wiki, tokenizer, 30, 48)


def groups(items: Sequence[Item], size: int) -> Iterator[list[int]]:
    """Indices of items of about the same length."""
    order = sorted(range(len(items)), key=lambda index: len(items[index]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def answered(net: PreTrainedModel, items: Sequence[Item], labels: list[int]) -> Tensor:
    """Log-likelihood (nats) of every label after every item's prompt, [items, labels]."""
    ids, mask = padded([item.prompt for item in items])
    hidden = net.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    last: Tensor = net.lm_head(hidden[torch.arange(len(items)), mask.sum(dim=1) - 1])
    return last.log_softmax(dim=1)[:, labels]


@torch.no_grad()
def likelihoods(
    net: PreTrainedModel, items: Sequence[Item], labels: list[int]
) -> list[list[float]]:
    """`answered`, in batches of items of about the same length."""
    result: list[list[float]] = [[]] * len(items)
    for chosen in groups(items, 16):
        found = answered(net, [items[index] for index in chosen], labels).tolist()
        for index, values in zip(chosen, found, strict=True):
            result[index] = [round(value, 5) for value in values]
    return result


@torch.no_grad()
def perplexities(net: PreTrainedModel, items: Sequence[Item]) -> list[float]:
    """Mean negative log-likelihood per token (nats) of every text."""
    result: list[float] = []
    for start in range(0, len(items), 10):
        ids, _ = padded([item.prompt + item.answer for item in items[start : start + 10]])
        logits = net(input_ids=ids, use_cache=False).logits[:, :-1]
        found = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        result += found.mean(dim=1).tolist()
    return result


def line(
    net: PreTrainedModel, state: State, delta: State, items: Sequence[Item], labels: list[int]
) -> dict[str, Any]:
    """The labels' likelihoods along W + s dW, and <-grad(W), dW> of two losses, mean over items.

    "loss" is of the right label among all tokens, "choice" among the labels.
    """
    weights: dict[str, Tensor] = dict(net.named_parameters())
    along = []
    for scale in SCALES:
        put(net, added(state, delta, scale, torch.float32))
        along.append(likelihoods(net, items, labels))
    put(net, state)
    for name, weight in weights.items():
        weight.requires_grad_(name in delta)
    golds, slopes = [labels.index(item.answer[0]) for item in items], {"loss": 0.0, "choice": 0.0}
    for chosen in groups(items, 8):
        found = answered(net, [items[index] for index in chosen], labels)
        right = torch.arange(len(chosen)), torch.tensor([golds[index] for index in chosen])
        for kind, likely in (("loss", found), ("choice", found.log_softmax(dim=1))):
            patched = [weights[name] for name in delta]
            grads = torch.autograd.grad(likely[right].sum(), patched, retain_graph=True)
            for grad, part in zip(grads, delta.values(), strict=True):
                slopes[kind] += float((grad * part).sum()) / len(items)
    return {"likelihoods": along, "golds": golds, "slopes": slopes}


def check(bench: Bench) -> None:
    """The faster products are as exact as fp32, and the permuted base is the old base's function.

    Where it may use bf16, oneDNN here takes its own fp32 kernels, twice as fast as the default.
    """
    found = []
    for base, products in (("old", "ieee"), ("old", "bf16"), ("permuted", "bf16")):
        torch.backends.mkldnn.matmul.fp32_precision = products
        bench.become(base, None)
        found.append(torch.tensor(perplexities(bench.net, bench.guards[:10])))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--wait", action="store_true", help="until all is trained")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(given.data, given.work)
    check(bench)
    while True:
        for places, patches in PLAN:
            for base in places:
                for patch in patches:
                    bench.cell(base, patch)
        if not given.wait or all((given.work / name).exists() for name in QUEUE):
            break
        time.sleep(60)
    print("done", flush=True)


if __name__ == "__main__":
    main()
