"""Five tasks of one-token labels, and each as the `eval/` folder that a patch brings.

`python -m benchmarks.portability.tasks DATA OUT` writes `OUT/TASK/eval/`, which the product's own
code reads. The held-out items are all of a validation split, shuffled once, so that the first n of
them are a sample.
"""

import argparse
import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from examples.routing import TASK as TICKETS
from examples.training import Item

Row = dict[str, str]
TRUTH = {"true": " True", "false": " False"}
YES = {"yes": " yes", "no": " no"}


@dataclass(frozen=True)
class Task:
    """A prompt over fields, the labels after it, and how a patch for it is trained."""

    name: str
    prompt: str
    fields: list[str]
    labels: dict[str, str]
    scored: int  # held-out items that the study scores at most
    trained: int  # training items of one epoch
    longest: int  # words of a training item at most
    epochs: int = 1
    label_field: str = "label"

    def spec(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "items": "heldout.jsonl",
            "prompt": self.prompt,
            "input_fields": self.fields,
            "label_field": self.label_field,
            "labels": self.labels,
        }

    def query(self, row: Row) -> str:
        return self.prompt.format_map(row)

    def gold(self, row: Row) -> int:
        return list(self.labels).index(row[self.label_field])

    def items(self, rows: list[Row], tokenizer: Tokenizer) -> list[Item]:
        ids = self.label_ids(tokenizer)
        return [
            Item(tokenizer(self.query(row))["input_ids"], [ids[self.gold(row)]]) for row in rows
        ]

    def label_ids(self, tokenizer: Tokenizer) -> list[int]:
        found: list[int] = []
        for text in self.labels.values():
            (one,) = tokenizer(text)["input_ids"]
            found.append(one)
        return found


TASKS = {
    task.name: task
    for task in (
        Task(
            "sst2",
            "Review: {sentence}\nSentiment:",
            ["sentence"],
            {"negative": " negative", "positive": " positive"},
            scored=400,
            trained=800,
            longest=60,
        ),
        Task(
            "tickets",
            "Support ticket: {text}\nTeam:",
            ["text"],
            json.loads((TICKETS / "portllm-eval.json").read_text(encoding="utf-8"))["labels"],
            scored=240,
            trained=10_000,
            longest=1000,
            epochs=3,
            label_field="team",
        ),
        Task(
            "rte",
            "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:",
            ["sentence1", "sentence2"],
            TRUTH,
            scored=277,
            trained=560,
            longest=60,
        ),
        Task(
            "wnli",
            "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:",
            ["sentence1", "sentence2"],
            TRUTH,
            scored=71,
            trained=635,
            longest=1000,
        ),
        Task(
            "boolq",
            "{passage}\nQuestion: {question}?\nAnswer:",
            ["passage", "question"],
            YES,
            scored=150,
            trained=400,
            longest=80,
        ),
    )
}


def read(file: Path) -> list[dict[str, Any]]:
    raw = file.read_bytes()
    text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def split(data: Path, name: str) -> list[dict[str, Any]]:
    """Rows of `data/FOLDER/SPLIT`, gzipped or not; `name` is "FOLDER/SPLIT"."""
    plain = data / f"{name}.jsonl"
    return read(plain if plain.exists() else plain.with_suffix(".jsonl.gz"))


def _row(task: str, raw: dict[str, Any]) -> Row:
    if task == "sst2":
        return {
            "sentence": raw["sentence"].strip(),
            "label": list(TASKS[task].labels)[raw["label"]],
        }
    if task == "boolq":
        passage = " ".join(raw["passage"].split()[:100])
        answer = raw.get("answer", raw.get("label"))
        label = "yes" if answer in (True, 1) else "no"
        return {"passage": passage, "question": raw["question"].strip(), "label": label}
    true = 0 if task == "rte" else 1  # entailment has another number in each
    pair = {field: raw[field].strip() for field in ("sentence1", "sentence2")}
    return pair | {"label": "true" if raw["label"] == true else "false"}


def rows(data: Path, task: Task, part: str) -> list[Row]:
    """The distinct rows of the "train" or "validation" part, shuffled by a fixed seed."""
    if task.name == "tickets":
        name = {"train": "train", "validation": "heldout"}[part]
        return read(TICKETS / f"{name}.jsonl")
    found = {
        task.query(row): row
        for raw in split(data, f"{task.name}/{part}")
        for row in [_row(task.name, raw)]
    }
    return random.Random(0).sample(list(found.values()), len(found))


def training(data: Path, task: Task, seed: int) -> list[Row]:
    """What a patch is trained on; another seed draws other items."""
    held = {task.query(row) for row in rows(data, task, "validation")}
    fit = [
        row
        for row in rows(data, task, "train")
        if 5 < len(task.query(row).split()) <= task.longest and task.query(row) not in held
    ]
    if task.name == "tickets":
        return fit  # the order of the committed patch's training
    return random.Random(seed).sample(fit, min(task.trained, len(fit)))


def write(data: Path, out: Path) -> None:
    """Write `out/TASK/eval/` for every task."""
    for task in TASKS.values():
        folder = out / task.name / "eval"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "portllm-eval.json").write_text(json.dumps(task.spec(), indent=2), "utf-8")
        lines = [json.dumps(row) + "\n" for row in rows(data, task, "validation")]
        (folder / "heldout.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    write(given.data, given.out)


if __name__ == "__main__":
    main()
