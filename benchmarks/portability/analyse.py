"""From the arms' JSON files to one record per cell, and what the records say. No model runs."""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu, spearmanr

import judging.statistics
from benchmarks.portability.tasks import TASKS, rows
from judging.evidence import Evidence, Measured
from judging.policy import VerdictPolicy
from judging.statistics import paired
from judging.verdict import is_settled, judge

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Record = dict[str, Any]
DIFFERENCES = {
    "port - new": ("port", "new"),
    "port - old": ("port", "old"),
    "port - refit": ("port", "refit"),
    "old - before": ("old", "before"),
    "new - before": ("new", "before"),
    "old - new": ("old", "new"),
}
ALPHA = 0.05
FEWEST = 5  # cells, for a correlation
DRAWS = 20  # verdicts of each cell
RESAMPLES = 999  # of each interval of a drawn verdict


def records(data: Path, work: Path) -> list[Record]:
    """One record per cell that is complete but for a refit, a slice, a forecast, a guard."""
    golds = {
        name: [task.gold(row) for row in rows(data, task, "validation")[: task.scored]]
        for name, task in TASKS.items()
    }
    return [
        found
        for folder in sorted((work / "cells").iterdir())
        for file in sorted(folder.glob("scores.*.json"))
        if folder.name != "old" and file.name.split(".")[2] != "alone" and "@" not in file.name
        for found in [_record(work / "cells", folder.name, file.name.split(".")[2], golds)]
    ]


def _record(cells: Path, base: str, patch: str, golds: dict[str, list[int]]) -> Record:
    task = patch.split("-")[0]
    arms = {
        "before": ("old", "alone"),
        "old": ("old", patch),
        "new": (base, "alone"),
        "port": (base, patch),
        "refit": (base, f"{patch}@{base}"),
    }
    likely = {a: _read(cells / b / f"scores.{task}.{p}.json") for a, (b, p) in arms.items()}
    hits = {
        arm: [float(np.argmax(row) == gold) for row, gold in zip(found, golds[task], strict=True)]
        for arm, found in likely.items()
        if found
    }
    texts = {arm: _read(cells / b / f"guard.{p}.json") for arm, (b, p) in arms.items()}
    found: Record = {
        "base": base,
        "patch": patch,
        "task": task,
        "items": len(hits["port"]),
        "accuracy": {arm: float(np.mean(values)) for arm, values in hits.items()},
        "differences": {
            name: paired(hits[one], hits[other], ALPHA, reach=1).model_dump()
            for name, (one, other) in DIFFERENCES.items()
            if one in hits and other in hits
        },
        "perplexity": {arm: math.exp(np.mean(nats)) for arm, nats in texts.items() if nats},
        "hits": hits,
    }
    return found | {"predictors": _predictors(cells, found)}


def _predictors(cells: Path, found: Record) -> dict[str, float]:
    """What could have been known without scoring the port's items; larger means better."""
    means = {name: value["mean"] for name, value in found["differences"].items()}
    known = {
        "original gain": means["old - before"],
        "room: old - new": means["old - new"],
        "base moved: new - before": means["new - before"],
    }
    text = found["perplexity"]
    if "new" in text:
        known["base's perplexity (less is better)"] = -math.log(text["new"] / text["before"])
    if sliced := _read(cells / found["base"] / f"slice.{found['task']}.{found['patch']}.json"):
        likely, golds = np.array(sliced["likelihoods"]), sliced["golds"]
        among = likely - np.logaddexp.reduce(likely, axis=2, keepdims=True)
        for kind, values in (("loss", likely), ("choice", among)):
            right = -values[:, np.arange(len(golds)), golds].mean(axis=1)
            zero, half, one, more = map(float, right)
            known |= {
                f"{kind}(0) - {kind}(1)": zero - one,
                f"{kind}(1/2) - {kind}(1)": half - one,
                f"{kind}(1) - {kind}(5/4)": one - more,
                f"-{kind}(1)": -one,
                f"<-grad {kind}, dW>": sliced["slopes"][kind],
            }
        hits = (likely.argmax(axis=2) == golds).mean(axis=1)
        known["accuracy(1) - accuracy(0) of 32"] = float(hits[2] - hits[0])
    if weights := _read(cells / found["base"] / f"forecast.{found['patch']}.json"):
        known["-drift / delta"] = -weights["ratio"]
        known["-drift"] = -weights["drift"]
        known["cosine of drift and dW"] = weights["cosine"]
        known["-row share / chance"] = -weights["row_share"] / weights["row_chance"]
        known["-column share / chance"] = -weights["column_share"] / weights["column_chance"]
        known["-entries lost to rounding"] = -weights["lost"]
        known["-intruders"] = -float(weights["intruders"])
    return known


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _over_bases(
    chosen: Sequence[Record], statistic: Callable[[Sequence[Record]], float]
) -> dict[str, float | None]:
    """The statistic and its 95 % bootstrap interval; whole bases are drawn, for their cells are
    not independent."""
    if len(chosen) < FEWEST:
        return dict.fromkeys(("value", "low", "high"))
    rng, names = np.random.default_rng(0), sorted({record["base"] for record in chosen})
    of = {name: [record for record in chosen if record["base"] == name] for name in names}
    drawn = [
        statistic([r for name in rng.choice(names, len(names)) for r in of[name]])
        for _ in range(1000)
    ]
    kept = [value for value in drawn if not math.isnan(value)]
    low, high = np.percentile(kept, [2.5, 97.5]) if kept else (math.nan, math.nan)
    return {
        name: None if math.isnan(value) else round(float(value), 3)
        for name, value in (("value", statistic(chosen)), ("low", low), ("high", high))
    }


