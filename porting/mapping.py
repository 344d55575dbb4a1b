"""Which tensor of a base every update changes, found by name and proven by shape."""

import difflib
from dataclasses import dataclass, replace
from typing import Any

from porting.base.conversions import Loaded
from porting.base.layout import FLOATS, Layout, TensorInfo
from porting.base.parts import Part
from porting.errors import Refused
from porting.patch.experts import CONV1D_LAYERS, arranged
from porting.patch.updates import Absolute, Addend, LoraPair, Operator, Update

# Model types with CONV1D_LAYERS, whose weight is (in, out). Elsewhere the shape decides, and for
# square weights the adapter's own config.
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


@dataclass(frozen=True)
class Touch:
    """One tensor of the base, or a range of its rows, and the update it gets.

    Attributes:
        tensor: what changes; a range of rows or one expert's matrix has its own start and end.
        transposed: whether the update's own matrix is `(columns, rows)`.
        first_row: the row of the update's matrix that the first row of `tensor` gets.
        expert: which expert of the update this is.
        old: the same tensor of the old base, for updates that only it gives a meaning.
    """

    tensor: TensorInfo
    update: Update
    transposed: bool = False
    first_row: int = 0
    expert: int | None = None
    old: TensorInfo | None = None


class Parameters:
    """The parameters of one base by the names they have as modules, as PEFT names them."""

    def __init__(self, layout: Layout, config: dict[str, Any], base: str) -> None:
        self.layout, self.config, self.base = layout, config, base
        self._loaded: Loaded | None = None
        self._prefixes: set[tuple[str, str]] = set()

    def find(self, update: Update) -> tuple[Part, ...]:
        """The parts of the parameter that `update` targets.

        A name may differ by one prefix, the same for the whole adapter, as when one side was saved
        with its head and the other without, or as Transformers renames tensors when it loads them.

        Returns:
            One part, or those that a checkpoint keeps apart; none for an optional parameter that
            this base does not have.

        Raises:
            Refused: no tensor, or more than one.
        """
        name = update.target
        if (found := self._lookup(name)) is not None:
            if not isinstance(update, LoraPair) and found[0].expert is not None:
                raise Refused(
                    f"{update.tensors[0].file}: {self.base} keeps {name!r} in {len(found)} pieces, "
                    "which only a LoRA can be moved to; save the patch as a LoRA"
                )
            return found
        if isinstance(update, Operator) and update.optional:
            return ()
        near = difflib.get_close_matches(name, self.layout.tensors, n=1, cutoff=0)
        raise Refused(
            f"{update.tensors[0].file}: {self.base} has no tensor for {name!r} (the nearest name "
            f"is {near[0] if near else 'none'}); name the base it was trained on"
        )

    def _lookup(self, name: str) -> tuple[Part, ...] | None:
        tensor = self.layout.tensors.get(name)
        if tensor is None or len(tensor.shape) == 3:  # only Transformers knows how experts lie
            if self._loaded is None:
                self._loaded = Loaded(self.layout, self.config)
            if parts := self._loaded.find(name):
                return parts
        if tensor:
            self._prefixes.add(("", ""))
            return (Part(tensor),)
        found = self._prefixed(name)
        return (found,) if found else None

    def has(self, update: Update) -> bool:
        """Whether this base has the parameter that `update` targets."""
        if self.is_tied_head(update):
            return True
        return self._lookup(update.target) is not None

    def _prefixed(self, name: str) -> Part | None:
        tensors = self.layout.tensors
        head, _, rest = name.partition(".")
        found = {
            (tensor[: -len(name)], ""): tensors[tensor]
            for tensor in tensors
            if tensor.endswith(f".{name}") and "." not in tensor[: -len(name) - 1]
        }
        if rest in tensors:
            found["", f"{head}."] = tensors[rest]
        if len(found) > 1:
            names = sorted(tensor.name for tensor in found.values())
            raise Refused(
                f"The patch's {name!r} may be any of {names} in {self.base}; rename it there"
            )
        for prefix, tensor in found.items():
            self._prefixes.add(prefix)
            return Part(tensor)
        return None

    def check_prefixes(self) -> None:
        if len(self._prefixes) > 1:
            raise Refused(
                f"The patch's modules differ from the tensors of {self.base} by several prefixes "
                f"({sorted(self._prefixes)}); name the base it was trained on"
            )

    def is_tied_head(self, update: Update) -> bool:
        """Whether `update` targets an output layer that is kept as the input embedding's tensor."""
        if not is_tied(self.config) or update.target in self.layout.tensors:
            return False
        return not in_a_block(update) and _rows(update) == vocabulary(self.config)

    def embedding(self, update: Update) -> TensorInfo:
        """The tensor that a tied head shares, found by its shape."""
        rows = _rows(update)
        found = [
            tensor
            for tensor in self.layout.tensors.values()
            if tensor.shape[:1] == (rows,) and len(tensor.shape) == 2
        ]
        if len(found) != 1:
            raise Refused(
                f"{update.tensors[0].file}: {update.target!r} is a tied head, but {self.base} has "
                f"{len(found)} tensors of {rows} rows; name the base it was trained on"
            )
        return found[0]


