"""Step 3 of a port: the three arms on the same items. An arm that was judged before is not again.

The port's arm is scored on the very bytes that will be pushed.
"""

import hashlib
import shutil
from pathlib import Path

from bot import sandbox
from bot.context import ENGINE, Context, Job
from bot.evaluation import read_evaluation
from bot.files import base_files, patch_files
from bot.hub import HubRepo
from bot.inputs import Inputs
from bot.judge import Evidence, weigh
from bot.port import artefact, make_in
from porting import read_adapter
from porting.adapter import CONFIG
from registry.models import Score
from registry.records import save_score


def measure(context: Context, job: Job, report: sandbox.Report) -> Evidence | None:
    """The evidence on `job`, or None where the patch names no evaluation."""
    patch, new = job.patch(context.hub), job.new_base(context.hub)
    evaluation = read_evaluation(patch)
    if evaluation is None:
        return None
    keys = {
        "old": _score_key(job.old_sha, job.patch_sha, evaluation.digest),
        "new": _score_key(job.new_sha, None, evaluation.digest),
    }
    with context.database.session() as session:
        known = {
            arm: score.result["correct"]
            for arm, key in keys.items()
            if (score := session.get(Score, key)) is not None
        }
    folder, made = str(patch.fetch(patch_files(patch))), artefact(context, job)
    is_loaded = read_adapter(patch).config_file == CONFIG  # by PEFT, beside the base

    def patched(base: HubRepo, adapter: str) -> tuple[str, str | None]:
        if is_loaded:
            return _fetch(base), adapter
        return _merged(base, patch, made.folder / f"on-{base.sha}", report), None

    arms: dict[str, tuple[str, str | None]] = {}
    if job.form == "adapter":
        arms["port"] = patched(new, str(made.adapter))
    else:
        arms["port"] = (str(made.merged), None)
    if "new" not in known:
        arms["new"] = (_fetch(new), None)
    if "old" not in known:
        arms["old"] = patched(job.old_base(context.hub), folder)
    order = {"do": "score", "patch": folder, "arms": arms}
    judged: dict[str, list[int]] = sandbox.run(order, report)
    with context.database.session() as session:
        for arm, key in keys.items():
            if arm in judged:
                save_score(session, key, {"correct": judged[arm]})
    return weigh(evaluation.spec.name, evaluation.digest, {**known, **judged})


def _fetch(base: HubRepo) -> str:
    return str(base.fetch(base_files(base)))


def _merged(base: HubRepo, patch: HubRepo, folder: Path, report: sandbox.Report) -> str:
    """A full delta is no model and no adapter: what is judged is the model that it makes."""
    shutil.rmtree(folder, ignore_errors=True)
    make_in(folder, Inputs(base, patch, None, "merged", None), report)
    return str(folder / "merged")


def _score_key(base_sha: str, patch_sha: str | None, digest: str) -> str:
    return hashlib.sha256(f"{base_sha} {patch_sha} {digest} {ENGINE}".encode()).hexdigest()
