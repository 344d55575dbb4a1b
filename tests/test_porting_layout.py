"""Safetensors headers and indices from strangers: read exactly, or refused in one sentence."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from porting import FileEntry, Folder, Refused, read_layout
from tests import tiny


def header_of(*tensors: tuple[str, str, list[int], int, int]) -> dict[str, Any]:
    return {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        for name, dtype, shape, start, end in tensors
    }


def write(folder: Path, header: Any, data: int = 0, name: str = "model.safetensors") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return folder


def test_offsets_point_at_the_bytes_that_the_library_reads(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", shard_size="30KB", dtype=torch.bfloat16)
    layout = read_layout(Folder(base))
    assert len(layout.files) > 1
    assert layout.index == "model.safetensors.index.json"
    for file in layout.files:
        with safe_open(base / file, "pt") as expected:
            assert {n for n, t in layout.tensors.items() if t.file == file} == set(expected.keys())
            for name in expected.keys():  # noqa: SIM118  safe_open is no mapping
                info, tensor = layout.tensors[name], expected.get_tensor(name)
                found = (base / file).read_bytes()[info.start : info.end]
                assert (info.dtype, info.shape) == ("BF16", tuple(tensor.shape))
                assert found == tensor.view(torch.uint8).numpy().tobytes()


def test_a_long_header_is_read_in_two_requests(tmp_path: Path) -> None:
    tensors = {f"layer.{number:04}.weight": torch.full((1,), number) for number in range(2000)}
    base = tiny.raw_base(tmp_path / "base", tensors)
    assert (base / "model.safetensors").stat().st_size > 1 << 17
    assert read_layout(Folder(base)).tensors.keys() == tensors.keys()


GOOD = ("a", "F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (b"{", 0, "header length 1"),
        (b"[]", 0, "must hold a JSON object"),
        (b"\xff\xff", 0, "not strict JSON"),
        (b'{"a":NaN}', 0, "NaN is not JSON"),
        (b"[" * 100_000, 0, "not strict JSON"),
        (b'{"a":1,"a":2}', 0, "a key appears twice"),
        ({"a": 1}, 0, "'a' must have exactly dtype, shape and data_offsets"),
        ({"__metadata__": {"format": 1}}, 0, "__metadata__"),
        (header_of(("a", "F33", [2], 0, 8)), 8, "unknown dtype 'F33'"),
        (header_of(("a", "F32", [-2], 0, 8)), 8, "shape"),
        (header_of(("a", "F32", [True], 0, 4)), 4, "shape"),
        (header_of(("a", "F32", [2**63], 0, 8)), 8, "shape"),
        (header_of(("a", "F32", [1] * 65, 0, 4)), 4, "shape"),
        (header_of(("a", "F32", [2], 8, 0)), 8, "do not span"),
        (header_of(("a", "F32", [3], 0, 8)), 8, "do not span"),
        (header_of(("a", "F4", [3], 0, 1)), 1, "do not span"),
        (header_of(GOOD, ("b", "F32", [2], 12, 20)), 20, "'b' leave a hole or overlap"),
        (header_of(GOOD, ("b", "F32", [2], 4, 12)), 12, "'b' leave a hole or overlap"),
        (header_of(GOOD, ("b", "F32", [2], 0, 8)), 8, "'b' leave a hole or overlap"),
        (header_of(GOOD), 12, "its header promises"),
        (header_of(GOOD), 7, "its header promises"),
        (header_of(("a\n", "F32", [2], 0, 8)), 8, "no model uses"),
        (header_of(("\ud800", "F32", [2], 0, 8)), 8, "no model uses"),
    ],
)
def test_a_header_that_breaks_the_format_is_refused(
    tmp_path: Path, header: Any, data: int, said: str
) -> None:
    with pytest.raises(Refused, match=r"model\.safetensors") as refusal:
        read_layout(Folder(write(tmp_path / "base", header, data)))
    assert said in str(refusal.value)


@pytest.mark.parametrize("length", [0, 1, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file_or_the_bound_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(Refused, match=f"header length {length} is out of range"):
        read_layout(Folder(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\x02", b"\x02\0\0\0\0\0\0"])
def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(Refused, match="is not safetensors"):
        read_layout(Folder(tmp_path))


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        (None, "weight_map must be an object"),
        ({}, "weight_map must be an object"),
        ({"a": 1}, "names 1,"),
        ({"a": "../one.safetensors"}, "names '../one.safetensors'"),
        ({"a": "/etc/passwd"}, "names '/etc/passwd'"),
        ({"a": "sub/one.safetensors"}, "names 'sub/one.safetensors'"),
        ({"a": "config.json"}, "names 'config.json'"),
        ({"a": "gone.safetensors"}, "names 'gone.safetensors'"),
        ({"a": "one.safetensors"}, "says None for 'b', but one.safetensors"),
        (
            {"a": "one.safetensors", "b": "two.safetensors"},
            "says 'two.safetensors' for 'b', but one.safetensors",
        ),
        (
            {"a": "one.safetensors", "b": "one.safetensors", "c": "one.safetensors"},
            "promises 'c' in one.safetensors",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(
    tmp_path: Path, weight_map: Any, said: str
) -> None:
    two = header_of(("a", "F32", [2], 0, 8), ("b", "F32", [2], 8, 16))
    write(tmp_path, two, 16, "one.safetensors")
    write(tmp_path, header_of(("b", "F32", [2], 0, 8)), 8, "two.safetensors")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", {}, 0, "one.safetensors")
    (tmp_path / "config.json").write_text("{}")
    index = json.dumps({"weight_map": weight_map})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(Refused, match=r"model\.safetensors\.index\.json") as refusal:
        read_layout(Folder(tmp_path))
    assert said in str(refusal.value)


def test_the_single_file_wins_over_an_index_as_in_transformers(tmp_path: Path) -> None:
    write(tmp_path, header_of(GOOD), 8)
    (tmp_path / "model.safetensors.index.json").write_text("not even JSON")
    assert read_layout(Folder(tmp_path)).files == ("model.safetensors",)


def test_pickles_are_not_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(Refused, match=r"neither model\.safetensors nor .* never pickles"):
        read_layout(Folder(tmp_path))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "F4", "X"]) | VALUES},
    optional={
        "shape": st.lists(st.integers(-1, 4), max_size=3) | VALUES,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | VALUES,
    },
)


class Memory:
    """A source of one file."""

    name = "memory"

    def __init__(self, content: bytes) -> None:
        self.content = content

    def files(self) -> dict[str, FileEntry]:
        return {"model.safetensors": FileEntry(len(self.content), "")}

    def read(self, file: str, start: int, end: int) -> bytes:
        assert 0 <= start <= end <= len(self.content)
        return self.content[start:end]


@st.composite
def sound_headers(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A header that holds, and the size of its data."""
    tensors, end = [], 0
    for name in draw(st.lists(st.text("abc._0", max_size=6), max_size=4, unique=True)):
        dtype, size = draw(st.sampled_from([("F32", 4), ("BF16", 2), ("BOOL", 1), ("C64", 8)]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        start, end = end, end + size * math.prod(shape)
        tensors.append((name, dtype, shape, start, end))
    return header_of(*tensors), end


@given(sound_headers())
def test_sound_headers_are_read(made: tuple[dict[str, Any], int]) -> None:
    header, data = made
    text = json.dumps(header).encode() + b"  "  # writers pad the header with spaces
    content = len(text).to_bytes(8, "little") + text + bytes(data)
    assert read_layout(Memory(content)).tensors.keys() == header.keys()


@settings(max_examples=500, deadline=None)
@given(
    made=sound_headers()
    | st.tuples(st.dictionaries(st.text(max_size=6), ENTRY | VALUES), st.integers(0, 40)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 3),
)
def test_no_header_does_worse_than_be_refused(
    made: tuple[dict[str, Any], int], flips: list[tuple[float, int]], cut: int
) -> None:
    """Sound headers or any JSON, with bytes changed and cut: what is read lies in the file."""
    header, data = made
    text = json.dumps(header).encode()
    content = bytearray(len(text).to_bytes(8, "little") + text + bytes(data))
    for place, value in flips:
        content[int(place * len(content))] = value
    content = content[: len(content) - cut]
    try:
        layout = read_layout(Memory(bytes(content)))
    except Refused as refusal:
        assert "model.safetensors" in str(refusal)
    else:
        assert all(8 <= t.start <= t.end <= len(content) for t in layout.tensors.values())
