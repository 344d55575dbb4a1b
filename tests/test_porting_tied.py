"""A head and an embedding that share a tensor: an update of one leaves the other alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from porting import Folder, Refused, merge, plan, read_layout
from tests import tiny
from tests.families import load_family, save_family
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


@pytest.mark.parametrize("case", ["head", "embedding", "both"])
def test_a_head_that_is_tied_and_stored_all_the_same_is_untied(tmp_path: Path, case: str) -> None:
    base = tiny.save_base(tmp_path / "base", tied=True)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    patch = save_patch(tmp_path / "patch", base, "llama", **CASES[case])
    made = plan(Folder(base), Folder(patch), as_="merged", old_base=Folder(base))
    assert made.appended is None
    merge(made, base, patch, tmp_path / "out", old_base=base)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        ours = tiny.load(tmp_path / "out")(tokens).logits
        theirs = tiny.load_adapted(base, patch)(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


def test_two_heads_on_one_tensor_are_refused(tmp_path: Path) -> None:
    """T5 keeps one `shared.weight` for both embeddings and the head."""
    base = save_family(tmp_path / "base", "t5", tied=True)
    model = get_peft_model(
        load_family(base, "t5"), LoraConfig(target_modules=["q", "embed_tokens"], r=2)
    )
    model.save_pretrained(tmp_path / "patch", save_embedding_layers=False)
    with pytest.raises(Refused, match=r"share one tensor, and the patch updates both"):
        plan(Folder(base), Folder(tmp_path / "patch"), as_="merged")


@pytest.mark.parametrize("inner", [None, [], {}, {"tie_word_embeddings": True}])
def test_a_text_config_of_any_shape_is_survived(tmp_path: Path, inner: Any) -> None:
    weights = {"model.embed_tokens.weight": torch.randn(8, 6)}
    base = tiny.raw_base(tmp_path / "base", weights, vocab_size=8, text_config=inner)
    patch = tiny.raw_adapter(tmp_path / "patch", {"lm_head": (8, 6)})
    merge(plan(Folder(base), Folder(patch), as_="merged"), base, patch, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["text_config"] if inner else config)["tie_word_embeddings"] is False
