"""Step 2 of a port: fetch what is needed and make the artefact, in the sandbox."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

from bot import sandbox
from bot.context import Artefact, Context, Job
from bot.inputs import Inputs, patch_folder
from porting import Folder
from porting.errors import PortllmError

PART = re.compile(r"(merged|adapter)/[A-Za-z0-9_-][A-Za-z0-9._-]*")


def make(context: Context, job: Job, scale: float, report: sandbox.Report) -> dict[str, str]:
    """Write the artefact to the port's work folder; returns sha256 by path below it."""
    made = artefact(context, job)
    for folder in (made.merged, made.adapter):
        # Finished by an attempt that died before it could say so: made again, for its digests.
        shutil.rmtree(folder, ignore_errors=True)
    return make_in(made.folder, scaled(job.inputs(context.hub), scale, made.folder), report)


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


def artefact(context: Context, job: Job) -> Artefact:
    return Artefact(context.settings.work(job.key))


def remove_work(context: Context, key: str) -> None:
    shutil.rmtree(context.settings.work(key), ignore_errors=True)


def parts(form: str, digests: dict[str, str]) -> dict[str, str]:
    """Path in the repo -> path below the work folder. The only or the merged form is the root's."""
    root = "adapter/" if form == "adapter" else "merged/"
    return {part.removeprefix(root): part for part in digests}
