"""Which tensor of a base every LoRA pair updates, found by name and proven by shape."""

import difflib
from dataclasses import dataclass, replace
from typing import Any

from porting.adapter import FLOATS, WEIGHTS, LoraPair
from porting.errors import Refused
from porting.layout import Layout, TensorInfo

# Model types whose linear layers are Conv1D, which keeps its weight as (in, out), and the names of
# these layers. Elsewhere the shape decides, and for square weights the adapter's own config.
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D_LAYERS = ("c_attn", "q_attn", "c_proj", "c_fc")


@dataclass(frozen=True)
class Touch:
    """One tensor `W` of the base and its update `scale * B @ A`, added as it is or transposed."""

    tensor: TensorInfo
    pair: LoraPair
    transposed: bool = False


def map_pairs(
    pairs: tuple[LoraPair, ...], layout: Layout, config: dict[str, Any], base: str
) -> tuple[Touch, ...]:
    """One `Touch` per pair, in the order of the pairs; `config` is the base's config.json.

    A module is found under its own name, or under a name that differs by one prefix, the same for
    the whole adapter, as when one side was saved with its head and the other without.

    Raises:
        Refused: a module without exactly one tensor of its shape, or two modules on one tensor.
    """
    touches: dict[str, Touch] = {}
    prefixes = set()
    for pair in pairs:
        if is_tied_head(pair, config):
            tensor = _embedding(pair, layout, base)
        else:
            tensor, prefix = _find(pair, layout, base)
            prefixes.add(prefix)
        if other := touches.get(tensor.name):
            raise Refused(
                f"{WEIGHTS}: {other.pair.module!r} and {pair.module!r} both touch {tensor.name!r}; "
                "save the adapter again"
            )
        touches[tensor.name] = Touch(tensor, pair)
    if len(prefixes) > 1:
        raise Refused(
            f"{WEIGHTS}: its modules differ from the tensors of {base} by several prefixes "
            f"({sorted(prefixes)}); name the base it was trained on"
        )
    return _orient(list(touches.values()), str(config.get("model_type")), base)


def is_tied_head(pair: LoraPair, config: dict[str, Any]) -> bool:
    """Whether `pair` updates an output layer that shares its tensor with the input embedding.

    Transformers ties the two where the config does not say.
    """
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    tied = config.get("tie_word_embeddings", inner.get("tie_word_embeddings", True))
    vocabulary = config.get("vocab_size", inner.get("vocab_size"))
    in_a_block = any(part.isdigit() for part in pair.module.split("."))
    return bool(tied) and pair.b.shape[0] == vocabulary and not in_a_block


def _embedding(pair: LoraPair, layout: Layout, base: str) -> TensorInfo:
    shape = (pair.b.shape[0], pair.a.shape[1])
    found = [tensor for tensor in layout.tensors.values() if tensor.shape == shape]
    if len(found) != 1:
        raise Refused(
            f"{WEIGHTS}: {pair.module!r} is a tied head, but {base} has {len(found)} tensors of "
            f"its shape {shape}; name the base it was trained on"
        )
    return found[0]


def _find(pair: LoraPair, layout: Layout, base: str) -> tuple[TensorInfo, tuple[str, str]]:
    """The tensor of a module, and the prefixes that (the base has more, the adapter has more)."""
    name = f"{pair.module}.weight"
    if name in layout.tensors:
        return layout.tensors[name], ("", "")
    head, _, rest = name.partition(".")
    found = {
        (tensor[: -len(name)], ""): layout.tensors[tensor]
        for tensor in layout.tensors
        if tensor.endswith(f".{name}") and "." not in tensor[: -len(name) - 1]
    }
    if rest in layout.tensors:
        found["", f"{head}."] = layout.tensors[rest]
    if not found:
        near = difflib.get_close_matches(name, layout.tensors, n=1, cutoff=0)
        raise Refused(
            f"{WEIGHTS}: {base} has no tensor for {pair.module!r} (the nearest name is "
            f"{near[0] if near else 'none'}); name the base it was trained on"
        )
    if len(found) > 1:
        names = sorted(tensor.name for tensor in found.values())
        raise Refused(f"{WEIGHTS}: {pair.module!r} may be any of {names} in {base}; rename it")
    [(prefix, info)] = found.items()
    return info, prefix


def _orient(touches: list[Touch], model_type: str, base: str) -> tuple[Touch, ...]:
    """Decide whether each tensor keeps (out, in) or (in, out), and check its shape."""
    ways = {touch.pair.fan_in_fan_out for touch in touches}
    for touch in touches:
        straight = (touch.pair.b.shape[0], touch.pair.a.shape[1])
        if touch.tensor.shape not in (straight, straight[::-1]):
            raise Refused(
                f"{WEIGHTS}: {touch.pair.module!r} updates a matrix of shape {straight}, but "
                f"{touch.tensor.name!r} in {base} has shape {touch.tensor.shape}; the base has "
                "changed its architecture, train the adapter again"
            )
        if straight[0] != straight[1]:
            ways.add(touch.tensor.shape != straight)
    return tuple(replace(touch, transposed=_turned(touch, model_type, ways)) for touch in touches)


def _turned(touch: Touch, model_type: str, ways: set[bool]) -> bool:
    rows, columns = touch.pair.b.shape[0], touch.pair.a.shape[1]
    if rows != columns:
        return touch.tensor.shape != (rows, columns)
    if model_type in CONV1D_MODELS:
        return touch.pair.module.rpartition(".")[2] in CONV1D_LAYERS
    if len(ways) > 1:
        raise Refused(
            f"adapter_config.json: fan_in_fan_out does not say how {touch.tensor.name!r} is kept, "
            "because other modules differ from it; train on one kind of layer only"
        )
    return touch.pair.fan_in_fan_out


def check_mergeable(touches: tuple[Touch, ...], config: dict[str, Any], base: str) -> None:
    """Refuse what can be served as an adapter, but not written into the base's tensors."""
    for touch in touches:
        if is_tied_head(touch.pair, config):
            raise Refused(
                f"config.json in {base}: tie_word_embeddings makes {touch.pair.module!r} and the "
                "embedding one tensor, so merging would change both; ask for an adapter"
            )
        if touch.tensor.dtype not in FLOATS:
            raise Refused(
                f"{touch.tensor.file} in {base}: {touch.tensor.name!r} has dtype "
                f"{touch.tensor.dtype}, which can't be added to; ask for an adapter"
            )
