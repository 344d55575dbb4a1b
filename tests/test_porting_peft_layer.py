"""Every kind of adapter, computed on one layer and by PEFT on the whole model, in float32.

A float32 matrix product of up to 96 terms is off by at most 96 * 2^-24 of its largest terms, so
results are compared to 2e-6 of the largest value; those that go through a decomposition to 1e-5.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from porting.base.layout import read_layout
from porting.errors import Refused
from porting.patch.adapter import Adapter, read_adapter
from porting.patch.kinds import read_kind
from porting.patch.updates import Operator
from porting.source import Folder
from porting.weights.peft_layer import PeftLayer
from tests.peft_kinds import ADDITIVE, OPERATORS, adapted, save_kind, tiny_model
from tests.tiny import edit_json

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning"
)
WEIGHTS = "adapter_model.safetensors"
EXACT, DECOMPOSED = 2e-6, 1e-5


def oriented(family: str, value: torch.Tensor) -> torch.Tensor:
    """GPT-2 keeps the weights of its linear layers as (in, out)."""
    return value.T if family == "gpt2" and value.dim() == 2 else value


def layers(folder: Path, family: str) -> tuple[Adapter, list[tuple[Operator, PeftLayer]]]:
    """The adapter in `folder`, and a layer for each of its operators that the model has."""
    adapter, base = read_adapter(Folder(folder)), tiny_model(family).state_dict()
    tensors = {name: value.double() for name, value in load_file(folder / WEIGHTS).items()}
    found = [
        update
        for update in adapter.updates
        if isinstance(update, Operator) and (update.target in base or not update.optional)
    ]
    shapes = {u.module: tuple(oriented(family, base[f"{u.module}.weight"]).shape) for u in found}
    return adapter, [
        (u, PeftLayer(adapter.config, u, {t.name: tensors[t.name] for t in u.tensors}, shapes))
        for u in found
    ]


def check(
    folder: Path, family: str, expected: dict[str, torch.Tensor], tolerance: float = EXACT
) -> None:
    """Every parameter that PEFT changes is that of one operator, and has PEFT's new value."""
    base = tiny_model(family).state_dict()
    _, found = layers(folder, family)
    for update, layer in found:
        value = oriented(family, base[update.target].double())
        new = value + layer.delta() if update.meaning == "additive" else layer.operated(value)
        wanted = oriented(family, expected[update.target].double())
        assert new.dtype == torch.float64
        assert (new - wanted).abs().max() <= tolerance * wanted.abs().max(), update.target
        assert (new - value).abs().max() > 1e-3, update.target
    changed = {name for name, old in base.items() if not torch.equal(old, expected[name])}
    assert changed == {update.target for update, _ in found} and changed


