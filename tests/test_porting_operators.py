"""Every kind that PEFT merges, ported from one base to another, against PEFT on both bases."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from porting import Folder, Refused, merge, plan, repoint
from tests import tiny
from tests.peft_kinds import ADDITIVE, OPERATORS, save_kind, tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLOSE: dict[str, float] = {"atol": 3e-5, "rtol": 1e-5}  # PEFT sums up to 128 terms in float32
INITIALISED = [
    ("llama", {"init_lora_weights": "pissa"}),
    ("llama", {"init_lora_weights": "pissa", "use_rslora": True}),
    ("llama", {"init_lora_weights": "olora", "alpha_pattern": {"q_proj": 3}}),
    ("gpt2", {"init_lora_weights": "pissa", "rank_pattern": {"c_fc": 3}}),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """The base that the kinds are trained on, and a new one of the same shapes, by family."""
    folder, found = tmp_path_factory.mktemp("bases"), {}
    for family in ("llama", "gpt2"):
        old, new = folder / f"{family}-old", folder / f"{family}-new"
        model = tiny_model(family)
        model.save_pretrained(old)
        torch.manual_seed(9)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(new)
        found[family] = (old, new)
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def peft_merged(base: Path, patch: Path, out: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base)
    PeftModel.from_pretrained(model, patch).merge_and_unload().save_pretrained(out)
    return tensors(out)


def ported(old: Path, new: Path, patch: Path, out: Path, policy: Any) -> dict[str, torch.Tensor]:
    made = plan(Folder(new), Folder(patch), as_="merged", old_base=Folder(old), policy=policy)
    merge(made, new, patch, out, old_base=old)
    found = tensors(out)
    touched = {touch.tensor.name for touch in made.touched}
    for name, before in tensors(new).items():
        assert torch.equal(found[name], before) == (name not in touched), name
    return found


@pytest.mark.parametrize(("kind", "family", "fields"), ADDITIVE)
def test_an_additive_kind_adds_the_same_to_the_new_base(
    bases: Any, tmp_path: Path, kind: str, family: str, fields: dict[str, Any]
) -> None:
    old, new = bases[family]
    save_kind(tmp_path / "patch", kind, family, **fields)
    ours = ported(old, new, tmp_path / "patch", tmp_path / "out", None)
    theirs = peft_merged(new, tmp_path / "patch", tmp_path / "peft")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, **CLOSE)


@pytest.mark.parametrize(("kind", "family", "fields"), OPERATORS)
def test_an_operator_is_applied_again_or_frozen(
    bases: Any, tmp_path: Path, kind: str, family: str, fields: dict[str, Any]
) -> None:
    old, new = bases[family]
    patch = tmp_path / "patch"
    save_kind(patch, kind, family, **fields)
    file = patch / "adapter_model.safetensors"
    kept = {name: t for name, t in load_file(file).items() if ".base_layer." not in name}
    save_file(kept, file)  # the old embedding, which PEFT would put in the place of the new one
    with pytest.raises(Refused, match=r"class C.* policy reapply .* or freeze"):
        plan(Folder(new), Folder(patch), as_="merged", old_base=Folder(old))
    with pytest.raises(Refused, match=r"policy freeze .* give that base too"):
        plan(Folder(new), Folder(patch), as_="merged", policy="freeze")
    assert plan(Folder(new), Folder(patch), as_="adapter", old_base=Folder(old)).policy == "reapply"
    reapplied = ported(old, new, patch, tmp_path / "reapplied", "reapply")
    for name, value in peft_merged(new, patch, tmp_path / "peft on new").items():
        torch.testing.assert_close(reapplied[name], value, **CLOSE)
    frozen = ported(old, new, patch, tmp_path / "frozen", "freeze")
    before, after = tensors(old), tensors(new)
    for name, value in peft_merged(old, patch, tmp_path / "peft on old").items():
        expected = after[name].double() + value.double() - before[name].double()
        torch.testing.assert_close(frozen[name].double(), expected, **CLOSE)
    changed = [name for name in frozen if not torch.equal(frozen[name], reapplied[name])]
    assert changed or kind == "MISS"  # of which only the `bat` variant depends on the base


@pytest.mark.parametrize(("family", "fields"), INITIALISED)
def test_a_lora_that_started_from_the_base_is_converted_against_the_old_one(
    bases: Any, tmp_path: Path, family: str, fields: dict[str, Any]
) -> None:
    """PEFT takes the same A0 B0 out of the old base and adds B A: singular values above 0.1 make
    the two agree to 1e-4 in float32."""
    old, new = bases[family]
    patch = tmp_path / "patch"
    save_kind(patch, "LORA", family, r=4, **fields)
    with pytest.raises(Refused, match=r"init_lora_weights .* give that base too"):
        plan(Folder(new), Folder(patch), as_="merged")
    ours = ported(old, new, patch, tmp_path / "out", None)
    before, after = tensors(old), tensors(new)
    close = {"atol": 1e-4, "rtol": 0.0}
    for name, value in peft_merged(old, patch, tmp_path / "peft").items():
        torch.testing.assert_close(ours[name] - after[name], value - before[name], **close)

    repoint(patch, tmp_path / "adapter", "demo/base", COMMIT, base=new, old_base=old)
    converted = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {t.shape[0] for name, t in converted.items() if "lora_A" in name} <= {6, 8}
    for name, value in peft_merged(new, tmp_path / "adapter", tmp_path / "again").items():
        torch.testing.assert_close(ours[name], value, **close)


def test_a_kind_that_cannot_be_merged_is_pointed_elsewhere(tmp_path: Path) -> None:
    base = tiny.raw_base(tmp_path / "base", {"q.weight": torch.zeros(8, 6)})
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)}, peft_type="PREFIX_TUNING")
    with pytest.raises(Refused, match=r"prefix_tuning can't be merged \(class D\).* adapter"):
        plan(Folder(base), Folder(patch), as_="merged")
    assert "as it is" in plan(Folder(base), Folder(patch), as_="adapter").summary
    digests = repoint(patch, tmp_path / "out", "demo/base", COMMIT)
    assert (
        digests["adapter_model.safetensors"]
        == Folder(patch).files()["adapter_model.safetensors"].digest
    )
