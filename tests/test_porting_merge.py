"""Merging against two oracles: PEFT's own merge, and the formula in float64."""

import os
import signal
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from porting import Folder, Port, Refused, UsageError, merge, merge_all, plan
from porting.merge import FILES_AT_ONCE
from tests import tiny
from tests.tiny import tensors_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def run_merge(base: Path, patch: Path, out: Path) -> dict[str, str]:
    return merge(plan(Folder(base), Folder(patch), as_="merged"), base, patch, out)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def neighbours(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The next values away from and towards zero, as float64; NaN where there is none."""
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)
    return (bits + 1).view(values.dtype).double(), (bits - 1).view(values.dtype).double()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Bases by family, dtype, tying and sharding, each saved once."""

    @cache
    def get(family: str, dtype: str, tied: bool, sharded: bool) -> Path:
        folder = tmp_path_factory.mktemp(family) / "base"
        size = "30KB" if sharded else "5GB"
        return tiny.save_base(folder, family, dtype=DTYPES[dtype], tied=tied, shard_size=size)

    return get


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(["llama", "gpt2", "gpt_neox"]),
    dtypes=st.tuples(st.sampled_from(list(DTYPES)), st.sampled_from(list(DTYPES))),
    tied=st.booleans(),
    sharded=st.booleans(),
    rank=st.integers(1, 9),
    alpha=st.integers(1, 64),
    rslora=st.booleans(),
    patterned=st.booleans(),
    count=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_merge_is_the_rounded_float64_result_and_never_further_off_than_peft(
    bases: Any,
    tmp_path_factory: pytest.TempPathFactory,
    family: str,
    dtypes: tuple[str, str],
    tied: bool,
    sharded: bool,
    rank: int,
    alpha: int,
    rslora: bool,
    patterned: bool,
    count: int,
    seed: int,
) -> None:
    """With E = W + s B A, u the unit roundoff of float32 (2^-24) and ulp that of the base's dtype:

    - ours: |ours - E| <= (1/2 + 2^-12) ulp, and the nearest value in 99.9 % of the elements. For
      float32 that is one rounding; for bf16 and fp16 torch rounds float64 over float32, hence the
      2^-12. No clause for cancellation: float64 keeps 29 bits more than the result.
    - PEFT, float32 base: the product has an error of r u |B||A| at most, the scale and its product
      add 2 u |s||B||A|, the sum u |E|. So |PEFT - ours| <= (r + 2) u |s| |B||A| + 2 u |E|, plus
      second-order terms, for which 1 % is added.
    - never further off than PEFT by more than 2^-12 ulp.
    """
    targets = tiny.TARGETS[family][:count]
    lora: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "use_rslora": rslora}
    if patterned:
        lora["rank_pattern"] = {rf"^.*\.1\..*{targets[0]}": rank + 3}
        lora["alpha_pattern"] = {targets[-1]: alpha + 5, rf"0\..*\.{targets[0]}": alpha * 2}
    folder = tmp_path_factory.mktemp("merge")
    base = bases(family, dtypes[0], tied, sharded)
    patch = tiny.save_adapter(
        folder / "patch", base, seed=seed, dtype=DTYPES[dtypes[1]], target_modules=targets, **lora
    )
    run_merge(base, patch, folder / "out")

    old, ours = tensors_of(base), tensors_of(folder / "out")
    model = tiny.load_adapted(base, patch)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    factors = {
        f"{name}.weight": (
            layer.lora_A["default"].weight.detach().double(),
            layer.lora_B["default"].weight.detach().double(),
            layer.scaling["default"],
            layer.fan_in_fan_out,
        )
        for name, layer in layers.items()
    }
    peft = model.merge_and_unload().state_dict()
    assert old.keys() == ours.keys()
    assert factors.keys() <= ours.keys()
    elements = exactly_rounded = 0
    for name, before in old.items():
        if name not in factors:
            assert raw_bytes(ours[name]) == raw_bytes(before)
            continue
        a, b, scale, turned = factors[name]
        delta, size = scale * (b @ a), abs(scale) * (b.abs() @ a.abs())
        delta, size = (delta.T, size.T) if turned else (delta, size)
        exact = before.double() + delta
        got, theirs = ours[name].double(), peft[name].double()
        up, down = neighbours(ours[name])
        ulp = (up - got).abs()
        error = (got - exact).abs()
        assert (error <= ulp * (0.5 + 2**-12)).all()
        assert (error <= (theirs - exact).abs() + ulp * 2**-12).all()
        worse = ((up - exact).abs() < error) | ((down - exact).abs() < error)
        exactly_rounded += int((~worse).sum())
        elements += error.numel()
        if dtypes[0] == "fp32":
            bound = (a.shape[0] + 2) * 2**-24 * size + 2 * 2**-24 * exact.abs()
            assert ((theirs - got).abs() <= 1.01 * bound).all()
    assert exactly_rounded >= 0.999 * elements


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_merged_model_gives_the_logits_of_base_and_adapter(tmp_path: Path, family: str) -> None:
    """In float32 both ways round about once per sum of 32 to 96 terms in two layers: 1e-4 of the
    largest logit is twenty times what that explains, and far below the effect of the adapter."""
    base = tiny.save_base(tmp_path / "base", family, shard_size="30KB")
    patch = tiny.save_adapter(tmp_path / "patch", base, r=5, lora_alpha=9)
    run_merge(base, patch, tmp_path / "out")
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        merged = tiny.load(tmp_path / "out")(tokens).logits
        beside = tiny.load_adapted(base, patch)(tokens).logits
        alone = tiny.load(base)(tokens).logits
    bound = 1e-4 * beside.abs().max()
    assert (merged - beside).abs().max() < bound
    assert (alone - beside).abs().max() > 100 * bound


