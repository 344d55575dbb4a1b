"""Step 2 of a port: fetch what is needed and make the artefact, in the sandbox."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

from bot.context import Context, Job
from bot.hub import Hub
from bot.making import sandbox
from bot.making.inputs import Inputs, patch_folder
from bot.making.remote import remote
from judging.task import read_task
from porting import Folder, read_layout
from porting.errors import PortllmError
from porting.source import sha256

PART = re.compile(r"(merged|adapter)/[A-Za-z0-9_-][A-Za-z0-9._-]*")


def make(context: Context, job: Job, scale: float, report: sandbox.Report) -> dict[str, str] | None:
    """Write the artefact to the port's work folder; returns sha256 by path below it.

    None where that is left to whoever publishes it: nothing of it is judged, so that nobody needs
    the whole of a model that is in several files.
    """
    if is_spread(context.hub, job) and not _is_judged(context, job):
        return None
    return _make(context, job, scale, report)


def have_judged(
    context: Context,
    job: Job,
    scale: float,
    made: dict[str, str] | None,
    report: sandbox.Report,
) -> None:
    """Have on this disk what is judged: it may have been made by a machine that died since."""
    if made is not None and _is_judged(context, job):
        ready(context, job, scale, made, report)


def ready(
    context: Context,
    job: Job,
    scale: float,
    made: dict[str, str] | None,
    report: sandbox.Report,
) -> dict[str, str]:
    """Have the artefact on this disk, also where another machine has made it; returns as `make`.

    Args:
        made: what was judged.

    Raises:
        PortllmError: it does not come out as what was judged.
    """
    if made is not None and all(is_made(context, job, part, made) for part in made):
        return made
    again = _make(context, job, scale, report)
    check_made(job.key, again, made)
    return again


def is_made(context: Context, job: Job, part: str, made: dict[str, str]) -> bool:
    """Whether this part of what was judged is on this disk."""
    path = context.settings.work(job.key) / part
    return part in made and path.is_file() and sha256(path) == made[part]


def check_made(name: str, again: dict[str, str], made: dict[str, str] | None) -> None:
    """Raises PortllmError where what was made again is not what was judged."""
    if made is None or again == made:
        return
    unlike = sorted(part for part in {*made, *again} if made.get(part) != again.get(part))
    raise PortllmError(
        f"{name} was made again to be published, and is not what was judged: {', '.join(unlike)}. "
        "Nothing was published."
    )


def is_spread(hub: Hub, job: Job) -> bool:
    """Whether its files are made and sent one by one, by whoever is free."""
    if job.form == "adapter":
        return False
    return len(read_layout(remote(hub, job.new_repo, job.new_sha)).files) > 1


def _is_judged(context: Context, job: Job) -> bool:
    task = read_task(job.patch(context.hub), context.hub.data)
    return task is not None and job.judged_by.evaluate


def _make(context: Context, job: Job, scale: float, report: sandbox.Report) -> dict[str, str]:
    folder = context.settings.work(job.key)
    for form in ("merged", "adapter") if job.form == "both" else (job.form,):
        # Finished by an attempt that died before it could say so: made again, for its digests.
        shutil.rmtree(folder / form, ignore_errors=True)
    return make_in(folder, scaled(job.inputs(context.hub), scale, folder), report)


def scaled(inputs: Inputs, scale: float, work: Path) -> Inputs:
    """`inputs` with `scale` times their patch, a LoRA of its own in `work`."""
    if scale == 1:
        return inputs
    out = work / "scaled"
    shutil.rmtree(out, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    order = {"do": "stack", "patches": [str(patch_folder(inputs.patch))], "weights": [scale]}
    sandbox.run(order | {"out": str(out)})
    return replace(inputs, patch=Folder(out))


def make_in(folder: Path, inputs: Inputs, report: sandbox.Report) -> dict[str, str]:
    """Make the forms that `inputs` asks for below `folder`; returns sha256 by path below it."""
    digests: dict[str, str] = sandbox.run(inputs.order(folder, report), report)
    for name in digests:
        if not PART.fullmatch(name) or (folder / name).is_symlink():
            raise PortllmError(f"The computing process answered with a path that is none: {name!r}")
    return digests


def remove_work(context: Context, key: str) -> None:
    shutil.rmtree(context.settings.work(key), ignore_errors=True)


def parts(form: str, digests: dict[str, str]) -> dict[str, str]:
    """Path in the repo -> path below the work folder. The only or the merged form is the root's."""
    root = "adapter/" if form == "adapter" else "merged/"
    return {part.removeprefix(root): part for part in digests}
