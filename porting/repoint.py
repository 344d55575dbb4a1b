"""Point an adapter at a new base: the same weights, two fields of its config changed."""

import json
import re
import shutil
from pathlib import Path

from porting.adapter import CONFIG, WEIGHTS, read_adapter
from porting.errors import UsageError
from porting.files import TRAVEL, matches
from porting.source import Folder, sha256
from porting.staging import staged

REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def repoint(patch: Path, out: Path, base_repo: str, base_revision: str) -> dict[str, str]:
    """Write the adapter in `patch` to `out`, with `base_repo` at `base_revision` as its base.

    The weights, the tokenizer's files and the licence are copied byte for byte; pickles, training
    state and the card stay behind. `out` appears whole or not at all.

    Returns:
        sha256 of every file written, by name.

    Raises:
        Refused: an adapter that would mean something else on another base.
        UsageError: `base_revision` is no commit id, or `out` exists and is not empty.
    """
    if not REPO.fullmatch(base_repo) or not COMMIT.fullmatch(base_revision):
        raise UsageError(f"{base_repo}@{base_revision} is not a repository at a 40-digit commit")
    source = Folder(patch)
    config = read_adapter(source).config
    config |= {"base_model_name_or_path": base_repo, "revision": base_revision}
    with staged(out) as stage:
        for file in source.files():
            if file == WEIGHTS or matches(file, TRAVEL):
                shutil.copyfile(source.locate(file), stage / file)
        (stage / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        return {file.name: sha256(file) for file in sorted(stage.iterdir())}
