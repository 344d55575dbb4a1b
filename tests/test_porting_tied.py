"""A head and an embedding that share a tensor: an update of one leaves the other alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from porting import Folder, merge, plan, read_layout
from tests import tiny
from tests.test_porting_absolute import save_patch

CASES: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "both, tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "saved head": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_gives_the_logits_of_the_adapter(
    tmp_path: Path, case: str, sharded: bool
) -> None:
    """PEFT's own merge_and_unload + save_pretrained changes both (peft#2018); unmerged is right."""
    size = "20KB" if sharded else "5GB"
    base = tiny.save_base(tmp_path / "base", tied=True, shard_size=size)
    patch = save_patch(tmp_path / "patch", base, "llama", **CASES[case])
    made = plan(Folder(base), Folder(patch), as_="merged", old_base=Folder(base))
    digests = merge(made, base, patch, tmp_path / "out", old_base=base)

    assert made.head is not None
    assert made.to_dict()["untied_head"] == "lm_head.weight"
    assert made.bytes_out <= sum(f.stat().st_size for f in (tmp_path / "out").iterdir()) + 4096
    assert digests == {f: e.digest for f, e in Folder(tmp_path / "out").files().items()}
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    layout = read_layout(Folder(tmp_path / "out"))
    assert layout.tensors["lm_head.weight"].shape == (tiny.VOCABULARY, 32)
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        ours = tiny.load(tmp_path / "out")(tokens).logits
        theirs = tiny.load_adapted(base, patch)(tokens).logits
        before = tiny.load(base)(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)
    assert (theirs - before).abs().max() > 0.1
    if case in ("head", "saved head"):
        name, old = "model.embed_tokens.weight", read_layout(Folder(base)).tensors
        file = layout.tensors[name].file
        assert torch.equal(
            load_file(tmp_path / "out" / file)[name], load_file(base / old[name].file)[name]
        )


def test_trained_tokens_change_both_and_stay_tied(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", tied=True)
    patch = save_patch(tmp_path / "patch", base, "llama", trainable_token_indices=[1, 50])
    made = plan(Folder(base), Folder(patch), as_="merged", old_base=Folder(base))
    assert made.head is None
    merge(made, base, patch, tmp_path / "out", old_base=base)
    tokens = torch.tensor([[1, 50, 7]])
    with torch.no_grad():
        ours = tiny.load(tmp_path / "out")(tokens).logits
        theirs = tiny.load_adapted(base, patch)(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)
