"""A head and an embedding that share one tensor, and updates that are meant for one of them."""

from dataclasses import replace

from porting.base.layout import TensorInfo
from porting.base.loaded import model_class
from porting.errors import Refused
from porting.mapping import Parameters, Touch, in_a_block, is_tied, vocabulary
from porting.patch.updates import Absolute, Addend


def untied_head(touches: tuple[Touch, ...], base: Parameters) -> TensorInfo | None:
    """The head that needs a tensor of its own, or None where the shared one can stay shared.

    Where the base has no such tensor, its start and end are those of the embedding, whose values
    it starts from. An adapter that is not merged changes the head alone, or the embedding alone;
    writing its update into the shared tensor would change both (peft#2018). Trained tokens change
    both, as PEFT does it.

    Raises:
        Refused: the two can't be told apart.
    """
    if not is_tied(base.config):
        return None
    heads = [touch for touch in touches if base.is_tied_head(touch.update)]
    shared = [touch for touch in touches if _is_embedding(touch, base) and touch not in heads]
    whole = [touch for touch in shared if not _is_rows(touch)]
    if not heads and not whole:
        return None
    if len({touch.tensor.name for touch in heads}) > 1:
        raise Refused(
            f"config.json in {base.base}: {heads[0].tensor.name!r} and {heads[-1].tensor.name!r} "
            "share one tensor, and the patch updates both; ask for an adapter"
        )
    name = heads[0].tensor.name if heads else _head_beside(whole, base)
    if name is None:
        return None
    if len(shared) > len(whole):
        raise Refused(
            f"config.json in {base.base}: tie_word_embeddings makes {name!r} and "
            f"{shared[0].tensor.name!r} one tensor, and the patch both trains tokens and updates "
            "one of the two; ask for an adapter"
        )
    if name in base.layout.tensors:
        return base.layout.tensors[name]
    source = base.layout.tensors[whole[0].tensor.name] if whole else base.embedding(heads[0].update)
    return replace(source, name=name)


def _is_rows(touch: Touch) -> bool:
    return isinstance(touch.update, Absolute) and touch.update.rows is not None


def _is_embedding(touch: Touch, base: Parameters) -> bool:
    whole = base.layout.tensors.get(touch.tensor.name)
    return (
        whole is not None
        and not isinstance(touch.update, Addend)  # of a full delta, made where the two were one
        and not in_a_block(touch.update)
        and len(whole.shape) == 2
        and whole.shape[0] == vocabulary(base.config)
    )


def _head_beside(touches: list[Touch], base: Parameters) -> str | None:
    """The head that Transformers ties to one of the updated tensors, or that is one of them."""
    model = model_class(base.config)  # imports Transformers: only patches on embeddings pay
    tied = getattr(model, "_tied_weights_keys", None)
    if model is None or not isinstance(tied, dict | None):
        raise Refused(
            f"config.json in {base.base}: architectures is not one of Transformers' own models, so "
            f"nobody can tell what is tied to {touches[0].update.target!r}; ask for an adapter"
        )
    targets = {touch.update.target for touch in touches}
    heads = [head for head, source in (tied or {}).items() if {head, source} & targets]
    if len(heads) > 1:
        raise Refused(
            f"config.json in {base.base}: tie_word_embeddings ties {heads} to {sorted(targets)}, "
            "which can't be told apart in one port; ask for an adapter"
        )
    return heads[0] if heads else None
