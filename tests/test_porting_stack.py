"""Several LoRAs as one: what PEFT's own "cat" makes, what it computes with all of them active."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file

from porting import Folder, Refused, merge, plan, read_adapter
from porting.stack import stack
from tests import tiny
from tests.families import save_family

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
IDS = torch.arange(24).view(2, 12)
KEY = "base_model.model.%s.lora_%s.weight"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def loaded(base: Path, *patches: Path) -> PeftModel:
    """The base with all patches beside it, the last one active, named 0, 1, ..."""
    model = PeftModel.from_pretrained(tiny.load(base), patches[0], adapter_name="0")
    for number, patch in enumerate(patches[1:], 1):
        model.load_adapter(patch, adapter_name=str(number))
    return model.eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose attention layers have biases."""
    return save_family(tmp_path_factory.mktemp("base") / "base", "llama")


@pytest.fixture(scope="module")
def patches(base: Path) -> list[Path]:
    """A LoRA, an rsLoRA with ranks and scales of its own per module, and one of bf16."""
    one = tiny.save_adapter(base.with_name("one"), base, r=4, lora_alpha=8)
    two = tiny.save_adapter(
        base.with_name("two"),
        base,
        seed=1,
        r=3,
        lora_alpha=5,
        use_rslora=True,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 7},
        alpha_pattern={"down_proj": 2},
    )
    three = tiny.save_adapter(
        base.with_name("three"), base, seed=2, r=2, dtype=torch.bfloat16, target_modules=["v_proj"]
    )
    return [one, two, three]


def test_a_stack_is_what_peft_calls_cat(base: Path, patches: list[Path], tmp_path: Path) -> None:
    weights = [1.0, -0.7, 2.5]
    report = stack(patches, weights, tmp_path / "out")
    model = loaded(base, *patches)
    model.add_weighted_adapter(["0", "1", "2"], weights, "cat", combination_type="cat")
    model.set_adapter("cat")
    ours = PeftModel.from_pretrained(tiny.load(base), tmp_path / "out").eval()
    torch.testing.assert_close(logits(ours), logits(model), atol=1e-4, rtol=1e-4)
    for row in report["modules"]:
        name = f"base_model.model.{row['module']}"
        layer, other = ours.get_submodule(name), model.get_submodule(name)
        assert layer.scaling["default"] == 1.0
        # PEFT pads the ranks of its one to the largest with zeros.
        assert layer.r["default"] == row["rank"] <= other.r["cat"]
        assert row["rank"] == sum(other.r[k] for k in ("0", "1", "2") if k in other.r)
        torch.testing.assert_close(
            layer.get_delta_weight("default"), other.get_delta_weight("cat"), atol=1e-5, rtol=1e-5
        )
    ranks = {row["module"]: row["rank"] for row in report["modules"]}
    assert len(ranks) == 14 and ranks["model.layers.0.mlp.up_proj"] == 4
    assert ranks["model.layers.1.self_attn.q_proj"] == 11
    assert report["files"] == {
        name: entry.digest for name, entry in Folder(tmp_path / "out").files().items()
    }


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merging_a_stack_is_merging_one_after_the_other(tmp_path: Path, family: str) -> None:
    base = tiny.save_base(tmp_path / "base", family)
    one = tiny.save_adapter(tmp_path / "one", base, r=4)
    two = tiny.save_adapter(tmp_path / "two", base, seed=1, r=2)
    stack([one, two], [1.0, 1.0], tmp_path / "out")
    step, whole = tmp_path / "step", tmp_path / "whole"
    merge(plan(Folder(base), Folder(one), as_="merged"), base, one, step)
    merge(plan(Folder(step), Folder(two), as_="merged"), step, two, tmp_path / "twice")
    merge(plan(Folder(base), Folder(tmp_path / "out"), as_="merged"), base, tmp_path / "out", whole)
    wanted = load_file(tmp_path / "twice/model.safetensors")
    for name, value in load_file(whole / "model.safetensors").items():
        torch.testing.assert_close(value, wanted[name], atol=2e-6, rtol=1e-6)


