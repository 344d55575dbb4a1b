"""Adapters of other kinds than LoRA, read from their config and header alone."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from porting.base.layout import FLOATS, Layout, TensorInfo
from porting.errors import Refused
from porting.patch.kind_table import KINDS, Kind, Site
from porting.patch.lora import check_left_in
from porting.patch.patterns import Patterns
from porting.patch.updates import Meaning, Operator, Update

__all__ = ["KINDS", "layer_fields", "read_kind"]

AGAIN = "save the adapter again"
PREFIX = "base_model.model."
COMMON = (
    "auto_mapping base_model_name_or_path bias exclude_modules fan_in_fan_out inference_mode "
    "init_weights layers_pattern layers_to_transform modules_to_save peft_type peft_version "
    "revision target_modules task_type"
)
INDICES = ("shira_indices", "supertuning_indices", "_topk_indices")
INTEGERS = ("U8", "I16", "I32", "I64")

# The largest sizes that a file may claim: PEFT allocates by them more than the file itself holds.
LIMITS = {
    "r": 1 << 14,
    "init_r": 1 << 12,
    "num_vectors": 1 << 14,
    "gralora_k": 64,
    "depth": 64,
    "num_cayley_neumann_terms": 64,
}


def read_kind(
    config: dict[str, Any], layout: Layout, where: str, file: str
) -> tuple[list[Update], set[str]]:
    """The updates of an adapter of one of `KINDS`, and the names of their tensors.

    Raises:
        Refused: a field that is not known, a module without all of its tensors, or sizes that
            contradict each other or the config.
    """
    kind = KINDS[config["peft_type"]]
    _check_fields(config, kind, where)
    shared = _shared(kind, layout, file)
    updates: list[Update] = []
    claimed = {tensor.name for tensor in shared}
    for module, own in sorted(_modules(kind, layout).items()):
        claimed |= {tensor.name for tensor in own.values()}
        _check_tensors(kind, module, own, config, where, file)
        if all(0 in tensor.shape for tensor in own.values()):
            continue  # AdaLoRA gave all of its budget to other modules
        tensors = (*own.values(), *shared)
        fields = layer_fields(config, module, tensors, where)
        meaning: Meaning = "additive" if kind.portability == "A" else "operator"
        for parameter in kind.parameters:
            if parameter == "bias" and fields.get("feedforward_modules"):
                continue  # it scales the input of the layer
            optional = parameter == "bias" and "weight" in kind.parameters
            updates.append(Operator(module, parameter, tensors, meaning, optional=optional))
    return updates, claimed


def layer_fields(
    config: Mapping[str, Any], module: str, tensors: Iterable[TensorInfo], where: str
) -> dict[str, Any]:
    """What PEFT's config must say to build this one module, from a config that is a stranger's.

    Raises:
        Refused: a field of a wrong type, too large, or not that of the tensors.
    """
    kind = KINDS[config["peft_type"]]
    shapes = {t.name.removeprefix(f"{PREFIX}{module}."): t.shape for t in tensors}
    stated = dict(config)
    for pattern in ("rank_pattern", *kind.patterns):
        values = config.get(pattern) or {}
        if not isinstance(values, dict):
            raise Refused(f"{where}: {pattern} must not be {values!r}; {AGAIN}")
        if field := kind.patterns.get(pattern):
            patterns = Patterns(values, f"{where}: {pattern}")
            stated[field] = patterns.get(module, config.get(field))
    found = {
        field: _typed(stated[field], wanted, f"{where}: {field}")
        for field, wanted in kind.fields.items()
        if stated.get(field) is not None
    }
    for field, size in kind.sizes.items():
        if (value := size(shapes)) is None and field in kind.fields:
            continue
        if stated.get(field) not in (None, value):
            raise Refused(
                f"{where}: {field} is {stated[field]!r}, but the tensors of {module!r} have "
                f"{value!r}; {AGAIN}"
            )
        found[field] = value
    found |= kind.derived(Site(config, module, shapes, where))
    for field, most in LIMITS.items():
        bounded = field == "r" and field in kind.fields  # by PEFT: it needs no memory, or little
        if (found.get(field) or 0) > most and not bounded:
            raise Refused(f"{where}: {field} is {found[field]}, more than {most}; train it smaller")
    return found


def _typed(value: Any, wanted: type, field: str) -> Any:
    numbers = (int, float) if wanted is float else (wanted,)
    bound = 1e9 if wanted is float else float(1 << 63)
    if type(value) not in numbers or (wanted in (int, float) and not abs(value) < bound):
        raise Refused(f"{field} must not be {value!r}; {AGAIN}")
    return value


def _check_fields(config: dict[str, Any], kind: Kind, where: str) -> None:
    known = {*f"{COMMON} {kind.unused}".split(), *kind.fields, *kind.sizes, *kind.patterns}
    for field, value in config.items():
        if value and field not in known:
            raise Refused(
                f"{where}: {field!r} is set and not known here, so it may change what the weights "
                "mean; save the adapter with a PEFT of 0.21 or before, or train it without"
            )


def _shared(kind: Kind, layout: Layout, file: str) -> list[TensorInfo]:
    found = [layout.tensors[name] for name in kind.shared if name in layout.tensors]
    if len(found) != len(kind.shared) and (found or "save_projection" not in kind.sizes):
        missing = next(name for name in kind.shared if name not in layout.tensors)
        raise Refused(f"{file}: {missing!r} is missing; {AGAIN}")
    for tensor in found:
        dimensions = kind.shared[tensor.name]
        if tensor.dtype not in FLOATS or 0 in tensor.shape or len(tensor.shape) != dimensions:
            raise Refused(
                f"{file}: {tensor.name!r} of {tensor.dtype} has shape {tensor.shape}; {AGAIN}"
            )
    return found


def _modules(kind: Kind, layout: Layout) -> dict[str, dict[str, TensorInfo]]:
    """The tensors of every module, by the ends of their names."""
    names = sorted({name for form in kind.forms for name in form})
    if not names:
        return {}
    parts = "|".join(re.escape(name).replace(r"\#", r"\d+") for name in names)
    key = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.(?P<part>{parts})")
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in layout.tensors.items():
        if match := key.fullmatch(name):
            found.setdefault(match["module"], {})[match["part"]] = tensor
    return found


def _check_tensors(
    kind: Kind,
    module: str,
    own: Mapping[str, TensorInfo],
    config: dict[str, Any],
    where: str,
    file: str,
) -> None:
    form = {re.sub(r"\.\d+\.", ".#.", part): len(tensor.shape) for part, tensor in own.items()}
    if form not in kind.forms:
        held = ", ".join(f"{part} of shape {tensor.shape}" for part, tensor in own.items())
        raise Refused(
            f"{file}: {module!r} has {held}, which are not the tensors that a linear layer of "
            f"{config['peft_type']} has; {AGAIN}"
        )
    whole = [tensor for tensor in own.values() if 0 not in tensor.shape]
    for part, tensor in own.items():
        integer = part.endswith(INDICES) and tensor.dtype in INTEGERS
        if (whole and tensor not in whole) or not (tensor.dtype in FLOATS or integer):
            raise Refused(
                f"{file}: {tensor.name!r} of {tensor.dtype} has shape {tensor.shape}; {AGAIN}"
            )
    check_left_in(config, module, where)
