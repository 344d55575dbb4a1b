"""The model that Transformers makes of a config.json: no weights, no remote code, no network."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # both take seconds to import
    from transformers import PreTrainedModel

# Fields that name what to fetch, and one that costs memory and changes no name.
DROPPED = ("auto_map", "attn_implementation", "experts_implementation", "backbone", "num_labels")
LARGEST = 1 << 20  # no number of layers, and no size of a matrix, is larger
SPARE_MODULES = 10_000


def model_class(config: dict[str, Any]) -> "type[PreTrainedModel] | None":
    """Transformers' own class for `architectures`; None if it has none."""
    import transformers

    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    made = getattr(transformers, name, None) if isinstance(name, str) else None
    own = isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)
    return made if own else None


def empty_model(config: dict[str, Any], tensors: int) -> "PreTrainedModel | None":
    """The model of `architectures`, its parameters on the meta device.

    Args:
        config: of a checkpoint from strangers.
        tensors: how many the checkpoint has; a model of far more modules is not built.

    Returns:
        None if Transformers has no such class, or can't build it from this config.
    """
    import torch

    made = model_class(config)
    if made is None or made.config_class is None:
        return None
    try:
        settings = made.config_class.from_dict(_plain(config))
        settings._attn_implementation = settings._experts_implementation = "eager"
        with torch.device("meta"), _modules_at_most(8 * tensors + SPARE_MODULES):
            return made(settings)
    except Exception:  # no narrower class: a stranger's fields reach thousands of constructors
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:  # how Transformers writes an infinity
            return float(value["__float__"])
        return {key: _plain(item) for key, item in value.items() if key not in DROPPED}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return min(value, LARGEST) if type(value) is int else value


@contextmanager
def _modules_at_most(count: int) -> Iterator[None]:
    """Stop this thread from building a model that a hostile config.json makes endless."""
    from torch.nn.modules.module import register_module_module_registration_hook

    thread, left = get_ident(), count

    def counted(*_: Any) -> None:
        nonlocal left
        left -= get_ident() == thread
        if left < 0:
            raise ValueError(f"More than {count} modules")

    hook = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()