@pytest.mark.parametrize(("kind", "family", "fields"), ADDITIVE)
def test_an_additive_kind_adds_what_peft_adds(
    kind: str, family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    check(tmp_path, family, save_kind(tmp_path, kind, family, **fields))


@pytest.mark.parametrize(("kind", "family", "fields"), OPERATORS)
def test_an_operator_makes_what_peft_makes(
    kind: str, family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    expected = save_kind(tmp_path, kind, family, **fields)
    check(tmp_path, family, expected, DECOMPOSED if kind in ("OSF", "DEFT") else EXACT)


def test_the_delta_of_an_additive_kind_does_not_depend_on_the_base(tmp_path: Path) -> None:
    save_kind(tmp_path, "DELORA", "llama", r=4)
    _, found = layers(tmp_path, "llama")
    layer, delta = found[0][1], found[0][1].delta()
    value = torch.randn(delta.shape, dtype=torch.float64)
    torch.testing.assert_close(layer.operated(value) - value, delta, rtol=0, atol=1e-12)


def test_an_adalora_whose_ranks_were_cut_keeps_its_scale(tmp_path: Path) -> None:
    fields = {"init_r": 6, "lora_alpha": 7, "total_step": 10}
    model = adapted(tiny_model("llama"), "ADALORA", target_modules=["q_proj", "v_proj"], **fields)
    names = [name for name, _ in model.base_model.model.named_parameters() if "lora_E" in name]
    masks = [[True] * 6, [True, False, True, True, False, True], [False] * 6]
    cut = dict(zip(names, [*masks, masks[1]], strict=True))
    model.peft_config["default"].rank_pattern = cut
    model.save_pretrained(tmp_path)
    expected = PeftModel.from_pretrained(tiny_model("llama"), tmp_path).merge_and_unload()
    check(tmp_path, "llama", expected.state_dict())
    assert len(read_adapter(Folder(tmp_path)).updates) == 3


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"init_lora_weights": "pissa"}),
        ("gpt2", {"init_lora_weights": "pissa", "use_rslora": True}),
        ("llama", {"init_lora_weights": "olora", "use_rslora": True}),
    ],
)
def test_what_a_lora_that_started_from_the_base_learned(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    expected = save_kind(tmp_path, "LORA", family, r=4, lora_alpha=6, **fields)
    base, stored = tiny_model(family).state_dict(), load_file(tmp_path / WEIGHTS)
    adapter, found = layers(tmp_path, family)
    assert adapter.portability == "B" and found
    for update, layer in found:
        weight = oriented(family, base[update.target].double())
        a, b = (
            stored[f"base_model.model.{update.module}.{part}.weight"].double()
            for part in ("lora_A", "lora_B")
        )
        first = layer.initial(weight)
        assert first[0].shape == a.shape and first[1].shape == b.shape
        new = weight + update.scale * (b @ a - first[1] @ first[0])
        wanted = oriented(family, expected[update.target].double())
        assert (new - wanted).abs().max() <= DECOMPOSED * wanted.abs().max()
        assert torch.equal(weight, oriented(family, base[update.target].double()))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa", "use_dora": True}, "of class B and of class C"),
    ],
)
def test_an_initialisation_that_no_file_repeats_is_refused(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    save_kind(tmp_path, "LORA", "llama", r=4, target_modules=["q_proj"], **fields)
    with pytest.raises(Refused, match=said):
        layers(tmp_path, "llama")


SMALL = st.integers(1, 6)
FIELDS = st.one_of(
    st.fixed_dictionaries({"peft_type": st.just("LOHA"), "r": SMALL, "alpha": st.floats(0.1, 9)}),
    st.fixed_dictionaries(
        {
            "peft_type": st.just("LOKR"),
            "r": SMALL,
            "decompose_both": st.booleans(),
            "decompose_factor": st.integers(-1, 9),
        }
    ),
    st.fixed_dictionaries({"peft_type": st.just("HIRA"), "r": SMALL}),
    st.fixed_dictionaries({"peft_type": st.just("MISS"), "r": SMALL}),
    st.fixed_dictionaries(
        {"peft_type": st.sampled_from(["VERA", "PVERA", "RANDLORA"]), "r": SMALL}
        | {"save_projection": st.booleans(), "projection_prng_key": st.integers(0, 1 << 40)}
    ),
)


@settings(max_examples=40, deadline=None)
@given(FIELDS, st.lists(st.tuples(st.integers(6, 20), st.integers(6, 20)), min_size=1, max_size=3))
def test_layers_of_any_shape(
    tmp_path_factory: pytest.TempPathFactory,
    fields: dict[str, Any],
    shapes: list[tuple[int, int]],
) -> None:
    folder = tmp_path_factory.mktemp("adapter")
    sizes = {f"block.{number}": shape for number, shape in enumerate(shapes)}
    base = nn.ModuleDict(
        {"block": nn.ModuleList(nn.Linear(columns, rows, bias=False) for rows, columns in shapes)}
    )
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = adapted(base, target_modules=[*sizes], **{"kind": fields["peft_type"], **fields})
    model.save_pretrained(folder)
    expected = model.merge_and_unload().state_dict()
    config = {**fields, "target_modules": [*sizes]}
    updates, claimed = read_kind(config, read_layout(Folder(folder), WEIGHTS), "config", "file")
    stored = load_file(folder / WEIGHTS)
    assert claimed == stored.keys() and len(updates) == len(sizes)
    for update in updates:
        assert isinstance(update, Operator)
        tensors = {tensor.name: stored[tensor.name].double() for tensor in update.tensors}
        new = PeftLayer(config, update, tensors, sizes).operated(before[update.target].double())
        wanted = expected[update.target].double()
        assert (new - wanted).abs().max() <= EXACT * max(1.0, wanted.abs().max())


def test_computing_leaves_no_trace(tmp_path: Path) -> None:
    save_kind(tmp_path, "VERA", "llama", r=5, save_projection=False, target_modules=["q_proj"])
    _, found = layers(tmp_path, "llama")
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first = found[0][1].delta()
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, found[0][1].delta()) and torch.get_default_dtype() == torch.float32


