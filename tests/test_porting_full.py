"""Full deltas: base + delta is the tuned model, to the bit wherever F32 can hold the difference."""

import json
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from porting import Folder, Refused, merge, plan, read_adapter, repoint
from porting.patch.updates import Addend
from porting.subtract import extract_full
from tests import tiny

NOWHERE = {"base_model_name_or_path": None, "revision": None}
WEIGHTS, CONFIG = "model.safetensors", "portllm_delta.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INTS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def quiet(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total and what.endswith(", bytes")


def extract(tuned: Path, base: Path, out: Path) -> dict[str, Any]:
    return extract_full(tuned, base, out, NOWHERE, quiet)


def added(base: Path, delta: Path, out: Path) -> Path:
    merge(plan(Folder(base), Folder(delta), as_="merged"), base, delta, out)
    return out


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(INTS[tensor.dtype])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("tied", "shard_size"), [(False, "20KB"), (True, "5GB")])
def test_adding_gives_back_the_files_of_the_tuned_model(
    tmp_path: Path, dtype: torch.dtype, tied: bool, shard_size: str
) -> None:
    options: dict[str, Any] = {"dtype": dtype, "tied": tied, "shard_size": shard_size}
    base = tiny.save_base(tmp_path / "base", **options)
    tuned = tiny.save_base(tmp_path / "tuned", **options)
    torch.manual_seed(1)
    names = []
    for file in sorted(tuned.glob("*.safetensors")):
        weights = load_file(file)
        for name in sorted(weights):
            if "layers.0.self_attn.k_proj" in name or "layers.1.input_layernorm" in name:
                continue
            names.append(name)
            weights[name] *= 1 + 0.4 * torch.rand(weights[name].shape)
        save_file(weights, file, metadata={"format": "pt"})

    report = extract(tuned, base, tmp_path / "delta")
    assert sorted(t["name"] for t in report["tensors"]) == sorted(names)
    assert [t["inexact"] for t in report["tensors"]] == [0] * len(names)
    assert report["files"] == {
        name: entry.digest for name, entry in Folder(tmp_path / "delta").files().items()
    }
    out = added(base, tmp_path / "delta", tmp_path / "out")
    for file in tuned.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes(), file.name


finite = st.floats(-60000, 60000, width=32)
near = st.tuples(finite, st.floats(-4, 4, width=32)).map(lambda pair: pair[0] * (1 + pair[1]))


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    pairs=st.lists(st.tuples(finite, finite | near | st.just(-0.0)), min_size=1, max_size=12),
)
def test_what_does_not_come_back_is_counted(dtype: str, pairs: list[tuple[float, float]]) -> None:
    both = torch.tensor(pairs, dtype=torch.float64).clamp(-6e4, 6e4).to(DTYPES[dtype])
    both = torch.cat([both, torch.tensor([[1.0, 1.5], [-0.0, -0.0]], dtype=both.dtype)])
    before, after = both.unbind(1)
    with TemporaryDirectory() as folder:
        here = Path(folder)
        base = tiny.raw_base(here / "base", {"w": before})
        tuned = tiny.raw_base(here / "tuned", {"w": after})
        [told] = extract(tuned, base, here / "delta")["tensors"]
        delta = load_file(here / "delta/delta.safetensors")["w"]
        back = load_file(added(base, here / "delta", here / "out") / WEIGHTS)["w"]
    lost = bits(back) != bits(after)
    assert (told["elements"], told["inexact"]) == (len(after), int(lost.sum()))
    for old, new, step, gone in zip(
        before.tolist(), after.tolist(), delta.tolist(), lost.tolist(), strict=True
    ):
        exact = Fraction(new) - Fraction(old) == Fraction(step)
        negative_zero = new == 0 and str(new) == "-0.0"
        assert not (gone and exact) or negative_zero
        if dtype != "fp32" and abs(new) >= abs(old) / 1024:
            assert not gone or negative_zero
        if dtype == "fp32" and abs(new - old) <= min(abs(new), abs(old)):
            assert not gone or negative_zero


