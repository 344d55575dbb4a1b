"""Does the study's scorer say what the product's does, through lm-eval?

`python -m benchmarks.portability.same_scores DATA WORK [--items 60]` compares item by item, on the
old base alone and with each task's first patch attached.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.portability import tasks
from benchmarks.portability.bases import adapter
from benchmarks.portability.tasks import TASKS
from examples.smollm2 import base_model
from judging.model import Models
from judging.score import score
from judging.task import read_task
from porting import Folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--items", type=int, default=60, help="of each task and arm")
    given = parser.parse_args()
    torch.set_num_threads(1)
    models, same, total = Models(), 0, 0
    with TemporaryDirectory() as scratch:
        tasks.write(given.data, Path(scratch))
        for name in TASKS:
            task = read_task(Folder(Path(scratch) / name))
            assert task is not None
            golds = {item.number: item.gold for item in task.items}
            for patch in (None, f"{name}-0"):
                file = given.work / "cells" / "old" / f"scores.{name}.{patch or 'alone'}.json"
                if not file.exists():
                    continue
                ours = json.loads(file.read_text(encoding="utf-8"))
                chosen = [item for item in task.items if item.number <= len(ours)][: given.items]
                asked = task.model_copy(update={"items": chosen})
                with models.on(base_model(), patch and adapter(patch, given.work)) as loaded:
                    theirs = score(loaded, asked, 0, len(chosen), lambda *_: None)
                mine = []
                for item in chosen:
                    found = ours[item.number - 1]
                    mine.append(float(found.index(max(found)) == golds[item.number]))
                agreed = sum(a == b for a, b in zip(mine, theirs, strict=True))
                same, total = same + agreed, total + len(chosen)
                print(f"{name} {patch or 'alone'}: {agreed} of {len(chosen)} agree", flush=True)
    print(f"{same} of {total} agree")


if __name__ == "__main__":
    main()