def stored_shira(folder: Path, **changed: torch.Tensor) -> list[tuple[Operator, PeftLayer]]:
    save_kind(folder, "SHIRA", "llama", r=2, target_modules=["layers.0.self_attn.q_proj"])
    tensors = load_file(folder / WEIGHTS)
    tensors |= {name: changed[name.rpartition(".")[2]] for name in tensors if changed}
    save_file(tensors, folder / WEIGHTS)
    return layers(folder, "llama")[1]


def test_an_index_outside_of_the_weight_is_refused(tmp_path: Path) -> None:
    indices = torch.full((2, 128), 1 << 20, dtype=torch.int32)
    [(_, layer)] = stored_shira(tmp_path, shira_indices=indices, shira_weight=torch.ones(128))
    with pytest.raises(Refused, match="PEFT does not accept"):
        layer.delta()


def test_a_tensor_that_does_not_fit_the_layer_is_refused(tmp_path: Path) -> None:
    indices = torch.zeros(2, 100, dtype=torch.int32)
    [(_, layer)] = stored_shira(tmp_path, shira_indices=indices, shira_weight=torch.ones(100))
    with pytest.raises(Refused, match=r"shira_\w+' has shape .*100.*128"):
        layer.delta()


def test_nan_is_refused(tmp_path: Path) -> None:
    indices = torch.arange(128, dtype=torch.int32).repeat(2, 1) % 32
    weight = torch.full((128,), float("nan"))
    [(_, layer)] = stored_shira(tmp_path, shira_indices=indices, shira_weight=weight)
    with pytest.raises(Refused, match="NaN or infinite"):
        layer.delta()


def test_a_tensor_that_only_the_layer_can_miss_is_named(tmp_path: Path) -> None:
    save_kind(tmp_path, "PEANUT", "llama", r=4, depth=2, target_modules=["layers.0.mlp.up_proj"])
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["base_model.model.model.layers.0.mlp.up_proj.peanut_decoders.1.weight"]
    save_file(tensors, tmp_path / WEIGHTS)
    [(_, layer)] = layers(tmp_path, "llama")[1]
    with pytest.raises(Refused, match=r"up_proj\.peanut_decoders\.1\.weight' is missing"):
        layer.operated(torch.zeros(48, 32, dtype=torch.float64))


def test_what_peft_itself_refuses_names_the_module(tmp_path: Path) -> None:
    save_kind(tmp_path, "ROAD", "llama", group_size=8, target_modules=["layers.0.mlp.up_proj"])
    edit_json(tmp_path / "adapter_config.json", group_size=10)
    (_, layer), *_ = layers(tmp_path, "llama")[1]
    with pytest.raises(Refused, match=r"up_proj' \(The out_features .* divisible by group_size"):
        layer.operated(torch.zeros(48, 32, dtype=torch.float64))


def test_a_layer_that_is_no_matrix_is_refused(tmp_path: Path) -> None:
    save_kind(tmp_path, "LOHA", "llama", r=2, target_modules=["layers.0.mlp.up_proj"])
    adapter = read_adapter(Folder(tmp_path))
    [update] = adapter.updates
    assert isinstance(update, Operator)
    with pytest.raises(Refused, match="only matrices"):
        PeftLayer(adapter.config, update, {}, {update.module: (48, 32, 3)})
