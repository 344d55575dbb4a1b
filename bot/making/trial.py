"""From bases and patches to the folders that are judged: models, and adapters on models."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from bot.making import sandbox
from bot.making.inputs import Inputs, Place, base_folder, patch_folder
from bot.making.make import make_in
from bot.making.sandbox import Report
from judging.evidence import Evidence
from judging.policy import VerdictPolicy
from judging.task import Task
from porting import read_adapter
from porting.patch.adapter import CONFIG

Arm = dict[str, Any]  # what `judging.run.Arm` is read from; that module takes seconds to load


def is_loaded(patch: Place) -> bool:
    """Whether PEFT can put it beside a base; a full delta is no adapter."""
    return read_adapter(patch).config_file == CONFIG


def means_the_same(patch: Place) -> bool:
    """Whether the patch as it is, on another base, is what its port is there."""
    found = read_adapter(patch)
    return is_loaded(patch) and found.portability == "A" and found.old_base_field is None


def beside(base: Place, adapter: Path) -> Arm:
    return {"base": str(base_folder(base)), "adapter": str(adapter)}


def merged(inputs: Inputs, work: Path, report: Report) -> Arm:
    """What is judged of a patch that is no adapter is the model that it makes."""
    shutil.rmtree(work, ignore_errors=True)
    make_in(work, replace(inputs, form="merged"), report)
    return {"base": str(work / "merged"), "adapter": None}


def as_trained(old: Place, patch: Place, work: Path, report: Report) -> Arm:
    """The patch on the base that it was trained on."""
    if is_loaded(patch):
        return beside(old, patch_folder(patch))
    return merged(Inputs(old, patch, None, "merged", None), work / "on-old", report)


def forecast_order(inputs: Inputs, report: Report) -> Arm | None:
    """The order for what the weights say; None where the patch is not a change of weights."""
    found = read_adapter(inputs.patch)
    if found.portability == "D" or (found.portability == "C" and inputs.policy is None):
        return None
    return replace(inputs, form="merged").forecast_order(report)


def case(own: Task, guards: list[Task], arms: dict[str, Arm], policy: VerdictPolicy) -> Arm:
    """What `judging.run.Case` is read from."""
    return {
        "own": own.model_dump(mode="json"),
        "guard": [task.model_dump(mode="json") for task in guards],
        "arms": arms,
        "policy": policy.model_dump(mode="json"),
    }


def with_data(task: Task, cache: Path, report: Report) -> Task:
    """`task`; its data are fetched into `cache` if it is lm-eval's, and are part of its digest.

    Raises Refused where there is no such task, or its data can't be had.
    """
    if task.kind != "lm-eval":
        return task
    name = task.spec["lm_eval"]
    report(f"fetching the data of lm-eval's {name}, tasks", 0, 1)
    found = sandbox.run({"do": "fetch_task", "name": name}, cache=cache, online=True)
    digest = hashlib.sha256(f"{task.digest} {found}".encode()).hexdigest()
    return task.model_copy(update={"digest": digest})


def judge_cases(cases: list[Arm], work: Path, report: Report, cache: Path) -> list[Evidence]:
    """The evidence on every case, in the sandbox. Cases that share a base share its load.

    `cache` has the data of tasks that are lm-eval's.
    """
    work.mkdir(parents=True, exist_ok=True)
    orders = work / "cases.json"  # too long for a command line
    orders.write_text(json.dumps(cases), encoding="utf-8")
    found = sandbox.run({"do": "judge", "cases": str(orders)}, report, cache)
    return [Evidence.model_validate(each) for each in found]
