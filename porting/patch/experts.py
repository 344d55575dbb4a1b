"""PEFT's `target_parameters`: LoRA on parameters that are no linear layer's, such as experts."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from porting.base.parts import Part, unstacked
from porting.errors import Refused
from porting.patch.updates import LoraPair, Update

# PEFT nests the wrappers of one module in the order in which the module defines its parameters,
# the first one innermost. The names are those of Transformers' layers, in their order.
DEFINED = (
    "weight",
    "bias",
    "w1",
    "v1",
    "w2",
    "gate_proj",
    "gate_up_proj",
    "gate_up_proj_bias",
    "up_proj",
    "down_proj",
    "down_proj_bias",
)
# Layers that keep their weight as (in, out): nothing in a file tells how PEFT wrapped a square one.
CONV1D_LAYERS = ("c_attn", "q_attn", "c_proj", "c_fc")

Found = tuple[Update, tuple[Part, ...]]


def parameters_of(
    groups: list[tuple[str, str]], config: dict[str, Any], where: str
) -> dict[tuple[str, str], str]:
    """The parameter that each (module, nesting of `.base_layer`) of the file updates.

    As `BaseTuner._inject_parameters` chooses them. Modules of `target_modules` are left out: they
    have a LoRA on their weight.

    Raises:
        Refused: the config does not say which parameter it is.
    """
    targets = config.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise Refused(f"{where}: target_parameters must be a list of names")
    modules = config.get("target_modules")
    if isinstance(modules, str) and any("." not in name for name in targets):
        raise Refused(
            f"{where}: target_parameters {targets} and target_modules {modules[:80]!r} may mean "
            "the same module; write each parameter with its module, as in experts.gate_up_proj"
        )
    depths: dict[str, set[str]] = {}
    for module, nested in groups:
        depths.setdefault(module, set()).add(nested)
    found = {}
    for module, nestings in depths.items():
        if isinstance(modules, list) and any(_ends_with(module, str(name)) for name in modules):
            continue
        names = _names_of(module, sorted(set(targets)), len(nestings), where)
        for number, name in enumerate(reversed(names)):
            found[module, ".base_layer" * number] = name
    if unknown := [group for group in groups if group[1] and group not in found]:
        module, nested = unknown[0]
        raise Refused(
            f"{where}: target_parameters does not say what {module + nested!r} updates; save the "
            "adapter again"
        )
    return found


def _ends_with(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _names_of(module: str, targets: list[str], wrappers: int, where: str) -> list[str]:
    """The targeted parameters of a module in the order in which it defines them."""
    bare = {name for name in targets if "." not in name}
    named = {
        name.rpartition(".")[2]
        for name in targets
        if "." in name and _ends_with(module, name.rpartition(".")[0])
    }
    if not bare and not named:
        return []
    names = named if len(named) == wrappers else named | bare
    if len(names) != wrappers or (wrappers > 1 and not names <= {*DEFINED}):
        raise Refused(
            f"{where}: target_parameters gives {sorted(names)} for {module!r}, which has "
            f"{wrappers} LoRA pairs, and nothing says which is which; save the adapter again with "
            "each parameter written with its module, as in experts.gate_up_proj"
        )
    if "weight" in names and module.rpartition(".")[2] in CONV1D_LAYERS:
        raise Refused(
            f"{where}: target_parameters names the weight of {module!r}, which may be kept as "
            "(in, out); train it with target_modules"
        )
    return sorted(names, key=DEFINED.index) if wrappers > 1 else [*names]


def arranged(found: list[Found], base: str) -> list[Found]:
    """Cut stacks into experts, and say for every piece of a LoRA's matrix how it lies.

    Older releases of PEFT took every stack for (experts, in, out). Shapes tell which way an adapter
    has it; where a matrix is square, the other matrices of the same adapter do.

    Args:
        found: the updates, with the parts of the parameters that they target.

    Raises:
        Refused: the number of experts, or the shape of their matrices, is not that of the update.
    """
    cut = [(update, _experts(update, parts, base)) for update, parts in found]
    older = {
        way != parts[0].transposed
        for update, parts in cut
        if parts and parts[0].transposed is not None and (way := _way(update, parts)) is not None
    }
    return [(update, tuple(_turned(update, parts, older, base))) for update, parts in cut]


def _experts(update: Update, parts: tuple[Part, ...], base: str) -> tuple[Part, ...]:
    """The parts of every expert, in order; other parameters as they are."""
    if not isinstance(update, LoraPair) or len(update.a.shape) != 2 or not parts:
        return parts
    tensor = parts[0].tensor
    if parts[0].expert is None and len(tensor.shape) == 3 and 0 not in tensor.shape:
        views = unstacked(tensor)
        parts = tuple(replace(parts[0], tensor=v, expert=n) for n, v in enumerate(views))
    if parts[0].expert is None and update.experts == 1:
        return parts
    experts = {part.expert for part in parts}
    if experts != {*range(update.experts)}:
        held = f"{len(experts)} experts" if parts[0].expert is not None else "one matrix"
        raise Refused(
            f"{update.a.file}: {update.target!r} updates {update.experts} experts (A has shape "
            f"{update.a.shape}, rank {update.rank}), but {tensor.name!r} in {base} holds {held}; "
            "the base has changed its architecture, train the adapter again"
        )
    shapes = _shapes(parts)
    if len(shapes) > 1 or not shapes & {update.shape, update.shape[::-1]}:
        raise Refused(
            f"{update.a.file}: {update.target!r} updates matrices of shape {update.shape}, but "
            f"{tensor.name!r} in {base} holds {sorted(shapes)}; the base has changed its "
            "architecture, train the adapter again"
        )
    return parts


def _shapes(parts: tuple[Part, ...]) -> set[tuple[int, ...]]:
    """The shapes of the experts' matrices, their pieces one below the other as they lie."""
    rows: Counter[int | None] = Counter()
    for part in parts:
        rows[part.expert] += part.tensor.shape[0]
    columns = {part.tensor.shape[1:] for part in parts}
    return {(count, *rest) for count in rows.values() for rest in columns}


def _way(update: Update, parts: tuple[Part, ...]) -> bool | None:
    """Whether the pieces lie as (in, out); None for a square matrix, or no expert at all."""
    if not isinstance(update, LoraPair) or not parts or parts[0].expert is None:
        return None
    if update.shape == update.shape[::-1]:
        return None
    return update.shape not in _shapes(parts)


def _turned(update: Update, parts: tuple[Part, ...], older: set[bool], base: str) -> Iterator[Part]:
    if not isinstance(update, LoraPair) or not parts or parts[0].expert is None:
        yield from parts
        return
    way = _way(update, parts)
    if way is None and (parts[0].transposed is None or len(older) > 1):
        raise Refused(
            f"{update.a.file}: {update.target!r} updates square matrices of shape {update.shape}, "
            f"and nothing says whether {parts[0].tensor.name!r} in {base} holds them transposed; "
            "use a base that Transformers knows"
        )
    for part in parts:
        yield replace(part, transposed=part.transposed != (older == {True}) if way is None else way)