def test_the_biases_of_lora_bias_are_summed(base: Path, tmp_path: Path) -> None:
    """PEFT's "cat" leaves them out, so the oracle is PEFT with both adapters active."""
    options: dict[str, Any] = {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}
    one = tiny.save_adapter(tmp_path / "one", base, r=4, lora_alpha=8, **options)
    two = tiny.save_adapter(tmp_path / "two", base, seed=1, r=2, lora_alpha=3, **options)
    both = loaded(base, one, two)
    both.base_model.set_adapter(["0", "1"])
    stack([one, two], [1.0, 1.0], tmp_path / "out")
    ours = PeftModel.from_pretrained(tiny.load(base), tmp_path / "out").eval()
    torch.testing.assert_close(logits(ours), logits(both), atol=1e-4, rtol=1e-4)
    made = load_file(tmp_path / "out" / WEIGHTS)
    assert sum(name.endswith("lora_B.bias") and bool(v.any()) for name, v in made.items()) == 4


def test_embeddings_are_stacked(base: Path, tmp_path: Path) -> None:
    patches = []
    for number, rank in enumerate((2, 3)):
        patch = tiny.raw_adapter(tmp_path / str(number), {}, r=rank, lora_alpha=rank)
        torch.manual_seed(number)
        tensors = {
            "base_model.model.model.embed_tokens.lora_embedding_A": torch.randn(rank, 96),
            "base_model.model.model.embed_tokens.lora_embedding_B": torch.randn(32, rank),
        }
        save_file(tensors, patch / WEIGHTS)
        tiny.edit_json(patch / CONFIG, target_modules=["embed_tokens"])
        patches.append(patch)
    stack(patches, [1.0, 1.0], tmp_path / "out")
    both = loaded(base, *patches)
    both.base_model.set_adapter(["0", "1"])
    ours = PeftModel.from_pretrained(tiny.load(base), tmp_path / "out").eval()
    torch.testing.assert_close(logits(ours), logits(both), atol=1e-4, rtol=1e-4)


NUMBERS = st.floats(-100, 100).filter(lambda weight: abs(weight) > 1e-3)
LAYERS = st.sampled_from("qkv")


@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(
        st.tuples(NUMBERS, st.integers(1, 64), st.booleans(), st.sets(LAYERS, min_size=1)),
        min_size=1,
        max_size=4,
    )
)
def test_the_product_is_the_weighted_sum_in_float64(
    parts: list[tuple[float, int, bool, set[str]]],
) -> None:
    """B is rounded once: an error of 2^-24 of |weight * scale * B| |A|, summed over the ranks."""
    exact: dict[str, torch.Tensor] = {}
    bound: dict[str, torch.Tensor] = {}
    with TemporaryDirectory() as folder:
        patches = []
        for number, (weight, alpha, rslora, modules) in enumerate(parts):
            patch = Path(folder) / str(number)
            shapes = {f"layers.1.{module}": (8, 6) for module in sorted(modules)}
            patches.append(tiny.raw_adapter(patch, shapes, lora_alpha=alpha, use_rslora=rslora))
            held = load_file(patch / WEIGHTS)
            scale = alpha / (2 if rslora else 4)
            for module in shapes:
                a, b = (held[KEY % (module, half)].double() for half in "AB")
                exact[module] = exact.get(module, 0) + weight * scale * (b @ a)
                size = abs(weight * scale) * (b.abs() @ a.abs())
                bound[module] = bound.get(module, 0) + size * 2**-24
        stack(patches, [weight for weight, *_ in parts], Path(folder) / "out")
        found = read_adapter(Folder(Path(folder) / "out"))
        made = load_file(Path(folder) / "out" / WEIGHTS)
    assert {pair.module for pair in found.pairs} == exact.keys()
    for pair in found.pairs:
        a, b = (made[KEY % (pair.module, half)].double() for half in "AB")
        assert pair.scale == 1.0
        assert ((b @ a - exact[pair.module]).abs() <= bound[pair.module] * 1.001 + 1e-30).all()


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [tiny.raw_adapter(tmp_path / name, {"a.q": (8, 6)}) for name in ("one", "two")]


