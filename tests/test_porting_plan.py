"""The dry run: modules found under their names, shapes compared, files sorted, nothing written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from porting import Folder, Plan, Refused, merge, plan, repoint
from tests import tiny


def plan_of(tmp_path: Path, base: dict[str, Any], patch: dict[str, Any], as_: Any) -> Plan:
    """Plan with a base of tensors by name and a patch of shapes by module; both take a config."""
    base_folder = tiny.raw_base(tmp_path / "base", base["tensors"], **base.get("config", {}))
    patch_folder = tiny.raw_adapter(tmp_path / "patch", patch["shapes"], **patch.get("config", {}))
    return plan(Folder(base_folder), Folder(patch_folder), as_=as_)


def zeros(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Tensors by name, with `__` for each dot."""
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


def test_a_plan_prints_itself(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", shard_size="30KB", dtype=torch.bfloat16)
    for name in ("README.md", "pytorch_model.bin", "model.fp16.safetensors", "modeling_x.py"):
        (base / name).write_text("x")
    for name in ("tokenizer.json", "LICENSE.txt", "chat_template.jinja", ".gitattributes"):
        (base / name).write_text("x")
    (base / "original").mkdir()
    (base / "original" / "consolidated.00.pth").write_text("x")
    (base / "original" / "tokenizer.model").write_text("x")
    patch = tiny.save_adapter(tmp_path / "patch", base, r=2, target_modules=["v_proj"])
    (patch / "tokenizer.json").write_text("y")
    before = sorted(path for path in tmp_path.rglob("*"))
    made = plan(Folder(base), Folder(patch), as_="merged")
    printed = json.loads(json.dumps(made.to_dict()))

    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert printed["touched"][1] == {
        "tensor": "model.layers.1.self_attn.v_proj.weight",
        "file": printed["touched"][1]["file"],
        "shape": [16, 32],
        "dtype": "BF16",
        "module": "model.layers.1.self_attn.v_proj",
        "update": "LoraPair",
        "rank": 2,
        "scale": 4.0,
        "expert": None,
    }
    copied = set(printed["copied_files"])
    assert {"config.json", "tokenizer.json", "LICENSE.txt", "chat_template.jinja"} <= copied
    assert "model.safetensors.index.json" in copied
    assert not copied & {touched["file"] for touched in printed["touched"]}
    assert {entry["file"]: entry["reason"] for entry in printed["skipped_files"]} == {
        ".gitattributes": "the Hub writes its own",
        "README.md": "a port gets its own card",
        "model.fp16.safetensors": "not the weights that are loaded",
        "modeling_x.py": "code from strangers is never run or moved",
        "original/consolidated.00.pth": "pickle, or another copy of the weights",
        "original/tokenizer.model": "in a subfolder",
        "pytorch_model.bin": "pickle, or another copy of the weights",
        "tokenizer.json (patch)": "a merged model keeps the base's own",
    }
    assert printed["summary"].startswith("Merge 2 lora updates into 2 of 21 tensors: ")


def test_a_plan_for_an_adapter_covers_the_files_of_the_patch(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    patch = tiny.save_adapter(tmp_path / "patch", base, r=2)
    (patch / "tokenizer.json").write_text("y")
    (patch / "optimizer.pt").write_text("x")
    (patch / "README.md").write_text("z")
    made = plan(Folder(base), Folder(patch), as_="adapter")
    assert made.copied_files == ("adapter_model.safetensors", "tokenizer.json")
    assert [file for file, _ in made.skipped_files] == ["README.md", "optimizer.pt"]
    written = repoint(patch, tmp_path / "out", "demo/base", "a" * 40)
    assert set(written) == {*made.copied_files, "adapter_config.json"}


@pytest.mark.parametrize(
    ("module", "tensor"),
    [
        ("model.layers.0.q", "model.layers.0.q.weight"),
        ("model.layers.0.q", "layers.0.q.weight"),
        ("h.0.q", "transformer.h.0.q.weight"),
    ],
)
@pytest.mark.parametrize("as_", ["merged", "adapter"])
def test_one_prefix_more_or_less_is_found(
    tmp_path: Path, module: str, tensor: str, as_: str
) -> None:
    made = plan_of(
        tmp_path,
        {"tensors": {tensor: torch.zeros(8, 6), "other.weight": torch.zeros(8, 6)}},
        {"shapes": {module: (8, 6)}},
        as_,
    )
    assert [touch.tensor.name for touch in made.touched] == [tensor]


@pytest.mark.parametrize(
    ("tensors", "shapes", "said"),
    [
        (
            {"a.x.q.weight": (8, 6)},
            {"q": (8, 6)},
            "no tensor for 'q.weight' (the nearest name is a.x.q",
        ),
        ({"model.k.weight": (8, 6)}, {"model.q": (8, 6)}, "nearest name is model.k.weight"),
        (
            {"a.q.weight": (8, 6), "b.q.weight": (8, 6)},
            {"q": (8, 6)},
            "may be any of ['a.q.weight'",
        ),
        ({"q.weight": (8, 6), "b.a.q.weight": (8, 6)}, {"a.q": (8, 6)}, "may be any of ['b.a.q"),
        ({"q.weight": (8, 6)}, {"q": (8, 6), "a.q": (8, 6)}, "by several prefixes"),
        (
            {"q.weight": (8, 6), "b.k.weight": (8, 6)},
            {"a.q": (8, 6), "k": (8, 6)},
            "by several prefixes",
        ),
        ({"q.weight": (8, 5)}, {"q": (8, 6)}, "shape (8, 6), but 'q.weight'"),
        ({"q.weight": (8, 6, 1)}, {"q": (8, 6)}, "holds 8 experts"),
    ],
)
@pytest.mark.parametrize("as_", ["merged", "adapter"])
def test_a_module_without_exactly_one_tensor_of_its_shape_is_refused(
    tmp_path: Path,
    tensors: dict[str, tuple[int, ...]],
    shapes: dict[str, tuple[int, int]],
    said: str,
    as_: str,
) -> None:
    base = {"tensors": {name: torch.zeros(shape) for name, shape in tensors.items()}}
    with pytest.raises(Refused, match=r"adapter_model\.safetensors|[Tt]he patch's") as refusal:
        plan_of(tmp_path, base, {"shapes": shapes}, as_)
    assert said in str(refusal.value)


def turned(made: Plan) -> dict[str, bool]:
    return {touch.update.target.removesuffix(".weight"): touch.transposed for touch in made.touched}


def test_the_shape_decides_how_a_weight_is_kept(tmp_path: Path) -> None:
    base = {"tensors": zeros(x__weight=(8, 6), y__weight=(6, 8))}
    made = plan_of(tmp_path, base, {"shapes": {"x": (8, 6), "y": (8, 6)}}, "merged")
    assert turned(made) == {"x": False, "y": True}


@pytest.mark.parametrize("flag", [False, True])
def test_square_weights_follow_the_config_unless_other_modules_differ(
    tmp_path: Path, flag: bool
) -> None:
    config = {"fan_in_fan_out": flag}
    base = {"tensors": zeros(x__weight=(8, 8), y__weight=(6, 8))}
    made = plan_of(tmp_path / "1", base, {"shapes": {"x": (8, 8)}, "config": config}, "merged")
    assert turned(made) == {"x": flag}
    shape = (6, 8) if flag else (8, 6)  # kept in the other way than the config says
    patch = {"shapes": {"x": (8, 8), "y": shape}, "config": config}
    with pytest.raises(Refused, match=r"adapter_config\.json: fan_in_fan_out .*'x\.weight'"):
        plan_of(tmp_path / "2", base, patch, "merged")


def test_square_weights_of_gpt2_are_known_by_name(tmp_path: Path) -> None:
    base = {"tensors": zeros(c_proj__weight=(8, 8), head__weight=(8, 8))}
    base["config"] = {"model_type": "gpt2"}
    patch = {"shapes": {"c_proj": (8, 8), "head": (8, 8)}}
    assert turned(plan_of(tmp_path, base, patch, "merged")) == {"c_proj": True, "head": False}


@pytest.mark.parametrize(
    "config",
    [
        {"tie_word_embeddings": True, "vocab_size": 96},
        {"vocab_size": 96},  # tied is what Transformers assumes
        {"text_config": {"tie_word_embeddings": True, "vocab_size": 96}},
    ],
)
def test_a_tied_head_gets_a_tensor_of_its_own(tmp_path: Path, config: dict[str, Any]) -> None:
    base = {"tensors": zeros(embed__weight=(96, 8)), "config": config}
    patch = {"shapes": {"lm_head": (96, 8)}}
    made = plan_of(tmp_path / "1", base, patch, "adapter")
    assert made.head is None
    made = plan_of(tmp_path / "2", base, patch, "merged")
    assert [touch.tensor.name for touch in made.touched] == ["lm_head.weight"]
    assert made.head is not None
    assert made.head.start == made.layout.tensors["embed.weight"].start
    base["tensors"] = zeros(embed__weight=(95, 8))
    with pytest.raises(Refused, match=r"tied head, but .* 0 tensors of 96 rows"):
        plan_of(tmp_path / "3", base, patch, "adapter")


def test_an_untied_head_is_merged_as_in_peft(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", tied=False)
    patch = tiny.save_adapter(tmp_path / "patch", base, target_modules=["lm_head", "q_proj"])
    with pytest.raises(Refused, match=r"save_embedding_layers .*give that base too"):
        plan(Folder(base), Folder(patch), as_="merged")  # PEFT saves the whole head by default
    made = plan(Folder(base), Folder(patch), as_="merged", old_base=Folder(base))
    merge(made, base, patch, tmp_path / "out", old_base=base)
    ours = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"]
    peft = tiny.load_adapted(base, patch).merge_and_unload().state_dict()["lm_head.weight"]
    torch.testing.assert_close(ours, peft)


def test_a_quantised_base_takes_an_adapter_but_no_merge(tmp_path: Path) -> None:
    base = {
        "tensors": {"q.weight": torch.zeros(24, 1, dtype=torch.uint8)},
        "config": {"quantization_config": {"quant_method": "bitsandbytes"}},
    }
    patch = {"shapes": {"q": (8, 6)}}
    made = plan_of(tmp_path / "1", base, patch, "adapter")
    assert made.touched == ()
    assert "quantised" in made.summary
    with pytest.raises(Refused, match=r"config\.json .*quantization_config"):
        plan_of(tmp_path / "2", base, patch, "merged")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("q.qweight", None),  # GPTQ, AWQ
        ("q.weight.absmax", None),  # bitsandbytes
        ("q.weight_scale_inv", None),  # FP8
        ("q.weight", "quantize_config.json"),  # GPTQ before config.json had a field for it
        ("q.weight", "quant_config.json"),  # AWQ
    ],
)
def test_quantised_bases_are_known_without_their_config(
    tmp_path: Path, name: str, file: str | None
) -> None:
    base = tiny.raw_base(tmp_path / "base", {name: torch.zeros(24, 1, dtype=torch.uint8)})
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)})
    if file:
        (base / file).write_text("{}")
    assert plan(Folder(base), Folder(patch), as_="adapter").touched == ()
    with pytest.raises(Refused, match=r"quantised .* follow the unquantised base"):
        plan(Folder(base), Folder(patch), as_="merged")


def test_a_base_of_another_dtype_is_not_merged_into(tmp_path: Path) -> None:
    base = {"tensors": {"q.weight": torch.zeros(8, 6, dtype=torch.float8_e4m3fn)}}
    said = re.escape("model.safetensors") + r".*'q\.weight' has dtype F8_E4M3"
    with pytest.raises(Refused, match=said):
        plan_of(tmp_path, base, {"shapes": {"q": (8, 6)}}, "merged")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_base_without_config_or_weights_is_refused(tmp_path: Path, missing: str) -> None:
    base = tiny.raw_base(tmp_path / "base", zeros(q__weight=(8, 6)))
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)})
    (base / missing).unlink()
    with pytest.raises(Refused, match=re.escape(missing)):
        plan(Folder(base), Folder(patch), as_="merged")
