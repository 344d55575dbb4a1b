"""Step 3 of a port: the three arms on the same items. An arm that was judged before is not again.

The port's arm is scored on the very bytes that will be pushed.
"""

import hashlib
from typing import Any

from bot import sandbox
from bot.context import ENGINE, Context, Job
from bot.evaluation import read_evaluation
from bot.files import base_files, patch_files
from bot.hub import HubRepo
from bot.judge import Evidence, weigh
from bot.port import artefact
from registry.models import Score
from registry.records import save_score


def measure(context: Context, job: Job, report: sandbox.Report) -> Evidence | None:
    """The evidence on `job`, or None where the patch names no evaluation."""
    evaluation = read_evaluation(job.patch(context.hub))
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
    patch = str(
        context.hub.snapshot(job.patch_repo, job.patch_sha, patch_files(job.patch(context.hub)))
    )
    arms: dict[str, tuple[str, str | None]] = {}
    made = artefact(context, job)
    if job.form == "adapter":
        arms["port"] = (_fetch(context, job.new_base(context.hub)), str(made.adapter))
    else:
        arms["port"] = (str(made.merged), None)
    if "new" not in known:
        arms["new"] = (_fetch(context, job.new_base(context.hub)), None)
    if "old" not in known:
        arms["old"] = (_fetch(context, job.old_base(context.hub)), patch)
    order: dict[str, Any] = {"do": "score", "patch": patch, "arms": arms}
    judged: dict[str, list[int]] = sandbox.run(order, report)
    with context.database.session() as session:
        for arm, key in keys.items():
            if arm in judged:
                save_score(session, key, {"correct": judged[arm]})
    return weigh(evaluation.spec.name, evaluation.digest, {**known, **judged})


def _fetch(context: Context, base: HubRepo) -> str:
    return str(context.hub.snapshot(base.repo, base.sha, base_files(base)))


def _score_key(base_sha: str, patch_sha: str | None, digest: str) -> str:
    return hashlib.sha256(f"{base_sha} {patch_sha} {digest} {ENGINE}".encode()).hexdigest()
