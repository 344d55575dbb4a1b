"""Where the tensors that a patch changes lie in the base that it was trained on."""

from porting.base.layout import FLOATS, TensorInfo, read_layout
from porting.mapping import Parameters, Touch, map_updates
from porting.source import Source, read_json


def counterparts(touched: tuple[Touch, ...], old: Source) -> tuple[TensorInfo | None, ...]:
    """For every touch the same values in `old`, from headers alone; None where it has none.

    Found as the patch itself finds them, so another prefix, a fused tensor or rows that the new
    base appended do not matter.

    Raises:
        Refused: the patch does not fit `old`, so it wasn't trained on it.
    """
    base = Parameters(read_layout(old, whole=False), read_json(old, "config.json"), old.name)
    updates = dict.fromkeys(touch.update for touch in touched)
    found = map_updates(tuple(update for update in updates if base.has(update)), base, None)
    places = {_key(touch): touch.tensor for touch in found}
    return tuple(_same(touch, places.get(_key(touch))) for touch in touched)


def _key(touch: Touch) -> tuple[str, int | None, int, str]:
    return touch.update.target, touch.expert, touch.first_row, type(touch.update).__name__


def _same(touch: Touch, place: TensorInfo | None) -> TensorInfo | None:
    fits = place is not None and place.shape == touch.tensor.shape and place.dtype in FLOATS
    return place if fits else None