def test_a_value_that_tuning_took_to_nearly_nothing_is_lost_and_said(tmp_path: Path) -> None:
    base = tiny.raw_base(tmp_path / "base", {"w": torch.tensor([1.0, 2.0, 0.0])})
    tuned = tiny.raw_base(tmp_path / "tuned", {"w": torch.tensor([1e-20, 2.5, -0.0])})
    [told] = extract(tuned, base, tmp_path / "delta")["tensors"]
    assert told == {"name": "w", "elements": 3, "inexact": 2}
    out = load_file(added(base, tmp_path / "delta", tmp_path / "out") / WEIGHTS)["w"]
    assert out.tolist() == [0.0, 2.5, 0.0]


def test_a_model_tuned_in_another_dtype_comes_back_in_the_bases(tmp_path: Path) -> None:
    torch.manual_seed(0)
    value = torch.randn(20, 30).bfloat16()
    base = tiny.raw_base(tmp_path / "base", {"w": value, "same": value.clone()})
    wide = value.float() + 0.01 * torch.randn(20, 30)
    tuned = tiny.raw_base(tmp_path / "tuned", {"w": wide, "same": value.float()})
    report = extract(tuned, base, tmp_path / "delta")
    assert [(t["name"], t["inexact"]) for t in report["tensors"]] == [("w", 0)]
    out = load_file(added(base, tmp_path / "delta", tmp_path / "out") / WEIGHTS)
    assert torch.equal(out["w"], wide.bfloat16())


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """The delta of two tensors, each tuned by +1, of a base without a class."""
    tensors = {"a.weight": torch.zeros(4, 3), "b.bias": torch.zeros(4)}
    tiny.raw_base(tmp_path / "base", tensors)
    tiny.raw_base(tmp_path / "tuned", {name: value + 1 for name, value in tensors.items()})
    (tmp_path / "tuned/tokenizer.json").write_text("{}")
    extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "delta")
    return tmp_path / "delta"


def test_a_delta_is_read_as_an_adapter(delta: Path) -> None:
    assert json.loads((delta / CONFIG).read_text()) == {"format": 1} | NOWHERE
    tiny.edit_json(delta / CONFIG, base_model_name_or_path="demo/base", revision="abc")
    found = read_adapter(Folder(delta))
    assert (found.kind, found.portability, found.config_file) == ("full", "A", CONFIG)
    assert (found.base_repo, found.base_revision) == ("demo/base", "abc")
    assert found.pairs == () and found.old_base_field is None
    assert [(u.target, u.scale) for u in found.updates if isinstance(u, Addend)] == [
        ("a.weight", 1.0),
        ("b.bias", 1.0),
    ]
    assert (delta / "tokenizer.json").read_text() == "{}"


def test_an_adapter_beside_a_delta_is_what_counts(delta: Path, tmp_path: Path) -> None:
    adapter = tiny.raw_adapter(tmp_path / "adapter", {"a": (4, 3)})
    (adapter / CONFIG).write_text((delta / CONFIG).read_text())
    assert read_adapter(Folder(adapter)).kind == "lora"


def test_a_sharded_delta_is_the_same_one(delta: Path, tmp_path: Path) -> None:
    whole = load_file(added(tmp_path / "base", delta, tmp_path / "whole") / WEIGHTS)
    tensors, places = load_file(delta / "delta.safetensors"), {}
    for number, (name, value) in enumerate(tensors.items(), 1):
        places[name] = f"delta-{number}-of-2.safetensors"
        save_file({name: value}, delta / places[name])
    (delta / "delta.safetensors").unlink()
    index = {"metadata": {}, "weight_map": places}
    (delta / "delta.safetensors.index.json").write_text(json.dumps(index))
    out = load_file(added(tmp_path / "base", delta, tmp_path / "out") / WEIGHTS)
    assert {name: value.tolist() for name, value in out.items()} == {
        name: value.tolist() for name, value in whole.items()
    }
    assert out["b.bias"].tolist() == [1.0] * 4


