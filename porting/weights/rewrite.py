"""What else changes when a head that was tied gets a tensor of its own: header, index, config."""

import json
from typing import Any

from porting.base.layout import Layout, TensorInfo
from porting.mapping import text_config
from porting.plan import Plan
from porting.source import Folder, Source, parse_json, read_json


def edited_files(plan: Plan, base: Source) -> dict[str, bytes]:
    """The small files of a merged model that are not the base's own, by name."""
    if plan.head is None:
        return {}
    config = read_json(base, "config.json")
    inner = text_config(config)
    (inner if inner and "tie_word_embeddings" not in config else config).update(
        tie_word_embeddings=False
    )
    changed = {"config.json": _json(config)}
    if plan.layout.index and plan.appended:
        index = read_json(base, plan.layout.index)
        index["weight_map"][plan.head.name] = plan.head.file
        metadata = index.get("metadata")
        if isinstance(metadata, dict) and type(metadata.get("total_size")) is int:
            metadata["total_size"] += plan.head.end - plan.head.start
        changed[plan.layout.index] = _json(index)
    return changed


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def header_with(head: TensorInfo, base: Folder, layout: Layout) -> bytes:
    """The header of the file that holds `head`, with `head` behind all its tensors.

    Padded with spaces to a multiple of 8 bytes, as the format's own writer does.
    """
    begin = min(tensor.start for tensor in layout.tensors.values() if tensor.file == head.file)
    header = parse_json(base.read(head.file, 8, begin), f"The header of {head.file}")
    end = base.files()[head.file].size - begin
    header[head.name] = {
        "dtype": head.dtype,
        "shape": list(head.shape),
        "data_offsets": [end, end + head.end - head.start],
    }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
