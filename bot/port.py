"""Step 2 of a port: fetch what is needed and make the artefact, in the sandbox."""

import re
import shutil
from typing import Any

from bot import sandbox
from bot.context import Artefact, Context, Job
from bot.files import base_files, patch_files
from porting.errors import PortllmError

PART = re.compile(r"(merged|adapter)/[A-Za-z0-9_-][A-Za-z0-9._-]*")


def make(context: Context, job: Job, report: sandbox.Report) -> dict[str, str]:
    """Write the artefact to the port's work folder; returns sha256 by path below it."""
    patch, made = job.patch(context.hub), artefact(context, job)
    for folder in (made.merged, made.adapter):
        # Finished by an attempt that died before it could say so: made again, for its digests.
        shutil.rmtree(folder, ignore_errors=True)
    order: dict[str, Any] = {
        "do": "port",
        "form": job.form,
        "patch": str(context.hub.snapshot(job.patch_repo, job.patch_sha, patch_files(patch))),
        "base_repo": job.new_repo,
        "base_sha": job.new_sha,
        "out": str(made.folder),
    }
    if job.form != "adapter":
        files = base_files(job.new_base(context.hub))
        report(f"fetching {job.new_repo}@{job.new_sha[:7]}, files", 0, len(files))
        order["base"] = str(context.hub.snapshot(job.new_repo, job.new_sha, files))
    digests: dict[str, str] = sandbox.run(order, report)
    for name in digests:
        if not PART.fullmatch(name) or (made.folder / name).is_symlink():
            raise PortllmError(f"The computing process answered with a path that is none: {name!r}")
    return digests


def artefact(context: Context, job: Job) -> Artefact:
    return Artefact(context.settings.work(job.key))
