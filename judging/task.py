"""What is asked of a model: items, the prompt they stand in, and what counts as right.

The same patch hurts under another prompt than its own, so `eval/portllm-eval.json` in the patch's
repo names both. It is plain data: nothing in it is executed and no template language is read.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from judging.spec import (
    KINDS,
    MOST_LABELS,
    NUMBER,
    AnySpec,
    Choice,
    ChoiceOfItem,
    Generation,
    HubFile,
    Item,
    Named,
    Text,
    first_fault,
    value_text,
)
from porting import Source
from porting.errors import Refused

SPEC = "eval/portllm-eval.json"
LARGEST = 16 * 1024 * 1024
SLICED = 32  # items, the first ones, on which the loss along a patch is measured
Kind = Literal["choice", "generation", "text", "lm-eval"]


class Task(BaseModel):
    """A task, ready to be scored. Of `kind` lm-eval, the items are found when it runs.

    `items` are in a fixed random order, so that the first n are a fair sample of them.
    """

    name: str
    kind: Kind
    items: list[Item]
    digest: str
    spec: dict[str, Any]

    @property
    def metric(self) -> Literal["accuracy", "bits per byte"]:
        return "bits per byte" if self.kind == "text" else "accuracy"

    def record(self) -> dict[str, Any]:
        """What the registry keeps of it."""
        return {**self.spec, "count": len(self.items) or None, "digest": self.digest}


def read_task(patch: Source, fetch: Callable[[HubFile], Source] | None = None) -> Task | None:
    """The task that `patch` brings, or None where it brings none.

    Args:
        fetch: gets items that lie in a data set on the Hub; without it they are refused.

    Raises Refused, naming the file and the line or field, where it does not parse.
    """
    if SPEC not in patch.files():
        return None
    raw, spec = _spec(patch)
    if isinstance(spec, Named):
        return make_task(spec, [], raw)
    if isinstance(spec.items, HubFile):
        if fetch is None:
            raise Refused(f"{patch.name}: {SPEC} names items on the Hub, which were not fetched.")
        source, file = fetch(spec.items), spec.items.file
    else:
        source, file = patch, f"eval/{spec.items}"
    content = _read(source, file, SPEC)
    return make_task(
        spec, read_items(content, spec, f"{source.name}: {file}"), raw + b"\0" + content
    )


def read_spec(patch: Source) -> AnySpec | None:
    """How `patch` wants to be asked, without the items; refused as by `read_task`."""
    return _spec(patch)[1] if SPEC in patch.files() else None


def _spec(patch: Source) -> tuple[bytes, AnySpec]:
    raw = _read(patch, SPEC, SPEC)
    return raw, parse_spec(raw, f"{patch.name}: {SPEC}")


def make_task(spec: AnySpec, items: list[Item], content: bytes) -> Task:
    digest = hashlib.sha256(content).hexdigest()
    ordered = sorted(items, key=lambda item: _draw(digest, item.number))
    fields = spec.model_dump(exclude_none=True)
    return Task(name=spec.name, kind=spec.kind, items=ordered, digest=digest, spec=fields)


def _draw(digest: str, number: int) -> bytes:
    return hashlib.sha256(f"{digest} {number}".encode()).digest()


def order(digest: str, total: int) -> list[int]:
    """The item numbers 1 to `total` in the order in which they are asked."""
    return sorted(range(1, total + 1), key=lambda number: _draw(digest, number))


def parse_spec(raw: bytes, where: str) -> AnySpec:
    """The spec behind these bytes. Raises Refused, naming the field."""
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise Refused(f"{where} is no JSON object.")
    model: type[AnySpec] = next((model for key, model in KINDS.items() if key in fields), Choice)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise Refused(f"{where}: {first_fault(error)}.") from error


def read_items(content: bytes, spec: AnySpec, where: str) -> list[Item]:
    """The items in JSON Lines. Raises Refused, naming the line: bad, empty or there twice."""
    items: list[Item] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        item = _item(line, len(items) + 1, spec, f"{where}: line {number}")
        first = seen.setdefault(f"{item.query}\0{item.choices}", number)
        if first != number:
            raise Refused(f"{where}: line {number} is the same item as line {first}.")
        items.append(item)
    if not items:
        raise Refused(f"{where} holds no items.")
    return items


def _item(line: bytes, number: int, spec: AnySpec, where: str) -> Item:
    try:
        fields = json.loads(line.decode())
        json.dumps(fields, ensure_ascii=False).encode()  # refuses half a character, as "\ud800"
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise Refused(f"{where} is no JSON object.")
    if isinstance(spec, Text):
        return Item(number=number, query=_field(fields, spec.text_field, where))
    assert not isinstance(spec, Named)
    query = spec.ask({name: _field(fields, name, where) for name in spec.input_fields})
    if isinstance(spec, Generation):
        answer = _field(fields, spec.answer_field, where)
        if spec.compare == "last-number" and not NUMBER.search(answer):
            raise Refused(f"{where}: field {spec.answer_field!r} holds no number to be the last.")
        return Item(number=number, query=query, answer=answer)
    choices, label = _choices(fields, spec, where), _field(fields, spec.label_field, where)
    if label not in choices:
        raise Refused(
            f"{where}: {label[:50]!r} is none of the labels ({', '.join(choices)[:200]})."
        )
    gold = list(choices).index(label)
    return Item(number=number, query=query, choices=list(choices.values()), gold=gold)


def _choices(fields: dict[str, Any], spec: Choice | ChoiceOfItem, where: str) -> dict[str, str]:
    """The texts to choose from, by label."""
    if isinstance(spec, Choice):
        return spec.labels
    found = fields.get(spec.choices_field)
    texts = [value_text(text) for text in found] if isinstance(found, list) else []
    spaced = [text if text[:1].isspace() else f" {text}" for text in texts]
    if not 2 <= len(texts) <= MOST_LABELS or len(set(spaced)) < len(texts) or not all(texts):
        raise Refused(
            f"{where}: field {spec.choices_field!r} is no list of 2 to {MOST_LABELS} different "
            "texts."
        )
    return {str(index): text for index, text in enumerate(spaced)}


def _field(fields: dict[str, Any], name: str, where: str) -> str:
    text = value_text(fields.get(name))
    if not text:
        raise Refused(f"{where}: field {name!r} is missing, empty or no text.")
    return text


def _read(source: Source, file: str, named_by: str) -> bytes:
    if file not in source.files():
        raise Refused(f"{source.name}: {named_by} names {file}, which does not exist.")
    size = source.files()[file].size
    if size > LARGEST:
        raise Refused(f"{source.name}: {file} has {size} bytes; at most {LARGEST} are read.")
    return source.read(file, 0, size)
