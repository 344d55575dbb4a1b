"""How fast a merge is, against copying, hashing, PEFT and mergekit: ratios in one run.

    python -m benchmarks.merge_speed --size 1.1B --runs 5 --mergekit PYTHON_WITH_MERGEKIT

Every contender is a process of its own, start-up included, whose output is on the disk (fsync)
when it ends. They take turns, so that a slow minute of the machine hits all of them. Warm: the
inputs are in the page cache. Cold: they are dropped from it before every run.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = """
import sys
from pathlib import Path
from porting import Folder, Port, merge_all, plan
base, out, hashed, *patches = sys.argv[1:]
base, out, patches = Path(base), Path(out), [Path(patch) for patch in patches]
ports = [Port(plan(Folder(base), Folder(patch), as_="merged"), patch) for patch in patches]
outs = [out / str(number) for number in range(len(ports))]
merge_all(ports, base, outs, hashed=hashed == "hashed")
"""
HASH = """
import hashlib, os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
def digest(file):
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(digest, Path(sys.argv[1]).iterdir()))
"""
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, patch, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, patch).merge_and_unload().save_pretrained(out)
"""
MERGEKIT = """
merge_method: passthrough
dtype: bfloat16
models: [{{model: "{base}+{patch}"}}]
"""


class Contender:
    """A command that writes to a folder; `sync` where it does not do that itself."""

    def __init__(self, name: str, command: Callable[[Path], list[str]], sync: bool = True) -> None:
        self.name, self.command, self.sync = name, command, sync
        self.seconds: list[float] = []
        self.peak = 0

    def run(self, out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()  # what the one before left to write is not this one's to wait for
        command = self.command(out)
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
            assert child.stderr is not None
            words = child.stderr.read()
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{self.name} failed: {words.decode()[-2000:]}")
        if self.sync:
            for file in out.rglob("*"):
                flush(file)
        self.seconds.append(time.perf_counter() - start)
        self.peak = max(self.peak, usage.ru_maxrss)


def flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def drop(folder: Path) -> None:
    """Take a folder's files out of the page cache."""
    for file in folder.rglob("*"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def warm(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                while stream.read(1 << 24):
                    pass


def contenders(base: Path, patches: list[Path], mergekit: str | None, skip: str) -> list[Contender]:
    python = sys.executable
    patch, many = str(patches[0]), [str(patch) for patch in patches]
    recipe = base.parent / "mergekit.yaml"
    recipe.write_text(MERGEKIT.format(base=base, patch=patch))
    portllm = str(Path(python).with_name("portllm"))
    port = [portllm, "port", str(base), patch, "--as", "merged", "--out"]
    found = [
        Contender("cp + fsync", lambda out: ["cp", "-r", str(base), str(out)]),
        Contender("sha256 alone", lambda out: [python, "-c", HASH, str(base)], False),
        Contender(
            "ours, no hash", lambda out: [python, "-c", OURS, str(base), str(out), "", patch], False
        ),
        Contender(
            "ours, sha256", lambda out: [python, "-c", OURS, str(base), str(out), "hashed", patch],
            False,
        ),
        Contender(
            f"ours, {len(many)} patches, no hash",
            lambda out: [python, "-c", OURS, str(base), str(out), "", *many],
            False,
        ),
        Contender("portllm port --no-hash", lambda out: [*port, str(out), "--no-hash"], False),
        Contender("portllm port", lambda out: [*port, str(out)], False),
        Contender("PEFT", lambda out: [python, "-c", PEFT, str(base), patch, str(out)]),
    ]  # fmt: skip
    if mergekit:
        tool = str(Path(mergekit).with_name("mergekit-yaml"))
        cache = ["--lora-merge-cache"]
        found.append(
            Contender("mergekit", lambda out: [tool, *cache, f"{out}/cache", str(recipe), str(out)])
        )
    return [contender for contender in found if contender.name not in skip.split(";")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1.1B")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--patches", type=int, default=8)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--mergekit", help="the Python that mergekit is installed for")
    parser.add_argument("--skip", default="", help="names of contenders, separated by ;")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.work"))
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    work = options.folder.resolve() / options.size
    base, patches = work / "base", [work / f"patch{n}" for n in range(options.patches)]
    # In a process of its own: a child's peak memory counts what its parent held when it forked.
    sizes = [options.size, str(options.shards), str(options.patches)]
    subprocess.run([sys.executable, "-m", "benchmarks.inputs", str(work), *sizes], check=True)
    all_of_them = contenders(base, patches, options.mergekit, options.skip)
    for _ in range(options.runs):
        for contender in all_of_them:
            (drop if options.cold else warm)(base)
            contender.run(work / "out")
            print(f"{contender.name}: {contender.seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    shutil.rmtree(work / "out", ignore_errors=True)
    unit = statistics.median(all_of_them[0].seconds)
    state = "cold" if options.cold else "warm"
    title = f"{options.size}, {state}, {options.runs} runs"
    print(f"| {title} | median s | min-max s | x {all_of_them[0].name} | peak MB |")
    print("|---|---|---|---|---|")
    for contender in all_of_them:
        seconds = contender.seconds
        median = statistics.median(seconds)
        print(
            f"| {contender.name} | {median:.2f} | {min(seconds):.2f}-{max(seconds):.2f} "
            f"| {median / unit:.2f} | {contender.peak // 1024} |"
        )
    print(json.dumps({c.name: c.seconds for c in all_of_them}), file=sys.stderr)


if __name__ == "__main__":
    main()
