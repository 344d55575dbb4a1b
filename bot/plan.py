"""Step 1 of a port: may this patch move there, and what would be done? Nothing is downloaded."""

from bot.context import Context, Job
from bot.publish import check_target
from porting import classify, plan
from porting.errors import Refused

PORTABLE = ("nothing", "metadata", "weights")


def plan_port(context: Context, job: Job) -> str:
    """One sentence that says what will be done. Raises Refused, saying why not.

    The new base is compared with the one the patch was *trained* on, not with the release before.
    """
    new, patch = job.new_base(context.hub), job.patch(context.hub)
    change = classify(job.old_base(context.hub), new)
    if change.kind not in PORTABLE:
        raise Refused(
            f"Since {job.old_repo}@{job.old_sha[:7]}, which the patch was trained on, the "
            f"{change.kind} changed, so adding the patch would mean something else: "
            f"{change.reason}"
        )
    check_target(context.hub, job)
    if job.form == "adapter":
        return plan(new, patch, as_="adapter").summary
    return plan(new, patch, as_="merged").summary