def test_the_stack_names_the_base_of_its_parts(two: list[Path], tmp_path: Path) -> None:
    for patch in two:
        tiny.edit_json(patch / CONFIG, revision="c" * 40, task_type="CAUSAL_LM")
    stack(two, [1.0, 1.0], tmp_path / "out")
    found = read_adapter(Folder(tmp_path / "out"))
    assert (found.base_repo, found.base_revision) == ("demo/base", "c" * 40)
    assert found.config["task_type"] == "CAUSAL_LM"
    tiny.edit_json(two[1] / CONFIG, task_type=None)
    stack(two, [1.0, 1.0], tmp_path / "other")
    assert read_adapter(Folder(tmp_path / "other")).config["task_type"] is None


def test_patches_that_name_no_base_can_be_stacked(two: list[Path], tmp_path: Path) -> None:
    for patch in two:
        tiny.edit_json(patch / CONFIG, base_model_name_or_path=None)
    stack(two, [1.0, 1.0], tmp_path / "out")
    assert read_adapter(Folder(tmp_path / "out")).base_repo is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_model_name_or_path": "demo/other"}, "base_model_name_or_path is 'demo/other'"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None"),
        ({"revision": "abc"}, "revision is 'abc'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"lora_bias": True}, "lora_bias is True"),
    ],
)
def test_patches_of_different_bases_are_refused(
    two: list[Path], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    tiny.edit_json(two[1] / CONFIG, **changes)
    with pytest.raises(Refused, match=f"adapter_config.json: {said} in .*two and .* in .*one"):
        stack(two, [1.0, 1.0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"use_dora": True}, "kind dora"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
)
def test_what_is_more_than_pairs_is_refused(
    base: Path, patches: list[Path], tmp_path: Path, lora: dict[str, Any], said: str
) -> None:
    patch = tiny.save_adapter(tmp_path / "patch", base, r=4, **lora)
    for order in ([patches[0], patch], [patch, patches[0]]):
        with pytest.raises(Refused, match=f"{said} makes it more than pairs.*--as merged"):
            stack(order, [1.0, 1.0], tmp_path / "out")


def test_a_full_delta_is_refused(two: list[Path], tmp_path: Path) -> None:
    delta = tmp_path / "delta"
    delta.mkdir()
    save_file({"a.q.weight": torch.ones(8, 6)}, delta / "delta.safetensors")
    (delta / "portllm_delta.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(Refused, match=r"portllm_delta\.json in .*: kind full makes it more"):
        stack([two[0], delta], [1.0, 1.0], tmp_path / "out")


def test_one_module_of_two_shapes_is_refused(two: list[Path], tmp_path: Path) -> None:
    other = tiny.raw_adapter(tmp_path / "other", {"a.q": (6, 8)})
    with pytest.raises(Refused, match=r"'a.q' is not the same layer in .*one and .*other"):
        stack([two[0], other], [1.0, 1.0], tmp_path / "out")


def test_values_that_are_not_finite_are_refused(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"'a\.q': its update, weighted, overflows F32"):
        stack(two, [1.0, 1e39], tmp_path / "out")
    tensors = load_file(two[1] / WEIGHTS)
    tensors[KEY % ("a.q", "A")][0, 0] = float("nan")
    save_file(tensors, two[1] / WEIGHTS)
    with pytest.raises(Refused, match="holds NaN"):
        stack(two, [1.0, 1.0], tmp_path / "out")
