"""How many times the patch is added: once, as often as the policy says, or as the loss asks for.

The items that chose the scale are not judged with: they would speak for what they chose.
"""

from dataclasses import dataclass
from typing import Any

from bot.context import Context, Job
from bot.making import sandbox, trial
from bot.making.inputs import patch_folder
from bot.making.sandbox import Report
from judging.evidence import Slice
from judging.scale import better
from judging.task import SLICED, read_task


@dataclass(frozen=True)
class Choice:
    """`skipped` is how many items were used for it, `slice` what they said."""

    scale: float = 1.0
    skipped: int = 0
    slice: dict[str, Any] | None = None  # judging.evidence.Slice


def choose(context: Context, job: Job, report: Report) -> Choice:
    """The scale of this port. Only a plain LoRA has one to choose; of any other patch it is 1."""
    policy, patch = job.judged_by, job.patch(context.hub)
    if policy.scale != "auto":
        return Choice(policy.scale)
    task = read_task(patch, context.hub.data)
    if task is None or len(task.items) < 2 * SLICED or not trial.means_the_same(patch):
        return Choice()
    arm = trial.beside(job.new_base(context.hub), patch_folder(patch))
    work = context.settings.work(job.key) / "slice.json"
    work.parent.mkdir(parents=True, exist_ok=True)
    work.write_text(task.model_dump_json(), encoding="utf-8")
    found = sandbox.run({"do": "slice", "task": str(work), **arm}, report)
    if found is None:
        return Choice()
    return Choice(better(Slice.model_validate(found), policy.alpha), SLICED, found)
