"""Loss along `W_new + s dW` on a few items: is the whole patch the right amount of it?"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from judging.device import DEVICE
from judging.evidence import Slice
from judging.model import Loaded
from judging.score import Asked
from judging.spec import Item
from judging.task import SLICED, Task

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
MOST = 4096  # tokens of one item, again with each choice: more takes too long, or too much memory


def take_slice(
    loaded: Loaded,
    task: Task,
    report: Callable[[str, int, int], None],
    what: str = "loss along the patch, items",
) -> Slice | None:
    """The slice on the task's first items.

    None where the patch is not `s` times a LoRA, or an item has more than `MOST` tokens.

    Args:
        loaded: the new base with the patch attached.
    """
    layers = [module for module in loaded.model.modules() if isinstance(module, LoraLayer)]
    if task.kind == "lm-eval" or not layers or not _is_linear(loaded.model, layers):
        return None
    lm, items = Asked(loaded, task), task.items[:SLICED]
    if long := sum(_size(lm, item) > MOST for item in items):
        report(f"no loss along the patch: items of more than {MOST:,} tokens", long, long)
        return None
    losses, slopes = [], []
    for number, item in enumerate(items, start=1):
        with torch.no_grad():
            row = []
            for scale in SCALES:
                with _scaled(layers, scale):
                    row.append(float(_loss(lm, item)))
        losses.append(row)
        slopes.append(_slope(lm, layers, item))
        report(what, number, len(items))
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
    if not item.choices:
        return -_derivative(layers, partial(_loss, lm, item), None)
    passes = _passes(lm, item)
    with torch.no_grad(), _scaled(layers, 0.0):
        found = [one() for one in passes]
    # The loss by each likelihood is known, so that no two passes need be in memory at once.
    weights = torch.cat(found).softmax(0)
    weights[item.gold] -= 1
    slope, done = 0.0, 0
    for one, likelihoods in zip(passes, found, strict=True):
        slope -= _derivative(layers, one, weights[done : done + len(likelihoods)])
        done += len(likelihoods)
    return slope


def _derivative(
    layers: Sequence[LoraLayer], of: Callable[[], torch.Tensor], weights: torch.Tensor | None
) -> float:
    """Of `of()`, or of its sum by `weights`, by the scale."""
    scale = torch.zeros((), device=DEVICE, requires_grad=True)
    with torch.enable_grad(), _scaled(layers, scale):
        (found,) = torch.autograd.grad(of(), scale, weights)
    return float(found)


def _loss(lm: Asked, item: Item) -> torch.Tensor:
    """How far the right answer is from certain, in nats; of plain text, per token.

    Of choices, among them only: wherever it is put, a patch makes the tokens of its answers likely,
    even where it no longer tells the right one from the others (benchmarks/portability).
    """
    if item.choices:
        gold = torch.tensor(item.gold, device=DEVICE)
        likelihoods = torch.cat([one() for one in _passes(lm, item)])
        return torch.nn.functional.cross_entropy(likelihoods, gold)
    nats = _nll(lm, *_pairs(lm, item)[0])
    return nats.sum() if item.answer else nats.mean()


def _pairs(lm: Asked, item: Item) -> list[tuple[list[int], list[int]]]:
    """The tokens of the prompt and of each answer after it; of a text, of its prefix and itself."""
    if item.choices or item.answer:
        return [lm._encode_pair(item.query, answer) for answer in item.choices or [item.answer]]
    return [([lm.prefix_token_id], lm.tok_encode(item.query))]


def _are_next(pairs: Sequence[tuple[list[int], list[int]]]) -> bool:
    """Whether one pass has them all: each is a single token after the same ones."""
    return all(before == pairs[0][0] and len(asked) == 1 for before, asked in pairs)


def _size(lm: Asked, item: Item) -> int:
    """How many tokens the model reads for it."""
    pairs = _pairs(lm, item)
    sizes = [min(len(before) + len(asked), lm.max_length) for before, asked in pairs]
    return sizes[0] if _are_next(pairs) else sum(sizes)


def _passes(lm: Asked, item: Item) -> list[Callable[[], torch.Tensor]]:
    """Each gives the log-likelihoods of some choices, up to a constant; together, of all."""
    pairs = _pairs(lm, item)
    if _are_next(pairs):
        before, wanted = pairs[0][0], [token for _, [token] in pairs]
        return [lambda: _next(lm, before)[wanted]]
    return [partial(_likelihood, lm, *pair) for pair in pairs]


def _next(lm: Asked, before: list[int]) -> torch.Tensor:
    """How likely each token is after `before`, up to a constant."""
    ids = torch.tensor([before[-lm.max_length :]], device=DEVICE)
    logits: torch.Tensor = lm.model(input_ids=ids).logits[0, -1].float()
    return logits


def _likelihood(lm: Asked, before: list[int], asked: list[int]) -> torch.Tensor:
    return -_nll(lm, before, asked).sum(0, keepdim=True)


def _nll(lm: Asked, before: list[int], asked: list[int]) -> torch.Tensor:
    """Nats of each of the tokens `asked` after `before`, as lm-eval cuts them; at most the last."""
    ids = torch.tensor([(before + asked)[-(lm.max_length + 1) :]], device=DEVICE)
    wanted = ids[0, 1:][-len(asked) :]
    logits = lm.model(input_ids=ids[:, :-1]).logits[0, -len(wanted) :].float()
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