def in_a_block(update: Update) -> bool:
    """Whether `update` targets one of the numbered layers, and no embedding and no head."""
    return any(part.isdigit() for part in update.target.split("."))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the language model, of a model that has others too."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else {}


def is_tied(config: dict[str, Any]) -> bool:
    """Transformers ties the head and the embedding where the config does not say."""
    return bool(
        config.get("tie_word_embeddings", text_config(config).get("tie_word_embeddings", True))
    )


def vocabulary(config: dict[str, Any]) -> Any:
    return config.get("vocab_size", text_config(config).get("vocab_size"))


def _rows(update: Update) -> int | None:
    """How many rows the targeted parameter has; None where only PEFT can tell."""
    if isinstance(update, LoraPair):
        return update.a.shape[1] if update.embedding else update.b.shape[0]
    if isinstance(update, Operator):
        return None
    return update.value.shape[0]


def map_updates(
    updates: tuple[Update, ...], new: Parameters, old: Parameters | None
) -> tuple[Touch, ...]:
    """The touches of every update on the base `new`, `old` being the base it was trained on.

    Raises:
        Refused: an update without exactly one place of its shape, or two on one place.
    """
    found = [(update, _parts(update, new)) for update in updates]
    new.check_prefixes()
    touches = [
        _touch(update, part, new) for update, parts in arranged(found, new.base) for part in parts
    ]
    touches = _orient(touches, str(new.config.get("model_type")), new.base)
    _check_once(touches, new.base)
    return tuple(replace(touch, old=_old(touch, old)) for touch in touches) if old else (*touches,)


def _parts(update: Update, base: Parameters) -> tuple[Part, ...]:
    if base.is_tied_head(update):
        return (Part(replace(base.embedding(update), name=update.target)),)
    return base.find(update)


def _touch(update: Update, part: Part, base: Parameters) -> Touch:
    tensor, rows = part.tensor, _rows(update)
    grown = rows is not None and part.expert is None and tensor.shape[0] > rows > 0
    named = isinstance(update, Absolute) and update.rows is not None
    if (
        grown
        and not named
        and not in_a_block(update)
        and tensor.shape[0] == vocabulary(base.config)
    ):
        tensor = first_rows(tensor, rows or 0)
    turned = part.expert is not None and bool(part.transposed)
    return Touch(tensor, update, turned, first_row=part.first_row, expert=part.expert)


def first_rows(tensor: TensorInfo, rows: int) -> TensorInfo:
    """The first rows of a tensor, which new rows were appended to."""
    row_bytes = (tensor.end - tensor.start) // tensor.shape[0]
    return replace(tensor, shape=(rows, *tensor.shape[1:]), end=tensor.start + rows * row_bytes)


def _check_once(touches: list[Touch], base: str) -> None:
    open_: list[Touch] = []  # of the tensor at hand, those that reach further than its start
    for touch in sorted(touches, key=lambda t: (t.tensor.name, t.tensor.start)):
        name, start = touch.tensor.name, touch.tensor.start
        open_ = [t for t in open_ if t.tensor.name == name and t.tensor.end > start]
        if len(open_) > 1 or (open_ and not _stack(open_[0], touch)):
            raise Refused(
                f"{touch.update.tensors[0].file}: {open_[0].update.target!r} and "
                f"{touch.update.target!r} both touch {touch.tensor.name!r} in {base}; save the "
                "adapter again"
            )
        open_.append(touch)


def _stack(one: Touch, other: Touch) -> bool:
    """Whether PEFT itself applies both: a saved value, and an update on top of it.

    An operator would have to see the saved value, so with one the value must be the base's own,
    which PEFT saves beside the embeddings that it targets.
    """
    kinds = {type(one.update), type(other.update)}
    saved = [t.update.field for t in (one, other) if isinstance(t.update, Absolute)]
    return len(saved) == 1 and (Operator not in kinds or saved == ["save_embedding_layers"])


