"""The outcome of the study: `results.json`, the tables of `README.md` and the plot.

`python -m benchmarks.portability.table DATA WORK`; needs matplotlib. It scores nothing.
"""

import argparse
import json
import os
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.portability.analyse import (
    HARMS,
    OUTCOMES,
    Record,
    predictions,
    records,
    truth,
    verdicts,
)
from benchmarks.portability.tasks import TASKS
from judging.policy import VerdictPolicy

HERE = Path(__file__).parent
START, END = "<!-- results -->\n", "<!-- end of results -->\n"
ARMS = ("before", "old", "new", "port", "refit")
VERSIONS = ("torch", "transformers", "peft", "lm-eval", "numpy", "scipy")


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def interval(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{100 * found['mean']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def estimate(found: dict[str, Any]) -> str:
    if found["value"] is None:
        return ""
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells_table(cells: Sequence[Record]) -> str:
    order = {task: number for number, task in enumerate(TASKS)}
    names = ("port - new", "port - old", "port - refit")
    body = []
    for cell in sorted(cells, key=lambda c: (order[c["task"]], c["patch"], c["base"])):
        text = cell["perplexity"]
        body.append(
            [
                cell["patch"],
                cell["base"],
                *(percent(cell["accuracy"].get(arm)) for arm in ARMS),
                *(interval(cell["differences"].get(name)) for name in names),
                f"{text['new']:.1f}" if "new" in text else "",
                f"{text['port']:.1f}" if "port" in text else "",
                truth(cell, VerdictPolicy()),
            ]
        )
    head = ["patch", "new base", *ARMS, *names, "perplexity new", "port", "truth"]
    return table(head, body)


def predictions_table(found: dict[str, Any], columns: Sequence[str]) -> str:
    body = [
        [name, str(row["cells"]), *(estimate(row[column]) for column in columns)]
        for name, row in found.items()
    ]
    return table(["known before", "cells", *columns], body)


def verdicts_table(found: dict[str, Any]) -> str:
    body = []
    for size, by_truth in found.items():
        for kind in ("harmful", "borderline", "fine"):
            counts = by_truth.get(kind)
            if counts:
                total = sum(counts.values())
                shares = [f"{100 * counts[a] / total:.1f}" for a in ("publish", "ask", "reject")]
                body.append([size, kind, str(total), *shares])
    return table(["items", "truth", "verdicts", "publish, %", "ask, %", "reject, %"], body)


def plot(cells: Sequence[Record], out: Path) -> None:
    """Gain against the loss's forecast, loss of accuracy against the drift, port against refit."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for task in sorted({cell["task"] for cell in cells}):
        mine = [cell for cell in cells if cell["task"] == task]
        panels: tuple[tuple[str, str], ...] = (
            ("choice(0) - choice(1)", "port - new"),
            ("-drift / delta", "port - old"),
        )
        for axis, (known, outcome) in zip(axes, panels, strict=False):
            have = [cell for cell in mine if known in cell["predictors"]]
            x = [
                abs(c["predictors"][known]) if known[0] == "-" else c["predictors"][known]
                for c in have
            ]
            y = [100 * cell["differences"][outcome]["mean"] for cell in have]
            axis.scatter(x, y, s=16, label=task)
            axis.set(xlabel=known.removeprefix("-"), ylabel=f"{outcome}, points")
        refitted = [cell["accuracy"] for cell in mine if "refit" in cell["accuracy"]]
        axes[2].scatter(
            [100 * a["refit"] for a in refitted], [100 * a["port"] for a in refitted], s=16
        )
    axes[1].set_xscale("log")
    for axis in axes[:2]:
        axis.axhline(0, color="grey", linewidth=0.5)
    axes[2].axline((50, 50), slope=1, color="grey", linewidth=0.5)
    axes[2].set(xlabel="refit, %", ylabel="port, %")
    axes[0].legend(fontsize="small")
    plt.rcParams["svg.hashsalt"] = "portability"
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    given = parser.parse_args()
    cells = records(given.data, given.work)
    predicted, judged = predictions(cells), verdicts(cells)
    about = {
        "date": f"{date.today():%Y-%m-%d}",
        "machine": f"{os.cpu_count()} shared cores with AVX-512, no GPU",
        "versions": {name: version(name) for name in VERSIONS},
    }
    kept = [{k: v for k, v in cell.items() if k != "hits"} for cell in cells]
    results = about | {"cells": kept, "predictions": predicted, "verdicts": judged}
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot(cells, HERE / "portability.svg")
    harmed = ", ".join(f"{name}: {sum(map(hurts, cells))}" for name, hurts in HARMS.items())
    used = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    parts = [
        f"{about['date']}, {about['machine']}; {used}; {len(cells)} cells.\n",
        "### Every cell\n",
        cells_table(cells),
        "![what predicts a port](portability.svg)\n",
        "### What predicts it\n",
        "Rank correlations (Spearman):\n",
        predictions_table(predicted, list(OUTCOMES)),
        f"AUC: a harmed cell looked worse than another one (harmed: {harmed}).\n",
        predictions_table(predicted, list(HARMS)),
        "### Verdicts\n",
        verdicts_table(judged),
    ]
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    text = "\n".join([START, *parts, END])
    readme.write_text(f"{before}{text}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
