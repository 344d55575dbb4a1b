"""Can it be asked? What a task wants of a model, once its tokens are known; refused by name."""

from collections.abc import Iterable, Sequence
from itertools import islice, pairwise

from judging.spec import Item
from judging.task import Task
from porting.errors import Refused

SHOWN = 50  # characters of a text
Request = tuple[tuple[str, str] | None, list[int], list[int]]  # prompt, answer; their tokens


def check_answers(task: Task, requests: Iterable[Request], room: int, model: str) -> None:
    """Raises Refused where an answer has no tokens, or more than the `room` of the `model`."""
    for texts, _, answer in requests:
        if texts is None:  # lm-eval cuts plain text to fit
            continue
        prompt, text = texts
        if not answer:
            raise Refused(
                f"{task.name}: {_of(task)}: the answer {text[:SHOWN]!r} has no token of its own "
                f"after its prompt, which ends with {prompt[-SHOWN:]!r}."
            )
        if len(answer) > room:
            raise Refused(
                f"{task.name}: {_of(task)}: the answer {text[:SHOWN]!r} has {len(answer)} tokens, "
                f"and {model} reads {room} at most. Shorten it."
            )


def check_choices(task: Task, items: Iterable[Item], answers: Sequence[list[int]]) -> None:
    """Raises Refused where a choice can never win: its tokens begin with those of another one.

    Args:
        answers: the tokens of every choice, item by item.
    """
    tokens = iter(answers)
    for item in items:
        choices = sorted(zip(islice(tokens, len(item.choices)), item.choices, strict=True))
        for (short, one), (long, other) in pairwise(choices):
            if long[: len(short)] == short:
                raise Refused(
                    f"{task.name}: {_of(task)}: to this model {other[:SHOWN]!r} begins with all of "
                    f"{one[:SHOWN]!r}, so it can never be the likelier one (item {item.number}). "
                    "End each label alike, for example with a newline."
                )


def check_room(task: Task, most: int, room: int, model: str) -> None:
    """Raises Refused where `most` tokens, to be written, leave no room for a prompt."""
    if most >= room:
        field = "max_tokens" if task.kind == "generation" else "max_gen_toks"
        raise Refused(
            f"{task.name}: {field} is {most}, and {model} reads {room} tokens at most, with the "
            f"prompt. Ask for fewer than {room}."
        )


def _of(task: Task) -> str:
    """The field that the answers come from."""
    return "choices" if task.kind == "lm-eval" else task.spec.get("choices_field", "labels")
