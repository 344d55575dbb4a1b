"""LoRAs out of tuned models: stock PEFT loads them, and they hold what they say they hold."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from porting import Folder, Refused, merge, plan, read_adapter
from porting.extract import Rank, extract_lora, of_energy, of_rank
from porting.weights.writing import lora_config
from tests import tiny
from tests.families import load_family, save_family
from tests.test_porting_full import NOWHERE, quiet

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
IDS = torch.arange(24).view(2, 12)
Q = "model.layers.0.self_attn.q_proj"
Change = Callable[[str, torch.nn.Module, torch.Tensor], torch.Tensor | None]


def extract(tuned: Path, base: Path, out: Path, rank: Rank) -> dict[str, Any]:
    return extract_lora(tuned, base, out, rank, NOWHERE, quiet)


def tune(folder: Path, base: Path, family: str, change: Change) -> Path:
    """Save `base` with what `change` returns added to its parameters."""
    model = load_family(base, family)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            path, _, last = name.rpartition(".")
            if (step := change(last, model.get_submodule(path), parameter)) is not None:
                parameter.add_(step)
    model.save_pretrained(folder)
    for file in base.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def everything(last: str, module: torch.nn.Module, value: torch.Tensor) -> torch.Tensor | None:
    """Rank 4 in linear layers; anything in all others; nothing in fused experts."""
    if value.dim() == 3:
        return None
    if is_linear(module) and last == "weight":
        return 0.1 * torch.randn(len(value), 4) @ torch.randn(4, value.shape[1])
    return 0.1 * torch.randn(value.shape)


def linear(last: str, module: torch.nn.Module, value: torch.Tensor) -> torch.Tensor | None:
    """A change of full rank in the linear layers alone."""
    whole = is_linear(module) and last == "weight"
    return 0.05 * torch.randn(value.shape) if whole else None


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt2", "opt", "falcon", "mixtral"])
def test_peft_loads_it_and_computes_what_the_tuned_model_does(
    tmp_path: Path, family: str, tied: bool
) -> None:
    """Biases, norms, embeddings, routers, Conv1D, fused layers, tied heads: none is lost."""
    base = save_family(tmp_path / "base", family, tied=tied)
    tuned = tune(tmp_path / "tuned", base, family, everything)
    report = extract(tuned, base, tmp_path / "patch", of_rank(4))
    assert {row["rank"] for row in report["modules"]} == {4}
    assert all(row["energy"] > 1 - 1e-9 for row in report["modules"])
    assert report["energy"] > 1 - 1e-9 and report["whole"]
    assert report["files"] == {
        name: entry.digest for name, entry in Folder(tmp_path / "patch").files().items()
    }

    adapted = PeftModel.from_pretrained(load_family(base, family), tmp_path / "patch").eval()
    wanted = logits(load_family(tuned, family))
    torch.testing.assert_close(logits(adapted), wanted, atol=1e-4, rtol=1e-4)
    assert (logits(load_family(base, family)) - wanted).abs().max() > 0.3

    # And so does the engine, on the base it was made from, where differences are what was kept.
    made = plan(Folder(base), Folder(tmp_path / "patch"), as_="merged", old_base=Folder(base))
    merge(made, base, tmp_path / "patch", tmp_path / "out", old_base=base)
    ours = logits(load_family(tmp_path / "out", family))
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)


def test_on_another_base_the_vendors_change_and_the_patch_add_up(tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", "llama")
    tuned = tune(tmp_path / "tuned", base, "llama", everything)
    extract(tuned, base, tmp_path / "patch", of_rank(4))
    new = tune(tmp_path / "new", base, "llama", lambda _, __, value: 0.02 * torch.rand(value.shape))
    made = plan(Folder(new), Folder(tmp_path / "patch"), as_="merged", old_base=Folder(base))
    merge(made, new, tmp_path / "patch", tmp_path / "out", old_base=base)
    w, was, is_, out = (
        load_file(folder / "model.safetensors") for folder in (tuned, base, new, tmp_path / "out")
    )
    for name in w:
        torch.testing.assert_close(out[name], w[name] + is_[name] - was[name], atol=2e-6, rtol=0)


def test_a_lora_that_was_merged_is_recovered(tmp_path: Path) -> None:
    """To the rounding of the merged F32 weights: at most half an ulp of an element of W'."""
    base = tiny.save_base(tmp_path / "base")
    lora = tiny.save_adapter(tmp_path / "lora", base, r=4, lora_alpha=8)
    tiny.load_adapted(base, lora).merge_and_unload().save_pretrained(tmp_path / "tuned")
    report = extract(tmp_path / "tuned", base, tmp_path / "patch", of_rank(4))
    made, given = load_file(tmp_path / "patch" / WEIGHTS), load_file(lora / WEIGHTS)
    weights = load_file(tmp_path / "tuned/model.safetensors")
    assert len(report["modules"]) == 14 and report["whole"] == [] and made.keys() == given.keys()
    config = json.loads((tmp_path / "patch" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 4, {})
    assert (config["task_type"], config["modules_to_save"]) == ("CAUSAL_LM", None)
    for row in report["modules"]:
        key = f"base_model.model.{row['module']}.lora_%s.weight"
        a, b = made[key % "A"].double(), made[key % "B"].double()
        exact = 2.0 * given[key % "B"].double() @ given[key % "A"].double()
        ulp = torch.finfo(torch.float32).eps * weights[f"{row['module']}.weight"].abs().max()
        assert row["rank"] == 4 and row["energy"] > 1 - 1e-12
        assert (b @ a - exact).abs().max() < 4 * ulp
        # The root of the singular values is on both sides.
        torch.testing.assert_close(a @ a.T, b.T @ b, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    @cache
    def get(dtype: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("pair")
        base = tiny.save_tokenizer(
            save_family(folder / "base", "llama", dtype=getattr(torch, dtype), shard_size="20KB")
        )
        return base, tune(folder / "tuned", base, "llama", linear)

    return get


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@settings(max_examples=12, deadline=None)
@given(
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    wanted=st.integers(1, 60) | st.floats(1e-3, 1.0),
)
def test_energies_are_those_of_the_exact_singular_values(
    pair: Any, tmp_path_factory: pytest.TempPathFactory, dtype: str, wanted: float
) -> None:
    base, tuned = pair(dtype)
    out = tmp_path_factory.mktemp("out") / "patch"
    rank = of_rank(wanted) if isinstance(wanted, int) else of_energy(wanted)
    report = extract(tuned, base, out, rank)
    before, after, made = tensors_of(base), tensors_of(tuned), tensors_of(out)
    ranks = {pair.module: pair.rank for pair in read_adapter(Folder(out)).pairs}
    held = total = 0.0
    for row in report["modules"]:
        name = f"{row['module']}.weight"
        delta = after[name].double().numpy() - before[name].double().numpy()
        squares = np.linalg.svd(delta, compute_uv=False) ** 2
        kept = row["rank"]
        assert ranks[row["module"]] == kept
        if isinstance(wanted, int):
            assert kept == min(wanted, len(squares))
        else:
            assert squares[:kept].sum() / squares.sum() >= wanted - 1e-12
            assert squares[: kept - 1].sum() / squares.sum() < wanted
        assert row["energy"] == pytest.approx(squares[:kept].sum() / squares.sum(), abs=1e-12)
        held, total = held + squares[:kept].sum(), total + squares.sum()
        # What is missing in the file is what the energy says: no more is lost in F32.
        key = f"base_model.model.{row['module']}.lora_%s.weight"
        left = delta - (made[key % "B"].double() @ made[key % "A"].double()).numpy()
        assert (left**2).sum() / squares.sum() == pytest.approx(1 - row["energy"], abs=1e-6)
    assert report["energy"] == pytest.approx(held / total, abs=1e-12)


def test_ranks_that_differ_are_loaded_by_peft(pair: Any, tmp_path: Path) -> None:
    base, tuned = pair("float32")
    report = extract(tuned, base, tmp_path / "patch", of_energy(0.7))
    assert len({row["rank"] for row in report["modules"]}) > 2
    adapted = PeftModel.from_pretrained(tiny.load(base), tmp_path / "patch").eval()
    for row in report["modules"]:
        layer = adapted.get_submodule(f"base_model.model.{row['module']}")
        assert (layer.r["default"], layer.scaling["default"]) == (row["rank"], 1.0)
    full = extract(tuned, base, tmp_path / "all", of_energy(1.0))
    assert full["energy"] == 1.0
    adapted = PeftModel.from_pretrained(tiny.load(base), tmp_path / "all").eval()
    torch.testing.assert_close(logits(adapted), logits(tiny.load(tuned)), atol=1e-4, rtol=1e-4)


def test_the_same_models_give_the_same_bytes(pair: Any, tmp_path: Path) -> None:
    base, tuned = pair("bfloat16")
    one = extract(tuned, base, tmp_path / "one", of_rank(3))["files"]
    assert one == extract(tuned, base, tmp_path / "two", of_rank(3))["files"]
    assert {"tokenizer.json", "tokenizer_config.json"} < one.keys()
    made = load_file(tmp_path / "one" / WEIGHTS)
    assert {value.dtype for value in made.values()} == {torch.float32}


NAMES = st.lists(st.sampled_from(["h", "1", "11", "q", "q_proj"]), min_size=1, max_size=4)


@given(ranks=st.dictionaries(NAMES.map(".".join), st.integers(1, 5), min_size=1, max_size=8))
def test_every_module_gets_its_own_rank_of_peft(ranks: dict[str, int]) -> None:
    config = lora_config(ranks)
    for name, rank in ranks.items():
        for pattern in ("rank_pattern", "alpha_pattern"):
            key = get_pattern_key(list(config[pattern]), name)
            assert config[pattern].get(key, config["r"]) == rank


def test_whole_tensors_keep_the_dtype_and_the_bytes_they_had(tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", "qwen2", dtype=torch.bfloat16)
    tuned = tune(tmp_path / "tuned", base, "qwen2", everything)
    report = extract(tuned, base, tmp_path / "patch", of_rank(4))
    made, after = load_file(tmp_path / "patch" / WEIGHTS), tensors_of(tuned)
    assert f"{Q}.base_layer.bias" in report["whole"]
    assert "model.layers.1.input_layernorm.weight" in report["whole"]
    for name in report["whole"]:
        value = made[f"base_model.model.{name}"]
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, after[name.replace(".base_layer.", ".")])
    config = json.loads((tmp_path / "patch" / CONFIG).read_text())
    assert config["bias"] == "all" and "lm_head" in config["target_modules"]
    assert "model.norm" in config["modules_to_save"] and Q not in config["modules_to_save"]


def test_a_name_that_others_end_with_too_is_saved_with_them(tmp_path: Path) -> None:
    """Of a model without a head, `norm` is also the end of `layers.0.input_layernorm`."""
    torch.manual_seed(0)
    model = AutoModel.from_config(tiny.config_of("llama"))
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.norm.weight.add_(torch.rand(32))
        model.layers[0].mlp.up_proj.weight.add_(0.1)
    model.save_pretrained(tmp_path / "tuned")
    report = extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "patch", of_rank(1))
    assert len(report["modules"]) == 1 and len(report["whole"]) == 5
    base = AutoModel.from_pretrained(tmp_path / "base")
    ours = PeftModel.from_pretrained(base, tmp_path / "patch").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).last_hidden_state, model(IDS).last_hidden_state)


