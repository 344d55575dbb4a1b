"""Bases whose weights are not numbers one can add to."""

from typing import Any

from porting.base.layout import Layout
from porting.source import Source

# Files that GPTQ and AWQ wrote before config.json had a field for it.
CONFIGS = ("quantize_config.json", "quant_config.json")
PACKED = (".qweight", ".weight_scale", ".weight_scale_inv", ".weight.absmax", ".weight.quant_map")


def is_quantised(base: Source, config: dict[str, Any], layout: Layout) -> bool:
    """Whether the base is kept in GPTQ, AWQ, bitsandbytes, FP8 or another packed form."""
    return (
        bool(config.get("quantization_config"))
        or any(file in base.files() for file in CONFIGS)
        or any(name.endswith(PACKED) for name in layout.tensors)
    )
