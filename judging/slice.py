"""Loss along `W_new + s dW` on a few items: is the whole patch the right amount of it?"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from judging.evidence import Slice
from judging.model import DEVICE, Loaded
from judging.score import Asked
from judging.spec import Item
from judging.task import SLICED, Task

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


def take_slice(loaded: Loaded, task: Task, report: Callable[[int, int], None]) -> Slice | None:
    """The slice on the task's first items; None where the patch is not `s` times a LoRA.

    Args:
        loaded: the new base with the patch attached.
    """
    layers = [module for module in loaded.model.modules() if isinstance(module, LoraLayer)]
    if task.kind == "lm-eval" or not layers or not _is_linear(loaded.model, layers):
        return None
    lm, items = Asked(loaded), task.items[:SLICED]
    losses, slopes = [], []
    for number, item in enumerate(items, start=1):
        with torch.no_grad():
            row = []
            for scale in SCALES:
                with _scaled(layers, scale):
                    row.append(float(_loss(lm, item)))
        losses.append(row)
        slopes.append(_slope(lm, layers, item))
        report(number, len(items))
    return Slice(scales=list(SCALES), losses=losses, slope=sum(slopes) / len(slopes))


def _is_linear(model: Any, layers: Sequence[LoraLayer]) -> bool:
    """Whether all that the patch does is proportional to its scaling."""
    if any(isinstance(module, AuxiliaryTrainingWrapper) for module in model.modules()):
        return False
    if any(config.bias != "none" for config in model.peft_config.values()):
        return False
    return not any(layer.lora_variant or any(layer.lora_bias.values()) for layer in layers)


@contextmanager
def _scaled(layers: Sequence[LoraLayer], scale: Any) -> Iterator[None]:
    kept = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        for name in layer.scaling:
            layer.scaling[name] = layer.scaling[name] * scale
    try:
        yield
    finally:
        for layer, scaling in zip(layers, kept, strict=True):
            layer.scaling.update(scaling)


def _slope(lm: Asked, layers: Sequence[LoraLayer], item: Item) -> float:
    """-d loss / ds at s = 0, which is <-grad, dW>: the scale itself is what is derived by."""
    scale = torch.zeros((), device=DEVICE, requires_grad=True)
    with torch.enable_grad(), _scaled(layers, scale):
        (derivative,) = torch.autograd.grad(_loss(lm, item), scale)
    return -float(derivative)


def _loss(lm: Asked, item: Item) -> torch.Tensor:
    """Negative log-likelihood of the right answer in nats; of plain text, per token.

    Of the tokens that lm-eval asks for, with the same before them; of a long text, the last ones.
    """
    answer = item.answer or (item.choices[item.gold] if item.choices else "")
    if answer:
        before, asked = lm._encode_pair(item.query, answer)
    else:
        before, asked = [lm.prefix_token_id], lm.tok_encode(item.query)
    ids = torch.tensor([(before + asked)[-(lm.max_length + 1) :]], device=DEVICE)
    wanted = ids[0, 1:][-len(asked) :]
    logits = lm.model(input_ids=ids[:, :-1]).logits[0, -len(wanted) :].float()
    losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    return losses.sum() if answer else losses.mean()
