"""The forecast, figure by figure, against dense matrices in NumPy's float64."""

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bot.cli.forecasting import print_forecast
from porting import Folder, Port, Refused, merge, plan
from porting.forecast import Forecast, forecast
from porting.subtract import extract_full
from porting.weights.intruders import intruders
from tests import moe, tiny
from tests.world import Portllm

Tensors = dict[str, torch.Tensor]
FILE = "model.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module")
def world() -> Any:
    """No Hub: folders only."""
    return SimpleNamespace(
        server=SimpleNamespace(endpoint="http://127.0.0.1:9"), api=SimpleNamespace(token="none")
    )


def forecasted(new: Path, patch: Path, old: Path | None, policy: Any = None) -> Forecast:
    before = Folder(old) if old else None
    made = plan(Folder(new), Folder(patch), as_="merged", old_base=before, policy=policy)
    return forecast(Port(made, patch, old), new)


def moved(base: Path, out: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """The base with other values of its tensors."""
    return moe.with_tensors(out, base, {n: change(n, t) for n, t in tiny.tensors_of(base).items()})


def drifted(base: Path, out: Path) -> Path:
    torch.manual_seed(7)
    return moved(base, out, lambda _, t: t + 0.05 * torch.randn(t.shape).to(t.dtype))


def wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def likeness(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The largest |cosine| of each of the ten largest left singular vectors of `after`."""
    left, values, _ = np.linalg.svd(before, full_matrices=False)
    left = left[:, values > 1e-9 * values[0]]
    return np.abs(left.T @ np.linalg.svd(after)[0][:, :10]).max(0)


def expected(new: torch.Tensor, old: torch.Tensor, delta: np.ndarray) -> dict[str, float | None]:
    """All figures of one matrix, from their definitions."""
    drift, norm = wide(new) - wide(old), np.linalg.norm
    left, values, right = np.linalg.svd(delta)
    rank = int((values > 1e-10 * values[0]).sum())
    kept = (torch.from_numpy(wide(new) + delta).to(new.dtype) == new).numpy()
    return {
        "delta": norm(delta),
        "drift": norm(drift),
        "ratio": norm(drift) / norm(delta),
        "cosine": (drift * delta).sum() / norm(drift) / norm(delta),
        "row_share": norm(drift @ right[:rank].T) ** 2 / norm(drift) ** 2,
        "row_chance": rank / delta.shape[1],
        "column_share": norm(left[:, :rank].T @ drift) ** 2 / norm(drift) ** 2,
        "column_chance": rank / delta.shape[0],
        "lost": float((kept & (delta != 0)).sum() / (delta != 0).sum()),
        "intruders": int((likeness(wide(new), wide(new) + delta) < 0.6).sum()),
    }


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.tuples(*[st.integers(11, 40)] * 2), min_size=1, max_size=3),
    dtype=st.sampled_from(sorted(DTYPES)),
    alpha=st.sampled_from([0.001, 0.5, 8.0]),
    seed=st.integers(0, 2**32 - 1),
    deficient=st.booleans(),
)
def test_every_figure_is_that_of_dense_matrices(
    shapes: list[tuple[int, int]], dtype: str, alpha: float, seed: int, deficient: bool
) -> None:
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        modules = {f"layers.{number}.proj": shape for number, shape in enumerate(shapes)}
        patch = tiny.raw_adapter(folder / "patch", modules, lora_alpha=alpha)
        file = patch / "adapter_model.safetensors"
        torch.manual_seed(seed)
        factors = {name: torch.randn(tensor.shape) for name, tensor in load_file(file).items()}
        if deficient:  # rank 3 of 4
            for name in factors:
                if "lora_A" in name:
                    factors[name][3] = factors[name][0]
        save_file(factors, file)
        new = {f"{m}.weight": torch.randn(s).to(DTYPES[dtype]) for m, s in modules.items()}
        old = {n: (t + 0.1 * torch.randn(t.shape)).to(t.dtype) for n, t in new.items()}
        bases = [tiny.raw_base(folder / name, t) for name, t in (("new", new), ("old", old))]
        found = forecasted(bases[0], patch, bases[1])

    deltas = {}
    for module in modules:
        a, b = (wide(factors[f"base_model.model.{module}.lora_{half}.weight"]) for half in "AB")
        deltas[f"{module}.weight"] = alpha / 4 * b @ a
    each = {name: expected(new[name], old[name], deltas[name]) for name in new}
    assert found.modules.keys() == each.keys()
    for name, figures in each.items():
        assert vars(found.modules[name]) == pytest.approx(figures, rel=1e-9, abs=1e-12), name

    flat = {
        kind: np.concatenate([value(name).ravel() for name in new])
        for kind, value in (
            ("delta", lambda name: deltas[name]),
            ("drift", lambda name: wide(new[name]) - wide(old[name])),
        )
    }
    norm, energy = np.linalg.norm, [figures["drift"] ** 2 for figures in each.values()]
    total = {
        "delta": norm(flat["delta"]),
        "drift": norm(flat["drift"]),
        "ratio": norm(flat["drift"]) / norm(flat["delta"]),
        "cosine": flat["delta"] @ flat["drift"] / norm(flat["delta"]) / norm(flat["drift"]),
        "lost": np.average(
            [figures["lost"] for figures in each.values()],
            weights=[d.size for d in deltas.values()],
        ),
        "intruders": sum(figures["intruders"] for figures in each.values()),
    }
    for share in ("row_share", "row_chance", "column_share", "column_chance"):
        total[share] = np.average([figures[share] for figures in each.values()], weights=energy)
    assert vars(found.total) == pytest.approx(total, rel=1e-9, abs=1e-12)
    assert found.to_dict()["total"] == vars(found.total)


@pytest.mark.parametrize(("dtype", "lost"), [("bf16", 1.0), ("fp32", 0.0)])
def test_what_rounding_swallows_is_counted(tmp_path: Path, dtype: str, lost: float) -> None:
    """Beside 1, bf16 has nothing below 2^-8; and what is not changed can't be lost."""
    base = tiny.raw_base(tmp_path / "base", {"x.weight": torch.ones(16, 12, dtype=DTYPES[dtype])})
    patch = tiny.raw_adapter(tmp_path / "patch", {"x": (16, 12)}, lora_alpha=4)
    row, column = torch.zeros(4, 12), torch.zeros(16, 4)
    row[0], column[:5, 0] = 1.0, 2.0**-10
    names = [f"base_model.model.x.lora_{half}.weight" for half in "AB"]
    save_file(dict(zip(names, (row, column), strict=True)), patch / "adapter_model.safetensors")
    found = forecasted(base, patch, None).modules["x.weight"]
    assert found.lost == lost
    assert found.delta == pytest.approx(2.0**-10 * 60**0.5)


def spectrum(rows: int, columns: int) -> torch.Tensor:
    """A random matrix whose singular values fall as those of trained ones do."""
    left, _, right = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    return (left * (torch.arange(min(rows, columns)) + 5.0) ** -0.5) @ right


@pytest.mark.parametrize("shape", [(150, 90), (320, 240), (240, 320), (400, 40)])
def test_intruders_are_those_of_a_whole_decomposition(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    before = spectrum(*shape)
    for size in (0.001, 0.4, 1.5):
        delta = torch.randn(shape[0], 6) @ torch.randn(6, shape[1])
        after = before + size * delta / torch.linalg.matrix_norm(delta, 2)
        count = int((likeness(wide(before), wide(after)) < 0.6).sum())
        assert intruders(before, after) == count
        assert (count == 0) == (size == 0.001)


@pytest.mark.parametrize("shape", [(320, 240), (400, 40)])
def test_an_intruder_is_a_new_direction_and_not_one_that_grew(shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    before = spectrum(*shape)
    left, _, right = torch.linalg.svd(before)
    strange = torch.nn.functional.normalize(torch.randn(shape[0]), dim=0)
    assert intruders(before, before) == 0
    assert intruders(before, before + 2 * torch.outer(strange, right[5])) == 1
    assert intruders(before, before + 2 * torch.outer(left[:, 30], right[5])) == 0


def test_a_full_delta_and_a_base_that_moved_by_just_that(tmp_path: Path) -> None:
    """Norms and biases too: vectors have neither shares nor intruders, dense deltas no shares."""
    old = tiny.save_base(tmp_path / "old", "gpt2")
    torch.manual_seed(0)
    tuned = moved(old, tmp_path / "tuned", lambda _, t: t + 0.01 * torch.randn(t.shape))
    nowhere = {"base_model_name_or_path": None, "revision": None}
    extract_full(tuned, old, tmp_path / "delta", nowhere, lambda *_: None)
    found = forecasted(tuned, tmp_path / "delta", old)
    before, after = tiny.tensors_of(old), tiny.tensors_of(tuned)
    assert found.modules.keys() == before.keys()
    for name, figures in found.modules.items():
        assert figures.delta == pytest.approx(np.linalg.norm(wide(after[name] - before[name])))
        assert (figures.ratio, figures.cosine) == pytest.approx((1, 1), abs=1e-6)
        assert figures.row_share is figures.column_share is figures.row_chance is None
        assert (figures.intruders is None) == (before[name].dim() == 1)
    assert found.total.ratio == pytest.approx(1, abs=1e-6) and found.total.row_share is None


@pytest.mark.parametrize(
    ("lora", "policy"),
    [
        ({"modules_to_save": ["norm", "lm_head"]}, None),
        ({"trainable_token_indices": [3, 7]}, None),
        ({"target_modules": ["q_proj", "lm_head", "embed_tokens"]}, None),
        ({"init_lora_weights": "pissa"}, None),
        ({"use_dora": True}, "reapply"),
        ({"use_dora": True}, "freeze"),
    ],
)
def test_whatever_merges_is_forecast(tmp_path: Path, lora: dict[str, Any], policy: Any) -> None:
    old = tiny.save_base(tmp_path / "old")
    new = drifted(old, tmp_path / "new")
    patch = tiny.save_adapter(tmp_path / "patch", old, r=4, **lora)
    compare_with_merge(new, patch, old, tmp_path / "out", policy)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_are_forecast(tmp_path: Path, family: str) -> None:
    old = moe.save_family(tmp_path / "old", family)
    new = drifted(old, tmp_path / "new")
    patch = moe.save_lora(tmp_path / "patch", old, **moe.lora_of(family))
    compare_with_merge(new, patch, old, tmp_path / "out", None)


def compare_with_merge(new: Path, patch: Path, old: Path, out: Path, policy: Any) -> None:
    found = forecasted(new, patch, old, policy)
    before = Folder(old)
    made = plan(Folder(new), Folder(patch), as_="merged", old_base=before, policy=policy)
    merge(made, new, patch, out, old_base=old)
    base, merged, was = (tiny.tensors_of(folder) for folder in (new, out, old))
    assert found.modules.keys() == {touch.tensor.name for touch in made.touched}
    for name, figures in found.modules.items():
        delta = np.linalg.norm(wide(merged[name]) - wide(base[name]))
        assert figures.delta == pytest.approx(delta, rel=1e-4, abs=1e-5)
        drift = np.linalg.norm(wide(base[name]) - wide(was[name]))
        assert figures.drift == pytest.approx(drift, rel=1e-9)


def test_an_old_base_that_names_its_tensors_otherwise_or_lacks_one(tmp_path: Path) -> None:
    old = tiny.save_base(tmp_path / "old")
    new = drifted(old, tmp_path / "new")
    patch = tiny.save_adapter(tmp_path / "patch", old, r=4)
    alone, whole = forecasted(new, patch, None), forecasted(new, patch, old)
    gone = "layers.1.mlp.up_proj.weight"
    bare = {n.removeprefix("model."): t for n, t in tiny.tensors_of(old).items()}
    other = moe.with_tensors(tmp_path / "other", old, {n: bare[n] for n in bare if n != gone})
    found = forecasted(new, patch, other)
    for name, figures in found.modules.items():
        assert figures == (alone if name == f"model.{gone}" else whole).modules[name]
    known = [figures for name, figures in whole.modules.items() if name != f"model.{gone}"]
    drift, delta = (np.linalg.norm([vars(f)[kind] for f in known]) for kind in ("drift", "delta"))
    assert found.total.delta == whole.total.delta > delta
    assert (found.total.drift, found.total.ratio) == pytest.approx((drift, drift / delta))
    for figure in ("drift", "ratio", "cosine", "row_share", "column_share"):
        assert vars(alone.total)[figure] is None


def test_a_base_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    new = tiny.save_base(tmp_path / "new")
    patch = tiny.save_adapter(tmp_path / "patch", new, r=4)
    bad = "model.layers.0.mlp.up_proj.weight"
    old = moved(new, tmp_path / "old", lambda n, t: t.index_fill(0, torch.tensor(3), float("nan"))
                if n == bad else t)  # fmt: skip
    for pair in ((new, old), (old, None)):
        with pytest.raises(Refused, match=bad):
            forecasted(pair[0], patch, pair[1])


def test_plan_prints_the_forecast(portllm: Portllm, tmp_path: Path) -> None:
    old = tiny.save_base(tmp_path / "old")
    new = drifted(old, tmp_path / "new")
    patch = tiny.save_adapter(tmp_path / "patch", old, r=4)
    made = portllm.json("plan", new, patch, "--forecast", "--old", old)
    assert made.pop("forecast") == forecasted(new, patch, old).to_dict()
    assert made == portllm.json("plan", new, patch)

    alone = portllm("plan", new, patch, "--forecast", "--as", "adapter")
    assert re.search(r"^drift +unknown$", alone, re.MULTILINE)
    assert "--old" in alone and "tensor\tratio" not in alone


def test_a_forecast_is_shown_with_what_it_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tiny.save_base(tmp_path / "old")
    new = drifted(old, tmp_path / "new")
    found = forecasted(new, tiny.save_adapter(tmp_path / "patch", old, r=4), old)
    print_forecast(found.to_dict())
    shown = capsys.readouterr().out
    assert f"The base moved {found.total.ratio:.2g} times as far as the patch reaches; " in shown
    share, chance = found.total.row_share, found.total.row_chance
    assert f"{share:.1%} ({chance:.1%} expected by chance) is in inputs that" in shown
    table = [line.split("\t") for line in shown.partition("tensor\tratio")[2].splitlines()[1:]]
    ratios = sorted((figures.ratio for figures in found.modules.values()), reverse=True)
    assert [row[1] for row in table] == [f"{ratio:.3g}" for ratio in ratios[:10]]