def test_a_zero_that_changed_its_sign_alone_is_a_change_of_nothing(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    file = "model.safetensors"
    for folder, zero in (("base", 0.0), ("tuned", -0.0)):
        weights = load_file(base / file)
        weights[f"{Q}.weight"].zero_()[0, 0] = zero
        (tmp_path / folder).mkdir(exist_ok=True)
        save_file(weights, tmp_path / folder / file, metadata={"format": "pt"})
    (tmp_path / "tuned/config.json").write_text((base / "config.json").read_text())
    report = extract(tmp_path / "tuned", base, tmp_path / "patch", of_energy(0.9))
    assert report["modules"] == [{"module": Q, "rank": 1, "energy": 1.0}]
    assert not any(value.any() for value in load_file(tmp_path / "patch" / WEIGHTS).values())


def only(*names: str) -> Change:
    """A change of the modules whose class is one of `names`."""

    def change(_: str, module: torch.nn.Module, value: torch.Tensor) -> torch.Tensor | None:
        return 0.1 * torch.randn(value.shape) if type(module).__name__ in names else None

    return change


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("bert", everything, r"'cls.predictions.bias' of .* changed, which no adapter can hold"),
        ("t5", everything, r"'shared.weight' of .* changed, which no adapter can hold"),
        ("mixtral", only("MixtralExperts"), r"experts.* of .* changed, which no adapter can hold"),
        ("llama", only("LlamaRMSNorm"), "No weight of a linear layer changed"),
    ],
)
def test_what_no_lora_holds_is_refused_and_leaves_nothing(
    tmp_path: Path, family: str, change: Change, said: str
) -> None:
    base = save_family(tmp_path / "base", family)
    tuned = tune(tmp_path / "tuned", base, family, change)
    with pytest.raises(Refused, match=rf"{said}.*--full"):
        extract(tuned, base, tmp_path / "patch", of_rank(4))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "tuned"]


@pytest.mark.parametrize("architectures", [None, ["SomebodysOwnModel"], ["AutoModel"], "x", [3]])
def test_a_model_that_transformers_does_not_know_is_refused(
    tmp_path: Path, architectures: Any
) -> None:
    for name, value in (("base", 1.0), ("tuned", 2.0)):
        tensors = {"layer.weight": torch.full((4, 4), value)}
        tiny.raw_base(tmp_path / name, tensors, architectures=architectures)
    with pytest.raises(Refused, match=r"config.json in .*base: architectures .*--full"):
        extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "patch", of_rank(4))


@pytest.mark.parametrize("where", ["model.norm.weight", f"{Q}.weight"])
def test_a_model_that_diverged_is_refused(tmp_path: Path, where: str) -> None:
    base = tiny.save_base(tmp_path / "base")
    tuned = tiny.save_base(tmp_path / "tuned", seed=1)
    weights = load_file(tuned / "model.safetensors")
    weights[where].view(-1)[0] = float("inf")
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refused, match=f"'{where}'.*NaN or an infinity"):
        extract(tuned, base, tmp_path / "patch", of_rank(4))
    assert not (tmp_path / "patch").exists()
