"""Step 4 of a port: every arm on the same items. What was judged before is not judged again.

A merged port is scored on the very bytes that will be pushed, and held against base + adapter.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

from bot.context import ENGINE, Context, Job
from bot.making import sandbox, trial
from bot.making.inputs import base_folder, patch_folder
from bot.making.make import scaled
from bot.making.sandbox import Report
from bot.making.scale import Choice
from judging.evidence import Evidence, Slice
from judging.guard import guard
from judging.task import Task, read_task
from registry.models import Score
from registry.ports import save_score

# Everything whose version may change a score.
SCORER = f"{ENGINE}, transformers {version('transformers')}, lm-eval {version('lm-eval')}"


def measure(context: Context, job: Job, choice: Choice, report: Report) -> Evidence:
    """The evidence on `job`; without a task where the patch names no evaluation."""
    hub, work = context.hub, context.settings.work(job.key)
    patch, new, old = job.patch(hub), job.new_base(hub), job.old_base(hub)
    own = read_task(patch, hub.data) if job.judged_by.evaluate else None
    if own is None:
        return Evidence(engine=SCORER, scale=choice.scale)
    cache = context.settings.lm_eval
    own = trial.with_data(own, cache, report)
    tasks = [own, *guard()]
    record = _Record(context, tasks, job.judged_by.most_items, choice.skipped, _device())
    arms = {
        "before": record.known(old.sha, None),
        "old": record.known(old.sha, job.patch_sha),
        "new": record.known(new.sha, None) | {"base": str(base_folder(new))},
    }
    if not record.has_all(arms["before"]):
        arms["before"]["base"] = str(base_folder(old))
    if not record.has_all(arms["old"]):
        arms["old"] |= trial.as_trained(old, patch, work, report)
    inputs = scaled(job.inputs(hub), choice.scale, work)
    moved = inputs.patch
    made: trial.Arm = {"skipped": choice.skipped, "forecast": trial.forecast_order(inputs, report)}
    if job.form != "merged" and trial.is_loaded(moved):
        made["pair"] = trial.beside(new, work / "adapter")
    elif trial.means_the_same(moved):
        made["pair"] = trial.beside(new, patch_folder(moved))
    if job.form != "adapter":
        made["merged"] = str(work / "merged")
        arms["port"] = {"base": made["merged"]}
    elif trial.is_loaded(moved):
        arms["port"] = made["pair"]
    else:
        arms["port"] = trial.merged(inputs, work / "on-new", report)
    case = trial.case(own, tasks[1:], arms, job.judged_by) | made
    [evidence] = trial.judge_cases([case], work, report, cache)
    for arm, base, sha in (
        ("before", old.sha, None), ("old", old.sha, job.patch_sha), ("new", new.sha, None)
    ):  # fmt: skip
        record.save(evidence, arm, base, sha)
    evidence.engine, evidence.scale = SCORER, choice.scale
    if choice.slice is not None:
        evidence.slice = Slice.model_validate(choice.slice)
    return evidence


@cache
def _device() -> str:
    """Where the computing process runs models: it takes a moment to say, and stays the same."""
    found: str = sandbox.run({"do": "device"})
    return found


@dataclass(frozen=True)
class _Record:
    """Results that are kept, by all that they depend on."""

    context: Context
    tasks: list[Task]
    most: int
    skipped: int
    device: str

    def _key(self, base_sha: str, patch_sha: str | None, task: str, is_own: bool) -> str:
        skipped = self.skipped if is_own else 0
        made_of = f"{base_sha} {patch_sha} {task} {skipped} {SCORER}, {self.device}"
        return hashlib.sha256(made_of.encode()).hexdigest()

    def known(self, base_sha: str, patch_sha: str | None) -> trial.Arm:
        """An arm that has what is known. Its folders are only names: nothing lies there."""
        known, sizes = {}, {}
        with self.context.database.session() as session:
            for number, task in enumerate(self.tasks):
                key = self._key(base_sha, patch_sha, task.digest, number == 0)
                if (score := session.get(Score, key)) is not None:
                    known[task.digest] = score.result["results"]
                    sizes[task.digest] = score.result["total"]
        return {"base": base_sha, "adapter": patch_sha, "known": known, "sizes": sizes}

    def has_all(self, arm: trial.Arm) -> bool:
        """Whether no model is needed for this arm, however many looks there will be."""
        for number, task in enumerate(self.tasks):
            if task.digest not in arm["known"]:
                return False
            most = arm["sizes"][task.digest]
            if number == 0:
                most = min(most - self.skipped, self.most)
            if len(arm["known"][task.digest].split()) < most:
                return False
        return True

    def save(self, evidence: Evidence, arm: str, base_sha: str, patch_sha: str | None) -> None:
        measured = [found for found in (evidence.own, *evidence.guard) if found is not None]
        with self.context.database.session() as session:
            for number, found in enumerate(measured):
                key = self._key(base_sha, patch_sha, found.digest, number == 0)
                results = found.model_dump()["results"][arm]
                save_score(session, key, {"results": results, "total": found.total})