def test_everything_but_the_touched_tensors_stays_byte_for_byte(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", shard_size="30KB")
    (base / "LICENSE").write_text("free")
    (base / "README.md").write_text("# The base's own card")
    patch = tiny.save_adapter(tmp_path / "patch", base, target_modules=["v_proj"])
    made = plan(Folder(base), Folder(patch), as_="merged")
    seen: list[int] = []
    digests = merge(made, base, patch, tmp_path / "out", seen.append)

    out = tmp_path / "out"
    assert digests == {file: entry.digest for file, entry in Folder(out).files().items()}
    assert sum(seen) == made.bytes_out == sum(file.stat().st_size for file in out.iterdir())
    assert not (out / "README.md").exists()
    touched = {touch.tensor.name: touch.tensor for touch in made.touched}
    for file in digests:
        before, after = (base / file).read_bytes(), bytearray((out / file).read_bytes())
        for tensor in touched.values():
            if tensor.file == file:
                assert before[tensor.start : tensor.end] != after[tensor.start : tensor.end]
                after[tensor.start : tensor.end] = before[tensor.start : tensor.end]
        assert before == after
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_patch_that_is_not_finite_is_refused_and_leaves_nothing(
    tmp_path: Path, value: float
) -> None:
    base = tiny.raw_base(tmp_path / "base", {"m.weight": torch.zeros(8, 8)})
    patch = tiny.raw_adapter(tmp_path / "patch", {"m": (8, 8)})
    tensors = load_file(patch / "adapter_model.safetensors")
    tensors["base_model.model.m.lora_A.weight"][1, 2] = value
    save_file(tensors, patch / "adapter_model.safetensors")
    with pytest.raises(Refused, match=r"adapter_model\.safetensors.*m\.lora_A\.weight.*NaN"):
        run_merge(base, patch, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base", "patch"]


def test_overflow_of_the_bases_dtype_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    weights = {"m.weight": torch.full((8, 8), 65504.0, dtype=torch.float16)}
    base = tiny.raw_base(tmp_path / "base", weights)
    patch = tiny.raw_adapter(tmp_path / "patch", {"m": (8, 8)}, lora_alpha=10_000)
    with pytest.raises(Refused, match=r"model\.safetensors.*'m\.weight'.*overflows F16"):
        run_merge(base, patch, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base", "patch"]


def test_a_base_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    base = tiny.raw_base(tmp_path / "base", {"m.weight": torch.zeros(8, 8)})
    other = tiny.raw_base(tmp_path / "other", {"m.weight": torch.zeros(8, 8, dtype=torch.half)})
    patch = tiny.raw_adapter(tmp_path / "patch", {"m": (8, 8)})
    louder = tiny.raw_adapter(tmp_path / "louder", {"m": (8, 8)}, lora_alpha=99)
    made = plan(Folder(base), Folder(patch), as_="merged")
    with pytest.raises(Refused, match="other: its tensors are not those of the plan"):
        merge(made, other, patch, tmp_path / "out")
    with pytest.raises(Refused, match="louder: its updates are not those of the plan"):
        merge(made, base, louder, tmp_path / "out")


def test_a_folder_that_is_not_empty_is_never_written_to(tmp_path: Path) -> None:
    base = tiny.raw_base(tmp_path / "base", {"m.weight": torch.zeros(8, 8)})
    patch = tiny.raw_adapter(tmp_path / "patch", {"m": (8, 8)})
    with pytest.raises(UsageError, match="not empty"):
        run_merge(base, patch, base)
    with pytest.raises(UsageError, match="adapter"):
        merge(plan(Folder(base), Folder(patch), as_="adapter"), base, patch, tmp_path / "out")


@pytest.mark.parametrize("tied", [False, True])
def test_many_patches_in_one_pass_give_the_bytes_of_each_alone(tmp_path: Path, tied: bool) -> None:
    base = tiny.save_base(tmp_path / "base", shard_size="30KB", tied=tied, dtype=torch.bfloat16)
    targets = [["q_proj"], ["q_proj", "down_proj"], tiny.TARGETS["llama"], ["lm_head", "v_proj"]]
    ports, outs = [], []
    for number, names in enumerate(targets):
        patch = tiny.save_adapter(
            tmp_path / f"patch{number}", base, seed=number, r=number + 2, target_modules=names
        )
        made = plan(Folder(base), Folder(patch), as_="merged", old_base=Folder(base))
        ports.append(Port(made, patch, base))
        outs.append(tmp_path / f"together{number}")
    seen: list[int] = []
    digests = merge_all(ports, base, outs, seen.append)
    written = 0
    for number, (port, out) in enumerate(zip(ports, outs, strict=True)):
        alone = tmp_path / f"alone{number}"
        assert merge(port.plan, base, port.patch, alone, old_base=base) == digests[number]
        assert {f: e.digest for f, e in Folder(out).files().items()} == digests[number]
        written += sum(file.stat().st_size for file in out.iterdir())
    assert sum(seen) == written


def bytes_read() -> int:
    """What this process has read from files so far."""
    line = next(x for x in Path("/proc/self/io").read_text().splitlines() if "rchar" in x)
    return int(line.partition(" ")[2])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel counts no reads")
def test_the_base_is_read_once_for_all_patches(tmp_path: Path) -> None:
    shape = (2048, 1024)
    base = tiny.raw_base(tmp_path / "base", {"x.weight": torch.zeros(shape)})
    size = (base / "model.safetensors").stat().st_size
    read = []
    for count in (1, 8):
        ports = []
        for number in range(count):
            patch = tiny.raw_adapter(tmp_path / f"patch{count}-{number}", {"x": shape})
            ports.append(Port(plan(Folder(base), Folder(patch), as_="merged"), patch))
        before = bytes_read()
        merge_all(ports, base, [tmp_path / f"out{count}-{n}" for n in range(count)])
        read.append(bytes_read() - before)
    assert size < read[0] < 1.3 * size
    assert read[1] < read[0] + 0.4 * size


def test_unhashed_merges_write_the_same_bytes(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", shard_size="30KB")
    patch = tiny.save_adapter(tmp_path / "patch", base)
    made = plan(Folder(base), Folder(patch), as_="merged")
    expected = merge(made, base, patch, tmp_path / "hashed")
    assert set(merge(made, base, patch, tmp_path / "out", hashed=False).values()) == {""}
    assert {f: e.digest for f, e in Folder(tmp_path / "out").files().items()} == expected


SCRIPT = """
import os, signal, sys
from pathlib import Path
from porting import Folder, merge, plan

base, patch, out, kill_after = *map(Path, sys.argv[1:4]), int(sys.argv[4])
done = 0

def progress(size):
    global done
    done += size
    if done > kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

made = plan(Folder(base), Folder(patch), as_="merged")
merge(made, base, patch, out, progress)
"""


def in_process(base: Path, patch: Path, out: Path, kill_after: int, threads: str) -> int:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), base, patch, out, str(kill_after)]
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    return subprocess.run([str(part) for part in command], env=environment).returncode


@pytest.mark.parametrize("part", [0.1, 0.55, 0.95])
def test_a_killed_merge_is_finished_by_the_next_one(tmp_path: Path, part: float) -> None:
    base = tiny.save_base(tmp_path / "base", shard_size="30KB")
    patch = tiny.save_adapter(tmp_path / "patch", base, r=3)
    expected = run_merge(base, patch, tmp_path / "undisturbed")
    size = sum(file.stat().st_size for file in (tmp_path / "undisturbed").iterdir())

    code = in_process(base, patch, tmp_path / "out", int(part * size), "1")
    assert code == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    stage = tmp_path / ".out.partial"
    finished = {
        file.name: file.stat().st_ino
        for file in stage.iterdir()
        if (stage / f".{file.name}.done").exists()
    }
    assert len(finished) < len(expected)
    sizes = [file.stat().st_size for file in (tmp_path / "undisturbed").iterdir()]
    kept = sum((stage / name).stat().st_size for name in finished)
    assert kept >= part * size - FILES_AT_ONCE * max(sizes)  # only files in work are done again

    assert run_merge(base, patch, tmp_path / "out") == expected
    out = Folder(tmp_path / "out").files()
    assert {file: entry.digest for file, entry in out.items()} == expected
    for file, inode in finished.items():
        assert (tmp_path / "out" / file).stat().st_ino == inode
    assert not stage.exists()


def test_what_a_killed_merge_of_another_patch_left_is_not_taken_over(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", shard_size="30KB")
    patch = tiny.save_adapter(tmp_path / "patch", base, r=3)
    other = tiny.save_adapter(tmp_path / "other", base, r=3, seed=7)
    expected = run_merge(base, patch, tmp_path / "undisturbed")
    assert in_process(base, other, tmp_path / "out", 70_000, "1") == -signal.SIGKILL
    (tmp_path / ".out.partial" / "stray").write_text("left by something else")
    assert run_merge(base, patch, tmp_path / "out") == expected
    assert (tmp_path / "out" / "config.json").exists()
    assert not (tmp_path / "out" / "stray").exists()


@pytest.mark.parametrize("workers", [1, 7])
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    base = tiny.save_base(tmp_path / "base", shard_size="30KB", dtype=torch.bfloat16)
    patch = tiny.save_adapter(tmp_path / "patch", base)
    expected = run_merge(base, patch, tmp_path / "expected")
    monkeypatch.setattr("porting.weights.blocks.WORKERS", workers)
    monkeypatch.setattr("porting.weights.blocks.AHEAD", 0)
    assert run_merge(base, patch, tmp_path / "out") == expected


def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = (1500, 700)  # several blocks, the last of them shorter
    weights = {f"{name}.weight": torch.randn(shape).to(torch.bfloat16) for name in "xy"}
    base = tiny.raw_base(tmp_path / "base", weights)
    patch = tiny.raw_adapter(tmp_path / "patch", {"x": shape, "y": shape})
    for threads in ("1", "2"):
        assert in_process(base, patch, tmp_path / threads, 1 << 60, threads) == 0
    one, two = (Folder(tmp_path / threads).files() for threads in ("1", "2"))
    assert one["model.safetensors"].digest == two["model.safetensors"].digest
