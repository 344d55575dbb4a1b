"""The product's weight-only forecast of every cell that has been scored.

`python -m benchmarks.portability.forecasts WORK`
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from benchmarks.portability.bases import adapter, new_base
from examples.smollm2 import base_model
from porting import Folder, Port, plan
from porting.forecast import forecast


def checkpoint(base: str, work: Path, out: Path) -> Path:
    """Write a base as a checkpoint folder."""
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base_model() / file, out)
    save_file(new_base(base, work), out / "model.safetensors", metadata={"format": "pt"})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    torch.set_num_threads(1)
    for folder in sorted((work / "cells").iterdir()):
        patches = {file.name.split(".")[2] for file in folder.glob("scores.*.json")} - {"alone"}
        missing = [
            (patch, folder / f"forecast.{patch}.json") for patch in patches if "@" not in patch
        ]
        missing = [(patch, file) for patch, file in missing if not file.exists()]
        if not missing or folder.name == "old":
            continue
        with TemporaryDirectory(dir=work) as scratch:
            new = checkpoint(folder.name, work, Path(scratch))
            for patch, file in missing:
                where, old = adapter(patch, work), base_model()
                made = plan(Folder(new), Folder(where), as_="merged", old_base=Folder(old))
                found = forecast(Port(made, where, old), new).to_dict()["total"]
                file.write_text(json.dumps(found), encoding="utf-8")
                print(time.strftime("%H:%M:%S"), folder.name, patch, found, flush=True)


if __name__ == "__main__":
    main()
