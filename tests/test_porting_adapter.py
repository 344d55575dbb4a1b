"""Adapters: scales and ranks as PEFT finds them, and every other kind refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from porting import Folder, Refused, read_adapter
from porting.patch.patterns import Patterns
from tests import tiny

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    return tiny.raw_adapter(tmp_path / "patch", {"layers.0.q": (8, 6), "layers.1.q": (8, 6)})


def test_a_plain_adapter_is_read(patch: Path) -> None:
    tiny.edit_json(patch / CONFIG, revision="abc", alpha_pattern={"1.q": 2})
    adapter = read_adapter(Folder(patch))
    assert (adapter.kind, adapter.portability) == ("lora", "A")
    assert (adapter.base_repo, adapter.base_revision) == ("demo/base", "abc")
    assert [(p.module, p.rank, p.scale) for p in adapter.pairs] == [
        ("layers.0.q", 4, 2.0),
        ("layers.1.q", 4, 0.5),
    ]
    assert [(p.a.shape, p.b.shape) for p in adapter.pairs] == [((4, 6), (8, 4))] * 2


def test_rslora_divides_by_the_root_of_the_rank(patch: Path) -> None:
    tiny.edit_json(patch / CONFIG, use_rslora=True)
    adapter = read_adapter(Folder(patch))
    assert adapter.kind == "rslora"
    assert adapter.pairs[0].scale == 8 / 4**0.5


@pytest.mark.parametrize(
    "harmless",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": False, "target_modules": ["q"]},
        {"rank_pattern": None, "alpha_pattern": None},
        {"a_field_of_the_future": None, "another": {}},
        {"target_modules": ".*q", "lora_dropout": 0.1, "task_type": "CAUSAL_LM"},
    ],
)
def test_fields_that_change_nothing_are_accepted(patch: Path, harmless: dict[str, Any]) -> None:
    tiny.edit_json(patch / CONFIG, **harmless)
    assert len(read_adapter(Folder(patch)).pairs) == 2


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("peft_type", "NEW_KIND", "not known"),
        ("layer_replication", [[0, 2], [1, 3]], "share one base tensor"),
        ("init_lora_weights", "pissa_niter_16", "class B"),
        ("init_lora_weights", "corda", "class B"),
        ("init_lora_weights", "loftq", "class B"),
        ("init_lora_weights", "lora_ga", "class B"),
        ("init_lora_weights", "mica", "class B"),
        ("init_lora_weights", ["pissa"], "class B"),
        ("kasa_config", {"beta": 1}, "class B"),
        ("velora_config", {"num_groups": 2}, "plain LoRA"),
        ("monteclora_config", {"x": 1}, "plain LoRA"),
        ("use_bdlora", {"nblocks": 2}, "plain LoRA"),
        ("peft_type", ["LORA"], "must not be"),
        ("peft_type", None, "must not be"),
        ("use_dora", True, "lora_magnitude_vector"),
        ("exclude_modules", ["q"], "leaves out 'layers.0.q'"),
        ("exclude_modules", [7], "list of names"),
        ("layers_to_transform", [1], "leaves out 'layers.0.q'"),
        ("layers_to_transform", 1, "leaves out 'layers.0.q'"),
        ("layers_to_transform", ["0"], "list of numbers"),
        ("rank_pattern", {f"x{n}": 4 for n in range(2001)}, "2001 patterns"),
        ("modules_to_save", "lm_head", "must not be 'lm_head'"),
        ("modules_to_save", [7], "list of names"),
        ("trainable_token_indices", 3, "must not be 3"),
        ("lora_bias", "yes", "must not be 'yes'"),
        ("a_field_of_the_future", True, "not known here"),
        ("use_rslora", "yes", "'yes'"),
        ("fan_in_fan_out", 1, "must not be 1"),
        ("base_model_name_or_path", 7, "must not be 7"),
        ("revision", {}, "must not be {}"),
        ("rank_pattern", [1], "must not be [1]"),
        ("alpha_pattern", "q", "must not be 'q'"),
        ("target_modules", 3, "must not be 3"),
        ("target_modules", ["v"], "leaves out 'layers.0.q'"),
        ("target_modules", [], "leaves out 'layers.0.q'"),
        ("rank_pattern", {"layers.1.q": 8}, "gives 8 for"),
        ("lora_alpha", "16", "gives '16'"),
        ("lora_alpha", None, "gives None"),
        ("lora_alpha", 1e300, "gives 1e+300"),
        ("lora_alpha", 10**400, "which is no scale"),
        ("alpha_pattern", {"q": [1]}, "gives [1]"),
        ("rank_pattern", {"(": 4}, "is no regular expression"),
        ("rank_pattern", {"q" * 257: 4}, "is too complex"),
        ("rank_pattern", {"(" * 60 + "q" + ")" * 60: 4}, "is too complex"),
        ("alpha_pattern", {"(a{60000}){60000}": 4}, "uses counted repeats"),
        ("alpha_pattern", {"(?P<x>q)": 4}, "uses counted repeats or extensions"),
    ],
)
def test_whatever_is_not_plain_lora_is_refused(
    patch: Path, field: str, value: Any, said: str
) -> None:
    """The sentence names the file, the field, why, and the way out (after a colon or semicolon)."""
    tiny.edit_json(patch / CONFIG, **{field: value})
    with pytest.raises(Refused, match=r"adapter_config\.json") as refusal:
        read_adapter(Folder(patch))
    sentence = str(refusal.value)
    assert field in sentence
    assert said in sentence
    assert "\n" not in sentence


def test_the_rank_is_that_of_the_file(patch: Path) -> None:
    tiny.edit_json(patch / CONFIG, r=5)
    with pytest.raises(Refused, match=r"adapter_config.json.*: r .*gives 5 for .*\(4, 6\)"):
        read_adapter(Folder(patch))
    tiny.edit_json(patch / CONFIG, r=True)
    with pytest.raises(Refused, match="gives True"):
        read_adapter(Folder(patch))


def test_a_pattern_that_never_ends_is_refused_in_time(tmp_path: Path) -> None:
    patch = tiny.raw_adapter(tmp_path / "patch", {"a" * 80 + "!": (8, 6)})
    tiny.edit_json(patch / CONFIG, rank_pattern={"(a|aa|aaa)+(a|aa|aaa)+(a|aa|aaa)+b": 4})
    with pytest.raises(Refused, match=r"rank_pattern: .* takes too long to match"):
        read_adapter(Folder(patch))


PIECES = st.sampled_from(["layers", "0", "1", "11", "q", "q_proj", ".", r"\.", "^", "$", ".*", "|"])
NAMES = st.lists(st.sampled_from(["layers", "0", "1", "11", "q", "q_proj"]), min_size=1, max_size=4)


@given(
    patterns=st.lists(st.lists(PIECES, min_size=1, max_size=5).map("".join), unique=True),
    module=NAMES.map(".".join),
)
@example(patterns=["q|layers"], module="layers.q")
def test_patterns_match_as_in_peft(patterns: list[str], module: str) -> None:
    values = {pattern: number for number, pattern in enumerate(patterns)}
    expected = values.get(get_pattern_key(values.keys(), module), "default")
    assert Patterns(values, "here").get(module, "default") == expected


def rename(patch: Path, old: str, new: str) -> None:
    tensors = load_file(patch / WEIGHTS)
    tensors[new] = tensors.pop(old)
    save_file(tensors, patch / WEIGHTS)


KEY = "base_model.model.layers.0.q.lora_A.weight"


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.q.lora_A.weight",
        "base_model.model.layers.0.q.lora_A.default.weight",
        "base_model.model.layers.0.q.lora_magnitude_vector",
        "base_model.model.layers.0.q.lora_B.bias",
        "base_model.model.layers.0.q.bias",
        "base_model.model.embed_tokens.lora_embedding_A",
        "base_model.model.embed_tokens.weight",
        "base_model.model.embed_tokens.base_layer.weight",
        "base_model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight",
    ],
)
def test_a_key_that_is_no_half_of_a_pair_is_refused(patch: Path, name: str) -> None:
    rename(patch, KEY, name)
    with pytest.raises(Refused, match=r"adapter_model\.safetensors"):
        read_adapter(Folder(patch))


@pytest.mark.parametrize(
    "name",
    [
        "layers.9.q.lora_A.weight",
        "base_model.model.layers.9.q.lora_A.default.weight",
        "base_model.model.layers.9.q.lora_magnitude_vector",
        "base_model.model.layers.9.q.lora_B.bias",
        "base_model.model.layers.9.q.bias",
        "base_model.model.layers.9.q.weight",
        "base_model.model.embed_tokens.lora_embedding_A",
        "base_model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.layers.9.experts.base_layer.lora_A.weight",
    ],
)
def test_a_key_that_is_left_over_is_refused_by_its_name(patch: Path, name: str) -> None:
    tensors = load_file(patch / WEIGHTS)
    save_file(tensors | {name: torch.zeros(4, 6)}, patch / WEIGHTS)
    with pytest.raises(Refused, match=r"adapter_(model\.safetensors|config\.json)") as refusal:
        read_adapter(Folder(patch))
    assert name.removeprefix("base_model.model.").partition(".lora")[0] in str(refusal.value)


def test_half_a_pair_is_refused(patch: Path) -> None:
    rename(patch, KEY, "base_model.model.layers.7.q.lora_A.weight")
    with pytest.raises(Refused, match=r"lora_B\.weight' has no other half .*'layers\.0\.q'"):
        read_adapter(Folder(patch))


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(24), "not that of a matrix"),
        (torch.zeros(4, 0), "and is empty"),
        (torch.zeros(3, 6), "A has shape (3, 6)"),
        (torch.zeros(4, 6, dtype=torch.int8), "dtype I8"),
        (torch.zeros(4, 6, dtype=torch.float64), "dtype F64"),
    ],
)
def test_a_half_of_another_shape_or_dtype_is_refused(
    patch: Path, tensor: torch.Tensor, said: str
) -> None:
    save_file(load_file(patch / WEIGHTS) | {KEY: tensor}, patch / WEIGHTS)
    with pytest.raises(Refused, match=r"layers\.0\.q\.lora_A\.weight") as refusal:
        read_adapter(Folder(patch))
    assert said in str(refusal.value)


def test_an_empty_adapter_is_refused(patch: Path) -> None:
    save_file({}, patch / WEIGHTS)
    with pytest.raises(Refused, match="holds no tensor"):
        read_adapter(Folder(patch))


def test_a_pickle_is_refused(patch: Path) -> None:
    (patch / WEIGHTS).rename(patch / "adapter_model.bin")
    with pytest.raises(Refused, match=r"adapter_model\.safetensors is missing.*never a pickle"):
        read_adapter(Folder(patch))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "JSON object"),
        ('{"r": 1, "r": 2}', "appears twice"),
        ('{"lora_alpha": Infinity}', "Infinity is not JSON"),
        ("{", "not strict JSON"),
    ],
)
def test_a_config_that_is_not_strict_json_is_refused(patch: Path, text: str, said: str) -> None:
    (patch / CONFIG).write_text(text)
    with pytest.raises(Refused, match=r"adapter_config\.json") as refusal:
        read_adapter(Folder(patch))
    assert said in str(refusal.value)