def _old(touch: Touch, old: Parameters) -> TensorInfo | None:
    """The tensor of the old base that `touch` is compared with; None where nothing is."""
    if isinstance(touch.update, LoraPair | Addend):
        return None
    if old.is_tied_head(touch.update):
        tensor = old.embedding(touch.update)
    else:
        [part] = old.find(touch.update)
        tensor = part.tensor
    expected = touch.tensor.shape
    if isinstance(touch.update, Absolute) and touch.update.rows is not None:
        return tensor
    if tensor.shape != expected:
        raise Refused(
            f"{touch.update.tensors[0].file}: {touch.update.target!r} has shape {expected}, and "
            f"{tensor.shape} in {old.base}; the old base must be the one it was trained on, and "
            "rows that a patch adds to a vocabulary can't be moved"
        )
    return tensor


def _orient(touches: list[Touch], model_type: str, base: str) -> list[Touch]:
    """Decide whether each tensor keeps (out, in) or (in, out), and check its shape."""
    pairs = [touch for touch in touches if isinstance(touch.update, LoraPair)]
    plain = [t.update for t in pairs if isinstance(t.update, LoraPair) and not t.update.embedding]
    ways = {pair.fan_in_fan_out for pair in plain if pair.experts == 1}
    for touch in pairs:
        shape, pair = touch.tensor.shape, touch.update
        if isinstance(pair, LoraPair) and _is_plain(touch) and pair.shape != pair.shape[::-1]:
            ways.add(shape != pair.shape)
    return [_checked(touch, model_type, ways, base) for touch in touches]


def _is_plain(touch: Touch) -> bool:
    """Whether the update is the whole matrix of one linear layer."""
    pair = touch.update
    return isinstance(pair, LoraPair) and not pair.embedding and touch.expert is None


def _checked(touch: Touch, model_type: str, ways: set[bool], base: str) -> Touch:
    update, shape = touch.update, touch.tensor.shape
    if isinstance(update, Operator):
        layer = update.module.rpartition(".")[2]
        turned = model_type in CONV1D_MODELS and layer in CONV1D_LAYERS
        return replace(touch, transposed=turned)
    if isinstance(update, Absolute | Addend):
        wanted = update.value.shape
        if isinstance(update, Absolute) and update.rows is not None:
            wanted = (shape[0], *wanted[1:])
            if max(update.rows, default=0) >= shape[0]:
                raise Refused(
                    f"adapter_config.json: trainable_token_indices names row {max(update.rows)}, "
                    f"but {touch.tensor.name!r} in {base} has {shape[0]} rows"
                )
        if shape != wanted:
            raise _misfit(touch, wanted, base)
        return touch
    if touch.expert is not None:
        return touch  # proven when the parts were arranged
    straight = update.shape
    if shape not in (straight, straight[::-1]):
        raise _misfit(touch, straight, base)
    return replace(touch, transposed=_turned(touch, update, model_type, ways))


def _misfit(touch: Touch, wanted: tuple[int, ...], base: str) -> Refused:
    return Refused(
        f"{touch.update.tensors[0].file}: {touch.update.target!r} updates a matrix of shape "
        f"{wanted}, but {touch.tensor.name!r} in {base} has shape {touch.tensor.shape}; the base "
        "has changed its architecture, train the adapter again"
    )


def _turned(touch: Touch, pair: LoraPair, model_type: str, ways: set[bool]) -> bool:
    if pair.embedding:
        return True
    if pair.shape != pair.shape[::-1]:
        return touch.tensor.shape != pair.shape
    if model_type in CONV1D_MODELS:
        return pair.module.rpartition(".")[2] in CONV1D_LAYERS
    if len(ways) > 1:
        raise Refused(
            f"adapter_config.json: fan_in_fan_out does not say how {touch.tensor.name!r} is kept, "
            "because other modules differ from it; train on one kind of layer only"
        )
    return pair.fan_in_fan_out


def check_mergeable(touches: tuple[Touch, ...], base: str) -> None:
    """Refuse what can be served as an adapter, but not written into the base's tensors."""
    for touch in touches:
        if touch.tensor.dtype not in FLOATS:
            raise Refused(
                f"{touch.tensor.file} in {base}: {touch.tensor.name!r} has dtype "
                f"{touch.tensor.dtype}, which can't be added to; ask for an adapter"
            )
