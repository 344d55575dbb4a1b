"""Adapters and deltas, written: one tensor at a time, in the form that stock PEFT loads."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PREFIX = "base_model.model."


# Appends one tensor to the file: its name, dtype and shape, and the blocks of its bytes, in order.
Add = Callable[[str, str, Iterable[int], Iterable[bytes]], None]


@contextmanager
def tensor_file(path: Path, largest: Mapping[str, Iterable[int]]) -> Iterator[Add]:
    """Write a safetensors file whose header is known only at the end.

    Its place is kept free, and what it does not need of that is filled with spaces, which the
    format allows.

    Args:
        largest: every name that may be added, with a shape that is at least as large.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    room = len(
        _json(
            header | {name: _entry("BF16", shape, 2**63, 2**63) for name, shape in largest.items()}
        )
    )
    room += -room % 8
    with path.open("wb") as stream:
        stream.seek(8 + room)

        def add(name: str, dtype: str, shape: Iterable[int], blocks: Iterable[bytes]) -> None:
            start = stream.tell()
            for block in blocks:
                stream.write(block)
            header[name] = _entry(dtype, shape, start - 8 - room, stream.tell() - 8 - room)

        yield add
        stream.seek(0)
        stream.write(room.to_bytes(8, "little") + _json(header).ljust(room))


def _entry(dtype: str, shape: Iterable[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [*shape], "data_offsets": offsets}


def _json(header: dict[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def data(tensor: torch.Tensor) -> bytes:
    """The bytes of a float64 tensor, rounded to F32."""
    return bytes(tensor.float().contiguous().numpy().data)


def lora_config(ranks: Mapping[str, int], **fields: Any) -> dict[str, Any]:
    """The config of a LoRA of scale 1, with a rank of its own for every module.

    `rank_pattern` and `alpha_pattern` are regular expressions that match from the end of a name
    (`peft.utils.other.get_pattern_key`); here each is anchored, so that it matches one module.

    Args:
        ranks: by full module name, not empty.
        fields: what else is to be said, such as the base.
    """
    [(rank, _)] = Counter(ranks.values()).most_common(1)
    others = {f"^{re.escape(name)}": other for name, other in ranks.items() if other != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "revision": None,
        "inference_mode": True,
        "init_lora_weights": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "target_modules": sorted(ranks),
    } | fields
