"""Where every tensor lies, from safetensors headers alone.

The format: https://huggingface.co/docs/safetensors (8 bytes of header length, little-endian;
a JSON header; the data, without holes). Headers come from strangers, so everything is checked.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from porting.errors import Refused
from porting.source import FileEntry, Source, parse_json, read_json

WEIGHTS = "model.safetensors"
SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
FLOATS = ("F32", "F16", "BF16")
MAX_NAME = 500
MAX_HEADER_BYTES = 10_000_000  # of one file: about 80,000 tensors
FIRST_READ = 1 << 16  # one request is enough for the header of most files

BITS = (
    dict.fromkeys(("F4",), 4)
    | dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6)
    | dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8)
    | dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
    | dict.fromkeys(("U16", "I16", "F16", "BF16"), 16)
    | dict.fromkeys(("U32", "I32", "F32"), 32)
    | dict.fromkeys(("U64", "I64", "F64", "C64"), 64)
)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `start` and `end` are bytes from the beginning of `file`."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """All tensors by name, the files that hold them, and the index file of a sharded model."""

    tensors: Mapping[str, TensorInfo]
    files: tuple[str, ...]
    index: str | None


def read_layout(source: Source, single: str = WEIGHTS, *, whole: bool = True) -> Layout:
    """Read the headers of `single`, or of the shards that `<single>.index.json` names.

    Where both exist, `single` is read, as Transformers does.

    Args:
        whole: whether every shard must be there; if not, those that are missing are left out.

    Raises:
        Refused: no such file, or any header or index that breaks the format.
    """
    present = source.files()
    index = f"{single}.index.json"
    if single in present:
        tensors = _read_header(source, single, present[single].size)
        return Layout({tensor.name: tensor for tensor in tensors}, (single,), None)
    if index not in present:
        raise Refused(
            f"{source.name} has neither {single} nor {index}: only safetensors are read, never "
            "pickles; convert the weights and push them"
        )
    return _read_shards(source, index, present, whole)


def _read_shards(
    source: Source, index: str, present: Mapping[str, FileEntry], whole: bool
) -> Layout:
    where = f"{index} in {source.name}"
    weight_map = read_json(source, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Refused(f"{where}: weight_map must be an object of tensor and file names")
    for file in weight_map.values():
        named = isinstance(file, str) and SHARD.fullmatch(file)
        if not named or (whole and file not in present):
            raise Refused(
                f"{where}: weight_map names {file!r}, which is not a safetensors file beside it"
            )
    tensors: dict[str, TensorInfo] = {}
    files = tuple(sorted(set(weight_map.values()) & present.keys()))
    for file in files:
        for tensor in _read_header(source, file, present[file].size):
            if weight_map.get(tensor.name) != file:
                raise Refused(
                    f"{where}: weight_map says {weight_map.get(tensor.name)!r} for "
                    f"{tensor.name!r}, but {file} holds it: write the index again"
                )
            tensors[tensor.name] = tensor
    promised = {name for name, file in weight_map.items() if file in files}
    if missing := sorted(promised - tensors.keys()):
        raise Refused(
            f"{where}: weight_map promises {missing[0]!r} in {weight_map[missing[0]]}, which does "
            "not hold it: write the index again"
        )
    return Layout(tensors, files, index)


def _read_header(source: Source, file: str, size: int) -> list[TensorInfo]:
    where = f"{file} in {source.name}"
    head = source.read(file, 0, min(size, FIRST_READ))
    length = int.from_bytes(head[:8], "little")
    if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise Refused(f"{where} is not safetensors: its header length {length} is out of range")
    begin = 8 + length
    if len(head) < begin:
        head += source.read(file, len(head), begin)
    header = parse_json(head[8:begin], f"The header of {where}")
    _check_metadata(header.pop("__metadata__", {}), where)
    tensors = [_parse(name, entry, file, begin, where) for name, entry in header.items()]
    end = begin
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end:
            raise Refused(
                f"{where}: data_offsets of {tensor.name!r} leave a hole or overlap another tensor"
            )
        end = tensor.end
    if end != size:
        raise Refused(f"{where} has {size} bytes, its header promises {end}: fetch it again")
    return tensors


def _check_metadata(metadata: Any, where: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Refused(f"{where}: __metadata__ must be an object of strings")


def _parse(name: str, entry: Any, file: str, begin: int, where: str) -> TensorInfo:
    """One entry of a header, `begin` being the byte where the data starts."""
    field = f"{where}: tensor {name!r}"
    if not name.isprintable() or len(name) > MAX_NAME:
        raise Refused(f"{where}: tensor {name[:MAX_NAME]!r} has a name that no model uses")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Refused(f"{field} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise Refused(f"{field} has the unknown dtype {dtype!r}")
    if not _naturals(shape) or len(shape) > 64:
        raise Refused(f"{field}: shape must be a list of at most 64 sizes below 2^63")
    if not _naturals(offsets) or len(offsets) != 2:
        raise Refused(f"{field}: data_offsets must be a list of two positions below 2^63")
    if (offsets[1] - offsets[0]) * 8 != math.prod(shape) * BITS[dtype]:
        raise Refused(f"{field}: data_offsets do not span shape {shape} of {dtype}")
    return TensorInfo(name, file, dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)
