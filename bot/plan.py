"""Step 1 of a port: may this patch move there, and what would be done? Nothing is downloaded."""

from bot.context import Context, Job
from bot.inputs import Place
from bot.publish import check_target
from porting import classify
from porting.errors import Refused

PORTABLE = ("nothing", "metadata", "weights", "vocabulary")


def plan_port(context: Context, job: Job) -> str:
    """One sentence that says what will be done. Raises Refused, saying why not."""
    inputs = job.inputs(context.hub)
    check_change(job.old_base(context.hub), inputs.new)
    check_target(context.hub, job)
    return inputs.plan.summary


def check_change(old: Place, new: Place) -> None:
    """Refuse a new base on which the patch would mean something else.

    It is compared with the base the patch was *trained* on, not with the release before.
    """
    change = classify(old, new)
    if change.kind not in PORTABLE:
        raise Refused(
            f"Since {old.name}, which the patch was trained on, the "
            f"{change.kind} changed, so adding the patch would mean something else: "
            f"{change.reason}"
        )
