"""Adapters made to hurt: a refusal in one sentence, nothing written, nothing large allocated."""

import json
import pickle
import resource
import struct
from pathlib import Path

import pytest
import torch

from porting import Folder, Refused, merge, plan
from tests import tiny

WEIGHTS = "adapter_model.safetensors"
A, B = (f"base_model.model.q.lora_{half}.weight" for half in "AB")


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def header(**tensors: tuple[list[int], int, int]) -> bytes:
    entries = {
        {"a": A, "b": B}[name]: {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        for name, (shape, start, end) in tensors.items()
    }
    return json.dumps(entries).encode()


FILES = {
    "a truncated header": safetensors(header(a=([4, 6], 0, 96)))[:40],
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a tensor of 2^63 bytes": safetensors(header(a=([2**61, 1], 0, 2**63 - 1))),
    "overlapping tensors": safetensors(header(a=([4, 6], 0, 96), b=([8, 4], 0, 128)), bytes(128)),
    "a hole": safetensors(header(a=([4, 6], 0, 96), b=([8, 4], 100, 228)), bytes(228)),
    "a key twice": safetensors(
        b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"\0",
    ),
    "a deep list": safetensors(b"[" * 5_000_000),
    "a deep object": safetensors(b'{"a":' * 1_000_000),
    "a long number": safetensors(b'{"a":{"shape":[' + b"9" * 5_000_000 + b"]}}"),
    "a header of 12 MB": safetensors(b" " * 12_000_000),
    "a pickle": pickle.dumps({"a": print}),
    "nothing": b"",
}


@pytest.mark.parametrize("file", FILES)
def test_weights_made_to_hurt_are_refused(tmp_path: Path, file: str) -> None:
    base = tiny.raw_base(tmp_path / "base", {"q.weight": torch.zeros(8, 6)})
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)})
    (patch / WEIGHTS).write_bytes(FILES[file])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused, match=WEIGHTS) as refusal:
        plan(Folder(base), Folder(patch), as_="merged")
    assert "\n" not in str(refusal.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "patch"]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/b.safetensors", "a\0.safetensors", "x.py", ""]
)
def test_shards_that_lie_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    base = tiny.raw_base(tmp_path / "base", {"q.weight": torch.zeros(8, 6)})
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)})
    (base / "model.safetensors").unlink()
    index = {"weight_map": {"q.weight": name}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Refused, match=r"weight_map names .* not a safetensors file beside it"):
        plan(Folder(base), Folder(patch), as_="merged")


def test_a_config_that_asks_for_a_model_of_any_size_builds_none(tmp_path: Path) -> None:
    base = tiny.raw_base(
        tmp_path / "base",
        {"model.layers.0.k.weight": torch.zeros(8, 6)},
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        num_hidden_layers=10**9,
        hidden_size=10**9,
        auto_map={"AutoModel": "stranger/repo--code.Model"},
    )
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)})
    with pytest.raises(Refused, match=r"no tensor for 'q\.weight'"):
        plan(Folder(base), Folder(patch), as_="merged")


def test_files_that_change_between_plan_and_merge_are_noticed(tmp_path: Path) -> None:
    base = tiny.raw_base(tmp_path / "base", {"q.weight": torch.zeros(8, 6)})
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)})
    made = plan(Folder(base), Folder(patch), as_="merged")
    (patch / WEIGHTS).unlink()
    (patch / WEIGHTS).symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="points outside the folder"):
        merge(made, base, patch, tmp_path / "out")
    assert not (tmp_path / "out").exists()
