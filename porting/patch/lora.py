"""The tensors of a LoRA, named and shaped as PEFT 0.21 saves them."""

import math
import re
from collections.abc import Iterator
from typing import Any

from porting.base.layout import FLOATS, Layout, TensorInfo
from porting.errors import Refused
from porting.patch.experts import parameters_of
from porting.patch.patterns import Patterns
from porting.patch.updates import Addend, LoraPair, Operator, Update

KEY = re.compile(
    r"base_model\.model\.(?P<module>.+?)(?P<nested>(?:\.base_layer)*)\."
    r"(?P<part>lora_[AB]\.(?:weight|bias)|lora_embedding_[AB]|lora_magnitude_vector)"
)
SAFE_INITS = ("gaussian", "eva", "orthogonal")  # they leave the base's weights as they are
# Class B: PEFT can repeat them from the old base alone; the others need data, gradients or a seed.
REPEATABLE_INITS = ("pissa", "olora")
A_PARTS = ("lora_A.weight", "lora_embedding_A")
B_PARTS = ("lora_B.weight", "lora_embedding_B")
AGAIN = "save the adapter again"


def is_safe_init(init: Any) -> bool:
    """Whether training started from the base as it is, and not from a part taken out of it."""
    return init is None or isinstance(init, bool) or init in SAFE_INITS


def read_lora(
    config: dict[str, Any], layout: Layout, where: str, file: str
) -> tuple[list[Update], set[str]]:
    """The updates of a LoRA, rsLoRA, DoRA or PiSSA-like adapter, and the names of their tensors.

    Raises:
        Refused: half a pair, or shapes and ranks that contradict each other or the config.
    """
    groups: dict[tuple[str, str], dict[str, TensorInfo]] = {}
    for name, tensor in layout.tensors.items():
        if match := KEY.fullmatch(name):
            groups.setdefault((match["module"], match["nested"]), {})[match["part"]] = tensor
    parameters = parameters_of(list(groups), config, where)
    ranks = Patterns(config.get("rank_pattern") or {}, f"{where}: rank_pattern")
    alphas = Patterns(config.get("alpha_pattern") or {}, f"{where}: alpha_pattern")
    updates: list[Update] = []
    for (module, nested), parts in sorted(groups.items()):
        direct = parameters.get((module, nested))
        name = f"{module}.{direct}" if direct else module  # what PEFT matches the patterns with
        a, b = _halves(module, parts, file)
        if not direct:
            check_left_in(config, module, where)
        rank = _rank(ranks.get(name, config.get("r", 8)), a, b, bool(direct), where)
        pair = LoraPair(
            module=module,
            a=a,
            b=b,
            rank=rank,
            scale=_scale(rank, alphas.get(name, config.get("lora_alpha", 8)), config, where),
            fan_in_fan_out=bool(config.get("fan_in_fan_out")),
            embedding="lora_embedding_A" in parts,
            parameter=direct or "weight",
        )
        updates += _group(pair, parts, config, file)
    return updates, {tensor.name for parts in groups.values() for tensor in parts.values()}


def _group(
    pair: LoraPair, parts: dict[str, TensorInfo], config: dict[str, Any], file: str
) -> Iterator[Update]:
    tensors = tuple(parts.values())
    magnitude = "lora_magnitude_vector" in parts
    if magnitude != bool(config.get("use_dora")):
        raise Refused(
            f"{file}: use_dora of adapter_config.json and lora_magnitude_vector of {pair.module!r} "
            f"contradict each other; {AGAIN}"
        )
    if magnitude:
        yield Operator(pair.module, "weight", tensors, "operator", pair.rank, pair.scale)
    elif not is_safe_init(config.get("init_lora_weights", True)):
        if pair.embedding or pair.experts > 1 or pair.parameter != "weight":
            raise Refused(
                f"{file}: {pair.module!r} is no linear layer, so init_lora_weights "
                f"{config['init_lora_weights']!r} has no meaning there; {AGAIN}"
            )
        yield Operator(pair.module, "weight", tensors, "initialised", pair.rank, pair.scale)
    else:
        yield pair
    if bias := parts.get("lora_B.bias"):
        if not config.get("lora_bias") or bias.shape != pair.b.shape[:1]:
            raise Refused(f"{file}: {bias.name!r} is not the lora_bias of its pair; {AGAIN}")
        yield Addend(f"{pair.module}.bias", bias, pair.scale)


def _halves(module: str, parts: dict[str, TensorInfo], file: str) -> tuple[TensorInfo, TensorInfo]:
    a = [tensor for part, tensor in parts.items() if part in A_PARTS]
    b = [tensor for part, tensor in parts.items() if part in B_PARTS]
    if len(a) != 1 or len(b) != 1:
        have = sorted(tensor.name for tensor in parts.values())
        raise Refused(f"{file}: {have[0]!r} has no other half of its pair ({module!r}); {AGAIN}")
    for tensor in parts.values():
        if 0 in tensor.shape:
            raise Refused(
                f"{file}: {tensor.name!r} has shape {tensor.shape}, and is empty; {AGAIN}"
            )
        if tensor.dtype not in FLOATS:
            raise Refused(f"{file}: {tensor.name!r} has dtype {tensor.dtype}, not one of {FLOATS}")
    for tensor in (*a, *b):
        if len(tensor.shape) < 2:
            raise Refused(f"{file}: {tensor.name!r} has shape {tensor.shape}, not that of a matrix")
    if math.prod(b[0].shape[2:]) != 1:
        raise Refused(f"{file}: {b[0].name!r} has shape {b[0].shape}, not that of a 1x1 kernel")
    return a[0], b[0]


def _rank(rank: Any, a: TensorInfo, b: TensorInfo, direct: bool, where: str) -> int:
    held, also = a.shape[0], b.shape[1]
    whole = type(rank) is int and rank > 0 and held % rank == 0
    if not whole or held != also or (held != rank and not direct):
        raise Refused(
            f"{where}: r or rank_pattern gives {rank!r} for {a.name!r}, but A has shape {a.shape} "
            f"and B has shape {b.shape}; {AGAIN}"
        )
    return int(rank)


def _scale(rank: int, alpha: Any, config: dict[str, Any], where: str) -> float:
    """`alpha / r` (arXiv 2106.09685, 4.1), or `alpha / sqrt(r)` (arXiv 2312.03732)."""
    if type(alpha) not in (int, float) or not abs(alpha) <= 1e9:
        raise Refused(f"{where}: lora_alpha or alpha_pattern gives {alpha!r}, which is no scale")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def check_left_in(config: dict[str, Any], module: str, where: str) -> None:
    """Raises Refused where a field of the config keeps PEFT from adapting `module`."""
    if field := _left_out_by(config, module):
        raise Refused(
            f"{where}: {field} leaves out {module!r}, so PEFT would ignore its tensors; add it or "
            f"{AGAIN}"
        )


def _left_out_by(config: dict[str, Any], module: str) -> str | None:
    """The field that leaves `module` out. Expressions are not evaluated; PEFT writes none wrong."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if (
        isinstance(targets, list)
        and not config.get("ensure_weight_tying")
        and not _ends(module, targets)
    ):
        return "target_modules"
    if isinstance(excluded, list) and _ends(module, excluded):
        return "exclude_modules"
    layers = config.get("layers_to_transform")
    wanted = [layers] if isinstance(layers, int) else layers
    numbers = [int(part) for part in module.split(".") if part.isdecimal()]
    if wanted is not None and numbers and not set(numbers) & set(wanted):
        return "layers_to_transform"
    return None


def _ends(module: str, names: list[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
