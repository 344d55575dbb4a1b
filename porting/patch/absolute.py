"""Values that a patch holds whole: copied to another base, they would undo its upgrade."""

import re
from typing import Any

from porting.base.layout import FLOATS, TensorInfo
from porting.errors import Refused
from porting.patch.updates import Absolute

PREFIX = "base_model.model."
TOKENS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta")
EMBEDDINGS = (
    "embed_tokens",
    "lm_head",
    "wte",
    "word_embeddings",
    "embed_in",
    "embed_out",
    "shared",
)


def read_absolute(
    name: str, tensor: TensorInfo, config: dict[str, Any], where: str, file: str
) -> Absolute:
    """The stored value behind a key that no kind of adapter claims.

    The field that brought it is one of `modules_to_save`, `trainable_token_indices`, `bias`, or
    `save_embedding_layers` (an option of PEFT's `save_pretrained`, not kept in the config).

    Raises:
        Refused: no field explains the key, so it belongs to nothing.
    """
    if not name.startswith(PREFIX) or tensor.dtype not in FLOATS or 0 in tensor.shape:
        raise Refused(f"{file}: {name!r} is not a tensor that PEFT saves; save the adapter again")
    rest = name.removeprefix(PREFIX)
    if match := TOKENS.fullmatch(rest):
        rows = _rows(match["module"], tensor, config, where)
        return Absolute(f"{match['module']}.weight", tensor, "trainable_token_indices", rows)
    target = rest.replace(".base_layer.", ".").replace(".ln_tuning_layers.", ".")
    module, _, parameter = target.rpartition(".")
    if _is_saved(module, config.get("modules_to_save") or []):
        field = "modules_to_save"
    elif parameter == "bias" and config.get("bias", "none") != "none":
        field = "bias"
    elif config.get("peft_type") == "LN_TUNING":
        field = "target_modules"
    elif module.rpartition(".")[2] in EMBEDDINGS and parameter == "weight":
        field = "save_embedding_layers"
    else:
        raise Refused(
            f"{file}: {name!r} is neither part of an update nor explained by modules_to_save, bias "
            f"or trainable_token_indices in {where}; save the adapter again with PEFT"
        )
    return Absolute(target, tensor, field)


def _is_saved(module: str, names: list[str]) -> bool:
    """Whether `module` or one it lies in ends with a name, which is how PEFT looks for them."""
    parts = module.split(".")
    outer = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(path.endswith(name) for path in outer for name in names)


def _rows(module: str, tensor: TensorInfo, config: dict[str, Any], where: str) -> tuple[int, ...]:
    """Which rows of the embedding `module` the file holds, in its order."""
    given = config.get("trainable_token_indices", config.get("token_indices"))
    if isinstance(given, dict):
        given = next((v for k, v in given.items() if module == k or module.endswith(f".{k}")), None)
    rows = given if isinstance(given, list) else []
    good = all(type(row) is int and row >= 0 for row in rows) and len(set(rows)) == len(rows)
    if not good or tensor.shape[:1] != (len(rows),) or len(tensor.shape) != 2:
        raise Refused(
            f"{where}: trainable_token_indices does not name the {tensor.shape[:1]} rows that "
            f"{tensor.name!r} holds; save the adapter again"
        )
    return tuple(rows)
