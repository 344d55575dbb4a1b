"""The process that reads strangers' files: `python -m bot.making.compute JOB`, of `sandbox`.

It is given no token, is told to stay offline, takes local folders, and writes only where the job
says.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bot.running.machine import trouble
from judging.task import Task
from porting import Folder, Port, merge, plan, repoint
from porting.errors import Refused
from porting.merge import Merger


def tell(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def port(job: dict[str, Any]) -> dict[str, str]:
    """Write the asked forms below `out`; returns the sha256 of every file, by path below `out`."""
    patch, out = Path(job["patch"]), Path(job["out"])
    base = Path(job["base"]) if "base" in job else None
    old_base = _old_base(job)
    digests: dict[str, str] = {}
    if job["form"] in ("merged", "both"):
        assert base is not None
        made = _asked(job).plan
        told = _Merging(made.bytes_out)
        written = merge(
            made,
            base,
            patch,
            out / "merged",
            told.add,
            old_base=old_base,
            hashed=job["hashed"],
            finished=told.finish,
        )
        digests |= {f"merged/{name}": digest for name, digest in written.items()}
    if job["form"] in ("adapter", "both"):
        repo, sha = job["base_repo"], job["base_sha"]
        written = repoint(patch, out / "adapter", repo, sha, base=base, old_base=old_base)
        digests |= {f"adapter/{name}": digest for name, digest in written.items()}
    return digests


def port_file(job: dict[str, Any]) -> str:
    """Write `file` of a merged model to `out`; returns its sha256.

    Of the base's other weights only the headers are there (`bot.making.remote`). They are removed
    once the plan is made, so that a read of their values would be an error rather than zeros.
    """
    from porting.weights.deltas import one_thread  # torch: seconds to import

    base, file, asked = Path(job["base"]), job["file"], _asked(job)
    merger = Merger([asked], base)
    for other in set(asked.plan.layout.files) - {file}:
        (base / other).unlink()
    told = _Merging((base / file).stat().st_size)
    with one_thread():
        [digest] = merger.write(file, [Path(job["out"])], told.add)
    return digest


def forecast(job: dict[str, Any]) -> dict[str, Any]:
    """What the weights alone say about a port; of the bases only touched tensors must be there."""
    from porting.forecast import forecast  # torch: seconds to import

    return forecast(_asked(job, whole=False), Path(job["base"]), _telling).to_dict()


def _asked(job: dict[str, Any], whole: bool = True) -> Port:
    """The merged port that an order is about, planned."""
    patch, old_base = Path(job["patch"]), _old_base(job)
    made = plan(
        Folder(Path(job["base"])),
        Folder(patch),
        as_="merged",
        old_base=Folder(old_base) if old_base else None,
        policy=job["policy"],
        whole=whole,
    )
    return Port(made, patch, old_base)


def _old_base(job: dict[str, Any]) -> Path | None:
    return Path(job["old_base"]) if "old_base" in job else None


class _Merging:
    """Tells how many bytes are written, and which files are finished; from any thread."""

    def __init__(self, total: int) -> None:
        self.done, self.total, self._lock = 0, total, threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self.done = min(self.done + size, self.total)
            self._tell("")

    def finish(self, file: str) -> None:
        with self._lock:
            self._tell(file)

    def _tell(self, file: str) -> None:
        tell(progress=["merging, bytes", self.done, self.total, file])


def judge(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The evidence on every case in the file `cases`; each may name its order for a forecast."""
    from judging.run import Case, run  # torch, transformers and lm-eval: seconds to import

    read = json.loads(Path(job["cases"]).read_text())
    found = run([Case.model_validate(each) for each in read], _telling)
    for evidence, each in zip(found, read, strict=True):
        if each["forecast"] is not None:
            evidence.forecast = forecast(each["forecast"])
    return [evidence.model_dump() for evidence in found]


def device(_: dict[str, Any]) -> str:
    """Where this machine would run models: cpu or cuda."""
    from judging.device import DEVICE  # torch: a second to import

    return DEVICE


def fetch_task(job: dict[str, Any]) -> str:
    """Fetch the data of lm-eval's task `name` into the cache; returns their digest."""
    from judging.named import data_digest

    return data_digest(job["name"])


def slice_(job: dict[str, Any]) -> dict[str, Any] | None:
    """The loss along the patch on the first items of the file `task`."""
    from judging.run import slice_of

    task = Task.model_validate_json(Path(job["task"]).read_text())
    found = slice_of(Path(job["base"]), Path(job["adapter"]), task, _telling)
    return found.model_dump() if found else None


def extract(job: dict[str, Any]) -> dict[str, Any]:
    """Write to `out` what makes `tuned` of `base`; returns the report of `porting`'s function."""
    from porting.extract import extract_lora, of_energy, of_rank  # torch: seconds to import
    from porting.subtract import extract_full

    tuned, base, out = (Path(job[name]) for name in ("tuned", "base", "out"))
    if job["as"] == "full":
        return extract_full(tuned, base, out, job["address"], _telling)
    rank = of_rank(job["value"]) if job["as"] == "rank" else of_energy(job["value"])
    return extract_lora(tuned, base, out, rank, job["address"], _telling)


def _telling(what: str, done: int, total: int) -> None:
    tell(progress=[what, done, total])


def stack(job: dict[str, Any]) -> dict[str, Any]:
    """Write the weighted sum of several LoRAs to `out`; returns the report of `porting`'s."""
    from porting import stack  # torch: seconds to import

    patches = [Path(patch) for patch in job["patches"]]
    return stack.stack(patches, job["weights"], Path(job["out"]))


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(sys.argv[1])
    try:
        work: dict[str, Callable[[dict[str, Any]], Any]] = {
            "port": port,
            "port_file": port_file,
            "forecast": forecast,
            "judge": judge,
            "device": device,
            "fetch_task": fetch_task,
            "slice": slice_,
            "extract": extract,
            "stack": stack,
        }
        result = work[job["do"]](job)
    except Refused as refusal:
        tell(refused=str(refusal))
    except (OSError, MemoryError) as error:
        if (broken := trouble(error)) is None:
            raise
        tell(broken=broken)
    else:
        tell(result=result)


if __name__ == "__main__":
    main()
