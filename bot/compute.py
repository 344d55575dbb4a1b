"""The process that reads strangers' files: `python -m bot.compute JOB`. Started by `bot.sandbox`.

It is given no token, is told to stay offline, takes local folders, and writes only where the job
says.
"""

import json
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

from bot.arms import ARMS
from bot.evaluation import read_evaluation
from porting import Folder, merge, plan, repoint
from porting.errors import Refused, UsageError


def tell(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def port(job: dict[str, Any]) -> dict[str, str]:
    """Write the asked forms below `out`; returns the sha256 of every file, by path below `out`."""
    patch, out = Path(job["patch"]), Path(job["out"])
    digests: dict[str, str] = {}
    if job["form"] in ("merged", "both"):
        base = Path(job["base"])
        written = _merge(base, patch, out / "merged")
        digests |= {f"merged/{name}": digest for name, digest in written.items()}
    if job["form"] in ("adapter", "both"):
        written = repoint(patch, out / "adapter", job["base_repo"], job["base_sha"])
        digests |= {f"adapter/{name}": digest for name, digest in written.items()}
    return digests


def _merge(base: Path, patch: Path, out: Path) -> dict[str, str]:
    made = plan(Folder(base), Folder(patch), as_="merged")
    done = 0

    def progress(size: int) -> None:
        nonlocal done
        done += size
        tell(progress=["merging, MB", done // 1_000_000, made.bytes_out // 1_000_000])

    return merge(made, base, patch, out, progress)


def score(job: dict[str, Any]) -> dict[str, list[int]]:
    """Judge every arm on the patch's items: 1 for an item answered right, 0 for one that is not."""
    from bot.evaluate import correct  # torch, transformers and lm-eval: seconds to import

    evaluation = read_evaluation(Folder(Path(job["patch"])))
    if evaluation is None:
        raise UsageError(f"{job['patch']} brings no evaluation.")
    results = {}
    for arm, (base, adapter) in job["arms"].items():
        report = partial(_judging, arm)
        results[arm] = correct(Path(base), Path(adapter) if adapter else None, evaluation, report)
    return results


def _judging(arm: str, done: int, total: int) -> None:
    tell(progress=[f"judging {ARMS[arm]}, items", done, total])


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(sys.argv[1])
    try:
        result = {"port": port, "score": score}[job["do"]](job)
    except Refused as refusal:
        tell(refused=str(refusal))
    else:
        tell(result=result)


if __name__ == "__main__":
    main()