def _correlation(cells: Sequence[Record], known: str, outcome: str, within: bool) -> float:
    """Spearman's rank correlation; `within` a patch, the mean over patches weighted by cells."""
    groups: dict[str, list[Record]] = {}
    for record in cells:
        groups.setdefault(record["patch"] if within else "", []).append(record)
    found = []
    for group in groups.values():
        x = [record["predictors"][known] for record in group]
        y = [record["differences"][outcome]["mean"] for record in group]
        if len(group) >= FEWEST and min(np.ptp(x), np.ptp(y)) > 0:
            found.append((float(spearmanr(x, y).statistic), len(group)))
    if not found:
        return math.nan
    values, weights = zip(*found, strict=True)
    return float(np.average(values, weights=weights))


def _auc(cells: Sequence[Record], known: str, hurts: Callable[[Record], bool]) -> float:
    """Chance that of a harmed and another cell the other one looked better."""
    bad = [record["predictors"][known] for record in cells if hurts(record)]
    good = [record["predictors"][known] for record in cells if not hurts(record)]
    if not bad or not good:
        return math.nan
    return float(mannwhitneyu(good, bad).statistic / len(good) / len(bad))


def predictions(cells: Sequence[Record]) -> dict[str, Any]:
    """Per predictor: rank correlations with the outcomes, and AUC for the harm of a port."""
    found: dict[str, Any] = {}
    for known in sorted({name for record in cells for name in record["predictors"]}):
        have = [record for record in cells if known in record["predictors"]]
        row: dict[str, Any] = {"cells": len(have)}
        for name, (outcome, within) in OUTCOMES.items():
            chosen = [record for record in have if outcome in record["differences"]]
            row[name] = _over_bases(
                chosen, partial(_correlation, known=known, outcome=outcome, within=within)
            ) | {"cells": len(chosen)}
        for harm, hurts in HARMS.items():
            count = sum(map(hurts, have))
            row[harm] = _over_bases(have, partial(_auc, known=known, hurts=hurts))
            row[harm] |= {"harmed": count}
        found[known] = row
    return found


OUTCOMES = {
    "port - new": ("port - new", False),
    "port - new, within a patch": ("port - new", True),
    "port - old": ("port - old", False),
    "port - old, within a patch": ("port - old", True),
    "port - refit": ("port - refit", False),
}
HARMS: dict[str, Callable[[Record], bool]] = {
    "port < new": lambda record: record["differences"]["port - new"]["mean"] < 0,
    "port surely < new": lambda record: record["differences"]["port - new"]["high"] < 0,
    "port lost 5 points": lambda record: record["differences"]["port - old"]["mean"] < -0.05,
}


def truth(record: Record, policy: VerdictPolicy) -> str:
    """What is so on all items: harmful, fine or borderline."""
    gain = record["differences"]["port - new"]["mean"]
    change = record["differences"]["port - old"]["mean"]
    if gain < 0 or change < -policy.margin:
        return "harmful"
    return "fine" if gain >= 0.02 and change >= -policy.margin / 2 else "borderline"


def verdicts(cells: Sequence[Record], sizes: Sequence[int] = (50, 100, 200, 400)) -> dict[str, Any]:
    """How the product judges each cell when it has `size` items, drawn anew every time.

    The items that were scored are the population: they are drawn with replacement. The guard is
    left out. Returns counts of (truth, action) by size.
    """
    policy, rng = VerdictPolicy(), np.random.default_rng(0)
    judging.statistics.RESAMPLES = RESAMPLES
    found: dict[str, Any] = {}
    for size in sizes:
        counts: dict[str, dict[str, int]] = {}
        for record in cells:
            of = counts.setdefault(
                truth(record, policy), dict.fromkeys(("publish", "ask", "reject"), 0)
            )
            for _ in range(DRAWS):
                drawn = rng.integers(record["items"], size=size)
                of[_judged(record, drawn, policy)] += 1
        found[str(size)] = counts
    return found


def _judged(record: Record, drawn: Numbers, policy: VerdictPolicy) -> str:
    looks = policy.looks(len(drawn))
    for number, count in enumerate(looks, start=1):
        results = {arm: [hits[i] for i in drawn[:count]] for arm, hits in record["hits"].items()}
        own = Measured(
            task=record["task"],
            digest="",
            total=len(drawn),
            metric="accuracy",
            items=list(range(1, count + 1)),
            results=results,
        )
        evidence = Evidence(own=own, looks=len(looks), look=number)
        if is_settled(evidence, policy):
            break
    return judge(evidence, policy).action
