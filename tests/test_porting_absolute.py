"""Values that an adapter holds whole move as differences to the old base, in both forms."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from porting import Folder, Refused, merge, plan, repoint
from tests import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [3, 40, 95]
CASES: dict[str, dict[str, Any]] = {
    "modules_to_save": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved, from a gaussian start": {
        "modules_to_save": ["lm_head"],
        "init_lora_weights": "gaussian",
        "use_rslora": True,
    },
    "a norm to save": {"modules_to_save": ["norm"]},
    "trainable tokens": {"trainable_token_indices": ROWS},
    "biases of the LoRA layers": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "saved embeddings": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
}


def save_patch(folder: Path, base: Path, family: str, **lora: Any) -> Path:
    """An adapter, everything in it changed by N(0, 0.3), as PEFT saves it."""
    lora.setdefault("target_modules", tiny.TARGETS[family][:2])
    model = get_peft_model(tiny.load(base), LoraConfig(task_type="CAUSAL_LM", r=4, **lora))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "original_module" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def merged(old: Path, new: Path, patch: Path, out: Path) -> dict[str, torch.Tensor]:
    made = plan(Folder(new), Folder(patch), as_="merged", old_base=Folder(old))
    merge(made, new, patch, out, old_base=old)
    return weights(out)


def peft_merged(base: Path, patch: Path, out: Path) -> dict[str, torch.Tensor]:
    tiny.load_adapted(base, patch).merge_and_unload().save_pretrained(out)
    return weights(out)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("case", CASES)
def test_the_vendors_change_and_the_patchs_change_both_survive(
    tmp_path: Path, family: str, case: str
) -> None:
    """merged(new) - new = PEFT's merge on the old base - old, for every tensor: within 2e-6, as
    float32 values below 4 round by 2^-23 at most twice on each side."""
    if family == "gpt_neox" and ("saved" in case or "save" in case):
        pytest.skip("names of Llama")
    if family == "llama" and "biases" in case:
        pytest.skip("Llama has no biases")
    old = tiny.save_base(tmp_path / "old", family, seed=1)
    new = tiny.save_base(tmp_path / "new", family, seed=2)
    patch = save_patch(tmp_path / "patch", old, family, **CASES[case])
    ported = merged(old, new, patch, tmp_path / "out")
    before, after = weights(old), weights(new)
    peft = peft_merged(old, patch, tmp_path / "peft on old")
    changed = 0
    for name, value in ported.items():
        expected = peft[name] - before[name]
        changed += int(expected.abs().max() > 0.1)
        torch.testing.assert_close(value - after[name], expected, atol=2e-6, rtol=0)
    assert changed >= 2 + ("norm" not in case)

    made = plan(Folder(new), Folder(patch), as_="adapter", old_base=Folder(old))
    assert "Convert" in made.summary
    repoint(patch, tmp_path / "adapter", "demo/base", COMMIT, base=new, old_base=old)
    again = peft_merged(new, tmp_path / "adapter", tmp_path / "peft on new")
    for name, value in ported.items():
        torch.testing.assert_close(again[name], value, atol=2e-6, rtol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("as_", ["merged", "adapter"])
def test_without_the_old_base_it_is_refused(tmp_path: Path, case: str, as_: Any) -> None:
    family = "gpt_neox" if "biases" in case else "llama"
    base = tiny.save_base(tmp_path / "base", family)
    patch = save_patch(tmp_path / "patch", base, family, **CASES[case])
    with pytest.raises(Refused, match=r"adapter_config\.json .* give that base too"):
        plan(Folder(base), Folder(patch), as_=as_)
    with pytest.raises(Refused, match="give the old and the new base"):
        repoint(patch, tmp_path / "out", "demo/base", COMMIT)


def test_rows_that_the_vendor_appended_are_kept(tmp_path: Path) -> None:
    old = tiny.save_base(tmp_path / "old", seed=1)
    new = tiny.save_base(tmp_path / "new", seed=2)
    grown = weights(new)
    extra = torch.randn(8, 32)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        grown[name] = torch.cat([grown[name], extra])
    save_file(grown, new / "model.safetensors", metadata={"format": "pt"})
    tiny.edit_json(new / "config.json", vocab_size=tiny.VOCABULARY + 8)
    for number, case in enumerate(("modules_to_save", "saved embeddings", "trainable tokens")):
        patch = save_patch(tmp_path / f"patch{number}", old, "llama", **CASES[case])
        ported = merged(old, new, patch, tmp_path / f"out{number}")
        head = ported["model.embed_tokens.weight"]
        assert torch.equal(head[tiny.VOCABULARY :], extra)
        assert not torch.equal(head[: tiny.VOCABULARY], grown["model.embed_tokens.weight"][:-8])
        adapter = tmp_path / f"adapter{number}"
        repoint(patch, adapter, "demo/base", COMMIT, base=new, old_base=old)
        again = PeftModel.from_pretrained(tiny.load(new), adapter).merge_and_unload().state_dict()
        for name, value in ported.items():
            torch.testing.assert_close(again[name], value, atol=2e-6, rtol=0)


def test_rows_that_the_patch_appended_are_refused(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    patch = save_patch(tmp_path / "patch", base, "llama", **CASES["modules_to_save"])
    file = patch / "adapter_model.safetensors"
    name = "base_model.model.lm_head.weight"
    tensors = load_file(file)
    save_file(tensors | {name: torch.zeros(tiny.VOCABULARY + 1, 32)}, file)
    with pytest.raises(Refused, match=r"'lm_head\.weight' .*\(97, 32\)"):
        plan(Folder(base), Folder(patch), as_="merged", old_base=Folder(base))


def test_a_classifier_that_no_base_has_travels_with_the_adapter(tmp_path: Path) -> None:
    base = tiny.raw_base(tmp_path / "base", {"q.weight": torch.zeros(8, 6)})
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)}, modules_to_save=["score"])
    file = patch / "adapter_model.safetensors"
    score = torch.randn(2, 8)
    save_file(load_file(file) | {"base_model.model.score.weight": score}, file)
    with pytest.raises(Refused, match=r"no tensor for 'score\.weight'"):
        plan(Folder(base), Folder(patch), as_="merged", old_base=Folder(base))
    repoint(patch, tmp_path / "out", "demo/base", COMMIT, base=base, old_base=base)
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert torch.equal(written["base_model.model.score.weight"], score)
