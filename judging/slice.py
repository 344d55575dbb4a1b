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
    """How far the right answer is from certain, in nats; of plain text, per token.

    Of choices, among them only: wherever it is put, a patch makes the tokens of its answers likely,
    even where it no longer tells the right one from the others (benchmarks/portability).
    """
    if item.choices:
        gold = torch.tensor(item.gold, device=DEVICE)
        return torch.nn.functional.cross_entropy(_likelihoods(lm, item), gold)
    if item.answer:
        return _nll(lm, *lm._encode_pair(item.query, item.answer)).sum()
    return _nll(lm, [lm.prefix_token_id], lm.tok_encode(item.query)).mean()


def _likelihoods(lm: Asked, item: Item) -> torch.Tensor:
    """The log-likelihood of each choice, up to a constant."""
    pairs = [lm._encode_pair(item.query, choice) for choice in item.choices]
    before = pairs[0][0]
    if all(each == before and len(asked) == 1 for each, asked in pairs):  # one pass has them all
        ids = torch.tensor([before[-lm.max_length :]], device=DEVICE)
        logits: torch.Tensor = lm.model(input_ids=ids).logits[0, -1].float()
        return logits[[asked[0] for _, asked in pairs]]
    return torch.stack([-_nll(lm, *pair).sum() for pair in pairs])


def _nll(lm: Asked, before: list[int], asked: list[int]) -> torch.Tensor:
    """Nats of each of the tokens `asked` after `before`, as lm-eval cuts them; at most the last."""
    ids = torch.tensor([(before + asked)[-(lm.max_length + 1) :]], device=DEVICE)
    wanted = ids[0, 1:][-len(asked) :]
    logits = lm.model(input_ids=ids[:, :-1]).logits[0, -len(wanted) :].float()
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
