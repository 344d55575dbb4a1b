"""What need not be made again: shards that the port before this one made of the same inputs."""

from bot.context import ENGINE, Job
from bot.hub import HubRepo
from bot.making.remote import remote
from patch_cards import lock
from porting import Plan, Source, plan
from porting.errors import Refused


def made_before(
    job: Job, scale: float, made: Plan, base: HubRepo, patch: Source, old: Source, target: HubRepo
) -> dict[str, str]:
    """sha256 of the files of `target` that are what this port would make of the same shard.

    A port is a function of the shard, the patch, the old base, the recipe and the engine; all must
    be those of the port that `target` holds, and so must be where in the shard the patch goes.
    """
    if lock.NAME not in target.files():
        return {}
    locked = lock.read(target)
    same = (
        locked.engine == ENGINE
        and locked.form in ("merged", "both")
        and locked.policy == job.policy
        and locked.scale == scale
        and (locked.patch.repo, locked.patch.sha) == (job.patch_repo, job.patch_sha)
        and (locked.old_base.repo, locked.old_base.sha) == (job.old_repo, job.old_sha)
    )
    if not same:
        return {}
    then = remote(base.hub, locked.new_base.repo, locked.new_base.sha)
    try:
        before = plan(then, patch, as_="merged", old_base=old, policy=job.policy)
    except Refused:  # that base may be gone by now
        return {}
    return {
        file: locked.files[file]
        for file in made.layout.files
        if file in then.files()
        and file in locked.files
        and file in target.files()
        and then.files()[file].digest == base.files()[file].digest
        and target.files()[file].digest == locked.files[file]
        and before.touches_of(file) == made.touches_of(file)
        and before.head == made.head
    }
