"""Differential test against PEFT over families, kinds, targets, dtypes and shard layouts.

The oracle is PEFT itself, on the same model in float64: merged, and saved by Transformers under
the checkpoint's own names.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model

from porting import Folder, merge, plan
from tests.families import FAMILIES, load_family, save_family
from tests.tiny import tensors_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STEPS = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def get(family: str, dtype: str, tied: bool, sharded: bool) -> Path:
        folder = tmp_path_factory.mktemp(family) / "base"
        size = "20KB" if sharded else "5GB"
        return save_family(folder, family, dtype=DTYPES[dtype], tied=tied, shard_size=size)

    return get


def save_random(folder: Path, base: Path, family: str, seed: int, dtype: str, lora: Any) -> Path:
    """An adapter on a random choice of layers, every factor N(0, 0.3)."""
    adapted = get_peft_model(load_family(base, family), LoraConfig(**lora))
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape).mul(0.3).to(DTYPES[dtype])
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def peft_merged(base: Path, family: str, patch: Path, out: Path, dtype: Any) -> dict[str, Any]:
    model = PeftModel.from_pretrained(
        load_family(base, family, dtype), patch, autocast_adapter_dtype=False
    )
    if dtype == torch.float64:
        model = model.double()
    model.merge_and_unload().save_pretrained(out)
    return tensors_of(out)


def ulps(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The spacing of `dtype` around each value, float64; at least that of its smallest normal."""
    _, exponent = torch.frexp(exact.abs().clamp_min(torch.finfo(dtype).smallest_normal))
    return torch.ldexp(torch.ones_like(exact), exponent - STEPS[dtype])


@st.composite
def loras(draw: Any, family: str) -> dict[str, Any]:
    layers = FAMILIES[family][3]
    some = draw(st.lists(st.sampled_from(layers), min_size=1, unique=True))
    head = ["lm_head"] if family not in ("t5", "bert", "gpt2") else []
    embedding = {"gpt2": ["wte"], "gpt_neox": ["embed_in"], "falcon": ["word_embeddings"]}
    embedding |= {"t5": [], "bert": ["word_embeddings"]}
    extra = draw(st.sampled_from([[], [], [], head, embedding.get(family, ["embed_tokens"])]))
    lora: dict[str, Any] = {
        "r": draw(st.integers(1, 9)),
        "lora_alpha": draw(st.integers(1, 48)),
        "use_rslora": draw(st.booleans()),
    }
    way = draw(st.sampled_from(["list", "list", "regex", "all-linear", "layers", "excluded"]))
    if way == "all-linear" and family not in ("bert", "t5"):
        lora["target_modules"] = "all-linear"
        lora["task_type"] = "CAUSAL_LM"
    elif way == "regex":
        lora["target_modules"] = rf".*\.1\..*({'|'.join(some)})"
    else:
        lora["target_modules"] = some + (extra if way == "list" else [])
    if way == "layers" and family not in ("bert", "t5", "gpt_neox", "gpt2", "falcon"):
        lora |= {"layers_to_transform": [1], "layers_pattern": "layers"}
    if way == "excluded" and len(some) > 1:
        lora["exclude_modules"] = some[:1]
    if draw(st.booleans()):
        lora["rank_pattern"] = {some[0]: draw(st.integers(1, 12))}
        lora["alpha_pattern"] = {rf"^.*\.0\..*{some[-1]}": draw(st.integers(1, 64))}
    if draw(st.integers(0, 3)) == 0 and family in ("llama", "gpt2", "opt", "gpt_neox"):
        lora |= {"lora_bias": True, "target_modules": {"llama": ["q_proj"]}.get(family, layers)}
        lora.pop("exclude_modules", None)
    return lora


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_merge_is_what_peft_computes_in_float64(
    bases: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Every element is the nearest value in 99.9 %, off by one ulp at most, no further than PEFT.

    "No further than PEFT" has a margin of 2^-20 |W| + 2^-12 ulp, for where W and dW cancel and
    because torch rounds float64 to bf16 over float32.
    """
    family = data.draw(st.sampled_from(sorted(FAMILIES)))
    base_dtype = data.draw(st.sampled_from(list(DTYPES)))
    sharded = data.draw(st.booleans())
    base = bases(family, base_dtype, False, sharded)
    lora = data.draw(loras(family))
    folder = tmp_path_factory.mktemp("port")
    patch = save_random(
        folder / "patch",
        base,
        family,
        data.draw(st.integers(0, 99)),
        data.draw(st.sampled_from(list(DTYPES))),
        lora,
    )
    made = plan(Folder(base), Folder(patch), as_="merged")
    merge(made, base, patch, folder / "out")

    before, ours = tensors_of(base), tensors_of(folder / "out")
    exact = peft_merged(base, family, patch, folder / "exact", torch.float64)
    theirs = peft_merged(base, family, patch, folder / "peft", "auto")
    touched = {touch.tensor.name for touch in made.touched}
    changed = {name for name in before if not torch.equal(exact[name], before[name].double())}
    assert changed <= touched
    assert ours.keys() == before.keys()
    right = elements = 0
    for name, old in before.items():
        new = ours[name]
        assert new.dtype == old.dtype
        if name not in touched:
            assert torch.equal(new, old)
            continue
        wanted = exact[name].reshape(new.shape)
        error = (new.double() - wanted).abs()
        ulp, slack = ulps(wanted, new.dtype), old.double().abs() * 2**-20
        assert (error <= ulp + slack).all()
        assert (error <= (theirs[name].double() - wanted).abs() + slack + ulp * 2**-12).all()
        right += int((error <= ulp * 0.5001).sum())
        elements += error.numel()
    assert right >= 0.999 * elements
