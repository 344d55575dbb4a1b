"""Point an adapter at a new base: the same weights, two fields of its config changed."""

import json
import re
import shutil
from pathlib import Path

from porting.errors import Refused, UsageError
from porting.files import TRAVEL, matches
from porting.patch.adapter import Adapter, read_adapter
from porting.plan import Plan, plan
from porting.source import Folder, sha256
from porting.weights.staging import staged

REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def repoint(
    patch: Path,
    out: Path,
    base_repo: str,
    base_revision: str,
    *,
    base: Path | None = None,
    old_base: Path | None = None,
) -> dict[str, str]:
    """Write the adapter in `patch` to `out`, with `base_repo` at `base_revision` as its base.

    The weights, the tokenizer's files and the licence are copied byte for byte; pickles, training
    state and the card stay behind. `out` appears whole or not at all.

    Where `plan(..., as_="adapter")` says that it `rewrites`, the folders of both bases are needed:
    saved values get the vendor's change added, a class B adapter becomes a plain LoRA of twice
    the rank, and rows that the base's vocabulary gained are left as they are.

    Args:
        base: the new base, where the adapter is rewritten.
        old_base: the base that the patch was trained on, where its values need it.

    Returns:
        sha256 of every file written, by name.

    Raises:
        Refused: an adapter that would mean something else on another base.
        UsageError: `base_revision` is no commit id, or `out` exists and is not empty.
    """
    if not REPO.fullmatch(base_repo) or not COMMIT.fullmatch(base_revision):
        raise UsageError(f"{base_repo}@{base_revision} is not a repository at a 40-digit commit")
    source = Folder(patch)
    found = read_adapter(source)
    config = found.config
    copied = set(found.layout.files) | ({found.layout.index} if found.layout.index else set())
    if found.old_base_field and (base is None or old_base is None):
        raise Refused(
            f"{found.config_file} in {source.name}: {found.old_base_field} has a meaning only "
            "beside the patch's own base; give the old and the new base"
        )
    old = Folder(old_base) if old_base else None
    made = plan(Folder(base), source, as_="adapter", old_base=old) if base else None
    with staged(out) as stage:
        if made and base and made.rewrites:
            config = _rewritten(made, found, source, Folder(base), old, stage)
            copied = set()
        for file in source.files():
            if file in copied or matches(file, TRAVEL):
                shutil.copyfile(source.locate(file), stage / file)
        config |= {"base_model_name_or_path": base_repo, "revision": base_revision}
        (stage / found.config_file).write_text(json.dumps(config, indent=2), encoding="utf-8")
        return {file.name: sha256(file) for file in sorted(stage.iterdir())}


def _rewritten(
    made: Plan, found: Adapter, patch: Folder, base: Folder, old: Folder | None, stage: Path
) -> dict[str, object]:
    """Write the new weights to `stage`; returns the new config."""
    from safetensors.torch import load_file, save_file

    from porting.rebase import rebased_config, rebased_tensors  # torch takes seconds to import

    [file] = found.layout.files
    tensors = load_file(patch.locate(file))
    tensors |= rebased_tensors(made, found.config, patch, base, old)
    save_file(tensors, stage / file, metadata={"format": "pt"})
    return rebased_config(found.config)
