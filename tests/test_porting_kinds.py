"""What is read from the config and the header of adapters that are no LoRA, and what is refused."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import save_file

from porting.base.layout import Layout, TensorInfo
from porting.errors import Refused
from porting.patch.adapter import read_adapter
from porting.patch.kind_table import KINDS
from porting.patch.kinds import COMMON, read_kind
from porting.patch.updates import Absolute, Operator
from porting.source import Folder
from tests.peft_kinds import ADDITIVE, OPERATORS, save_kind

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning"
)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LEFT_OUT = {"ADAMSS", "FROD", "PSOFT"}
MODULE = "base_model.model.block.q_proj"


def test_every_kind_that_peft_knows_has_a_class_or_is_left_out() -> None:
    assert KINDS.keys() | LEFT_OUT | {"LORA"} == {kind.value for kind in PeftType}
    assert not KINDS.keys() & LEFT_OUT


def test_every_kind_that_is_merged_is_compared_with_peft() -> None:
    compared = {kind for kind, _, _ in ADDITIVE + OPERATORS} - {"LORA"}
    assert compared == {name for name, kind in KINDS.items() if kind.forms}


@pytest.mark.parametrize("kind", sorted(name for name in KINDS if KINDS[name].portability != "D"))
def test_the_fields_of_a_kind_are_those_of_peft(kind: str) -> None:
    """No field that PEFT sets by itself is refused, and none is read that it does not have."""
    fields = dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)])
    found = KINDS[kind]
    read = {*found.fields, *found.sizes, *found.patterns, *found.unused.split()}
    assert read <= {field.name for field in fields}
    common = {field.name for field in dataclasses.fields(PeftConfig)} | set(COMMON.split())
    for field in fields:
        default = field.default not in (dataclasses.MISSING, None, False, 0, "none")
        assert not default or field.name in read | common, field.name


def header(**shapes: tuple[int, ...]) -> Layout:
    """A header of float32 tensors of one module, `.` written as `__`."""
    tensors = {}
    for part, shape in shapes.items():
        dotted = part.replace("__", ".")
        name = dotted if dotted.startswith("base_model") else f"{MODULE}.{dotted}"
        tensors[name] = TensorInfo(name, WEIGHTS, "F32", shape, 0, 0)
    return Layout(tensors, (WEIGHTS,), None)


def refusal(kind: str, layout: Layout, **fields: Any) -> str:
    config = {"peft_type": kind, "target_modules": ["q_proj"]} | fields
    with pytest.raises(Refused) as caught:
        read_kind(config, layout, CONFIG, WEIGHTS)
    return str(caught.value)


LOHA = header(hada_w1_a=(8, 2), hada_w1_b=(2, 6), hada_w2_a=(8, 2), hada_w2_b=(2, 6))
VERA = {"vera_lambda_b": (8,), "vera_lambda_d": (4,)}
PROJECTIONS = {"base_model__vera_A": (4, 6), "base_model__vera_B": (8, 4)}


def test_what_an_operator_holds() -> None:
    config = {"peft_type": "VERA", "r": 4, "save_projection": True, "target_modules": ["q_proj"]}
    layout = header(**VERA, **PROJECTIONS)
    [update], claimed = read_kind(config, layout, CONFIG, WEIGHTS)
    assert isinstance(update, Operator) and update.target == "block.q_proj.weight"
    assert update.meaning == "additive" and not update.optional
    assert {tensor.name for tensor in update.tensors} == claimed == layout.tensors.keys()


def test_a_kind_that_turns_outputs_changes_the_bias_too() -> None:
    layout = header(road_theta=(8,), road_alpha=(8,))
    config = {"peft_type": "ROAD", "variant": "road_2", "group_size": 4}
    updates, _ = read_kind(config, layout, CONFIG, WEIGHTS)
    assert [(u.target, u.optional) for u in updates if isinstance(u, Operator)] == [
        ("block.q_proj.weight", False),
        ("block.q_proj.bias", True),
    ]


@pytest.mark.parametrize(("shape", "parameters"), [((1, 6), 1), ((6, 1), 2)])
def test_ia3_before_a_layer_leaves_its_bias(shape: tuple[int, int], parameters: int) -> None:
    updates, _ = read_kind({"peft_type": "IA3"}, header(ia3_l=shape), CONFIG, WEIGHTS)
    assert len(updates) == parameters


@pytest.mark.parametrize(
    ("kind", "layout", "fields", "message"),
    [
        ("LOHA", LOHA, {"new_thing": 1}, "'new_thing' is set and not known"),
        ("LOHA", LOHA, {"r": 3}, "r is 3, but the tensors of 'block.q_proj' have 2"),
        ("LOHA", LOHA, {"r": "2"}, "r is '2'"),
        ("LOHA", LOHA, {"alpha": "8"}, "alpha must not be '8'"),
        ("LOHA", LOHA, {"alpha": 1e300}, "alpha must not be 1e"),
        ("LOHA", LOHA, {"alpha": True}, "alpha must not be True"),
        ("LOHA", LOHA, {"rank_pattern": {"q_proj": 4}}, "r is 4"),
        ("LOHA", LOHA, {"rank_pattern": {"(((a+)+)+)+(?:x)": 4}}, "rank_pattern"),
        ("LOHA", LOHA, {"rank_pattern": [4]}, r"rank_pattern must not be \[4\]"),
        ("LOHA", LOHA, {"target_modules": ["k_proj"]}, "target_modules leaves out"),
        ("LOHA", header(hada_w1_a=(8, 2)), {}, "not the tensors that a linear layer"),
        ("LOHA", header(hada_w1_a=(8, 2, 3)), {}, r"hada_w1_a of shape \(8, 2, 3\)"),
        ("C3A", header(c3a_kernel=(2, 2, 2)), {"block_size": 4}, "block_size is 4"),
        ("VERA", header(**VERA), {"save_projection": True}, "save_projection is True"),
        ("VERA", header(**VERA, base_model__vera_A=(4, 6)), {}, "vera_B' is missing"),
        ("VERA", header(**VERA, **PROJECTIONS), {"save_projection": False}, "save_projection"),
        ("VERA", header(**VERA), {"projection_prng_key": 1 << 70}, "projection_prng_key"),
        ("VERA", header(vera_lambda_b=(8,), vera_lambda_d=(99999,)), {}, "r is 99999, more than"),
        ("VBLORA", header(vblora_logits_A=(2, 3, 4), vblora_logits_B=(4, 2, 4)), {}, "vector_bank"),
        ("PVERA", header(pvera_lambda_b=(8,)), {"sample_at_inference": True}, "sample_at_inf"),
        ("ADALORA", header(lora_E=(2, 1)), {"use_dora": True}, "'use_dora' is set"),
        ("SUPERTUNING", header(supertuning_values=(9,)), {}, "not the tensors"),
        ("IA3", header(ia3_l=(1, 6)), {"feedforward_modules": ["k_proj"]}, "feedforward_modules"),
        ("GLORA", header(glora_A__X=(1,), glora_C__X=(6, 1)), {}, "not the tensors"),
        (
            "OFT",
            header(oft_R__weight=(4, 6)),
            {"num_cayley_neumann_terms": 10**9},
            "num_cayley_neumann_terms is 1000000000, more than 64",
        ),
    ],
)
def test_what_is_refused(kind: str, layout: Layout, fields: dict[str, Any], message: str) -> None:
    assert re.search(message, found := refusal(kind, layout, **fields)), found


def test_a_mask_that_is_no_choice_of_singular_values_is_refused() -> None:
    layout = header(lora_A=(2, 6), lora_B=(8, 2), lora_E=(2, 1))
    for mask in ([True, False], [1, 1], "11", [True] * 2 + [False] * 5000):
        found = refusal("ADALORA", layout, rank_pattern={"block.q_proj.lora_E": mask})
        assert "rank_pattern" in found or "init_r" in found


def test_integers_are_taken_for_indices_only() -> None:
    layout = header(shira_weight=(28,), shira_indices=(2, 28))
    for part, dtype in (("shira_indices", "I32"), ("shira_weight", "I32"), ("shira_weight", "F64")):
        tensors = dict(layout.tensors)
        name = f"{MODULE}.{part}"
        tensors[name] = TensorInfo(name, WEIGHTS, dtype, tensors[name].shape, 0, 0)
        changed = Layout(tensors, (WEIGHTS,), None)
        if part == "shira_indices":
            assert read_kind({"peft_type": "SHIRA", "r": 2}, changed, CONFIG, WEIGHTS)[0]
        else:
            assert dtype in refusal("SHIRA", changed, r=2)


def test_an_empty_tensor_is_refused_but_not_a_module_without_ranks() -> None:
    config = {"peft_type": "ADALORA"}
    none = header(lora_A=(0, 6), lora_B=(8, 0), lora_E=(0, 1))
    assert read_kind(config, none, CONFIG, WEIGHTS) == ([], {*none.tensors})
    assert "shape (0, 1)" in refusal("ADALORA", header(lora_A=(2, 6), lora_B=(8, 2), lora_E=(0, 1)))


LN = {"target_modules": ["input_layernorm"]}
TOKENS = {"target_modules": ["embed_tokens"], "token_indices": [5, 2]}


@pytest.mark.parametrize(
    ("kind", "fields", "first", "count"),
    [
        ("LN_TUNING", LN, "model.layers.0.input_layernorm.weight", 2),
        ("TRAINABLE_TOKENS", TOKENS, "model.embed_tokens.weight", 1),
    ],
)
def test_kinds_that_hold_new_values(
    kind: str, fields: dict[str, Any], first: str, count: int, tmp_path: Path
) -> None:
    save_kind(tmp_path, kind, "llama", **fields)
    adapter = read_adapter(Folder(tmp_path))
    assert adapter.portability == "A" and len(adapter.updates) == count
    assert all(isinstance(update, Absolute) for update in adapter.updates)
    assert adapter.updates[0].target == first


def test_what_cannot_be_merged_is_read_without_its_tensors(tmp_path: Path) -> None:
    save_file({"prompt_embeddings": torch.zeros(2, 4)}, tmp_path / WEIGHTS)
    for kind in (name for name in KINDS if KINDS[name].portability == "D"):
        (tmp_path / CONFIG).write_text(f'{{"peft_type": "{kind}"}}')
        adapter = read_adapter(Folder(tmp_path))
        assert (adapter.portability, adapter.updates) == ("D", ()) and adapter.reason


@pytest.mark.parametrize("kind", sorted(LEFT_OUT))
def test_what_is_left_out_is_refused(kind: str, tmp_path: Path) -> None:
    save_file({"prompt_embeddings": torch.zeros(2, 4)}, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(f'{{"peft_type": "{kind}"}}')
    with pytest.raises(Refused, match="not known here"):
        read_adapter(Folder(tmp_path))


SHAPE = st.lists(st.integers(0, 1 << 40), max_size=4).map(tuple)
VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.booleans(), max_size=3),
    st.dictionaries(st.sampled_from(["q_proj", "(", "block.q_proj.lora_E"]), st.integers()),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_a_stranger_writes_is_read_or_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(name for name in KINDS if KINDS[name].forms)))
    found = KINDS[kind]
    form = data.draw(st.sampled_from(found.forms))
    shapes = {part.replace("#", "0"): data.draw(SHAPE) for part in form}
    if data.draw(st.booleans()):  # the right number of dimensions, so that more is read
        shapes = {
            part.replace("#", "0"): data.draw(st.tuples(*[st.integers(1, 1 << 20)] * dimensions))
            for part, dimensions in form.items()
        }
    shapes |= {name: data.draw(SHAPE) for name in found.shared}
    fields = [*found.fields, *found.sizes, *found.patterns, "rank_pattern", "feedforward_modules"]
    config = data.draw(st.dictionaries(st.sampled_from(fields), VALUE)) | {"peft_type": kind}
    try:
        updates, _ = read_kind(config, header(**shapes), CONFIG, WEIGHTS)
    except Refused as refused:
        assert CONFIG in str(refused) or WEIGHTS in str(refused)
    else:
        assert all(isinstance(update, Operator) for update in updates)