def test_a_delta_is_repointed_like_any_patch(delta: Path, tmp_path: Path) -> None:
    digests = repoint(delta, tmp_path / "ported", "demo/new", "c" * 40)
    assert sorted(digests) == ["delta.safetensors", CONFIG, "tokenizer.json"]
    found = read_adapter(Folder(tmp_path / "ported"))
    assert (found.kind, found.base_repo, found.base_revision) == ("full", "demo/new", "c" * 40)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format is 2, not 1"),
        ({"format": True}, "format is True"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path must not be 7"),
        ({"revision": ["abc"]}, "revision must not be"),
        ({"scale": 2}, "scale must not be 2"),
    ],
)
def test_a_config_of_another_format_is_refused(
    delta: Path, changes: dict[str, Any], said: str
) -> None:
    tiny.edit_json(delta / CONFIG, **changes)
    with pytest.raises(Refused, match=rf"portllm_delta.json in .*{said}.*; extract"):
        read_adapter(Folder(delta))


@pytest.mark.parametrize("tensor", [torch.zeros(3, dtype=torch.int64), torch.zeros(0, 3)])
def test_a_delta_that_can_not_be_added_is_refused(delta: Path, tensor: torch.Tensor) -> None:
    save_file({"a.weight": tensor}, delta / "delta.safetensors")
    with pytest.raises(Refused, match=r"delta.safetensors in .*'a.weight' is .*; extract"):
        read_adapter(Folder(delta))
    save_file({}, delta / "delta.safetensors")
    with pytest.raises(Refused, match="holds no tensor"):
        read_adapter(Folder(delta))


W = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        ({"w": W}, "No tensor of .*tuned differs from .*base"),
        ({"w": W, "new": W + 1}, "tuned has 'new' and .*base does not"),
        ({}, "base has 'w' and .*tuned does not"),
        ({"w": torch.ones(5, 3)}, "'w' has 5 rows .* and 4 .*resize_token_embeddings"),
        ({"w": torch.ones(4, 5)}, r"'w' has shape \(4, 5\) .* and \(4, 3\)"),
        ({"w": W * float("nan")}, "'w', or its difference to the base, holds NaN"),
        ({"w": W * float("inf")}, "'w', or its difference to the base, holds NaN"),
        ({"w": W.to(torch.int8)}, "'w' is I8, and F32 in .*unquantised"),
        ({"w": W.to(torch.float8_e4m3fn)}, "'w' is F8_E4M3, and F32 in .*unquantised"),
    ],
)  # fmt: skip
def test_models_that_have_no_difference_are_refused_and_leave_nothing(
    tmp_path: Path, tuned: dict[str, torch.Tensor], said: str
) -> None:
    base = tiny.raw_base(tmp_path / "base", {"w": W})
    tiny.raw_base(tmp_path / "tuned", tuned)
    with pytest.raises(Refused, match=said):
        extract(tmp_path / "tuned", base, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "tuned"]


def test_equal_tensors_that_are_no_floats_do_not_matter(tmp_path: Path) -> None:
    numbers = torch.arange(4)
    base = tiny.raw_base(tmp_path / "base", {"w": W, "ids": numbers})
    tuned = tiny.raw_base(tmp_path / "tuned", {"w": W + 1, "ids": numbers})
    report = extract(tuned, base, tmp_path / "delta")
    assert [told["name"] for told in report["tensors"]] == ["w"]


def test_what_config_json_says_besides_is_reported(tmp_path: Path) -> None:
    base = tiny.raw_base(tmp_path / "base", {"w": W}, rope_theta=1e4, dtype="float32")
    tuned = tiny.raw_base(tmp_path / "tuned", {"w": W + 1}, rope_theta=1e6, use_cache=False)
    assert extract(tuned, base, tmp_path / "delta")["config"] == ["rope_theta"]
