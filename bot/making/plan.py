"""Step 1 of a port: may this patch move there, and what would be done? Nothing is downloaded."""

from bot.config.sync import check_seen
from bot.context import Context, Job
from bot.hub import Publisher
from bot.making.inputs import Place
from bot.publishing.describe import draft
from bot.publishing.publish import check_target
from porting import classify
from porting.errors import Refused
from registry.models import Port

PORTABLE = ("nothing", "metadata", "weights", "vocabulary")


def plan_port(context: Context, job: Job) -> str:
    """One sentence that says what will be done. Raises Refused, saying why not."""
    inputs = job.inputs(context.hub)
    check_asker(context, job)
    check_change(job.old_base(context.hub), inputs.new)
    check_target(context.hub, job)
    check_card(context.publisher, job)
    return inputs.plan.summary


def check_card(publisher: Publisher, job: Job) -> None:
    """Refuse a port whose card the Hub would refuse in the end, after everything was computed."""
    hub, target = publisher.hub, publisher.state(job.to_repo)
    hub.check_card(job.to_repo, draft(hub, job, job.patch(hub), target))


def check_asker(context: Context, job: Job) -> None:
    """Refuse what only we may see, where a file of the patch's owner asks for a port to it."""
    with context.database.session() as session:
        managed = session.get_one(Port, job.key).subscription.managed
    if managed:
        for base in (job.old_repo, job.new_repo):
            check_seen(context, base, job.patch_repo)


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
