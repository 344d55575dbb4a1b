"""The evaluation that a patch brings: which items, under which prompt, with which labels.

The same patch hurts under another prompt than its own, so `eval/portllm-eval.json` in the patch's
repo names them. It is plain data: nothing in it is executed and no template language is read.
"""

import hashlib
import json
import re
from collections import Counter
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from porting import Source
from porting.errors import Refused

SPEC = "eval/portllm-eval.json"
LARGEST = 16 * 1024 * 1024
FIELD = re.compile(r"\{(\w+)\}")
Text = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]


class EvaluationSpec(BaseModel):
    """What `portllm-eval.json` holds. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    items: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,93}\.jsonl$")]
    prompt: Text
    input_fields: Annotated[list[Text], Field(min_length=1)]
    label_field: Text
    labels: Annotated[dict[Text, Text], Field(min_length=2, max_length=100)]

    @model_validator(mode="after")
    def _prompt_uses_its_fields(self) -> Self:
        used = set(FIELD.findall(self.prompt))
        if used != set(self.input_fields):
            raise ValueError(f"prompt uses {sorted(used)}, input_fields are {self.input_fields}")
        if len(set(self.labels.values())) < len(self.labels):
            raise ValueError("two labels have the same text, so no score can tell them apart")
        if "<!--" in self.prompt or "```" in self.prompt:
            raise ValueError("a prompt with <!-- or ``` could not be shown on a card")
        return self


class Evaluation(BaseModel):
    """A spec and its items, ready to be scored: choices are scored after `query`, gold is right."""

    spec: EvaluationSpec
    queries: list[str]
    golds: list[int]
    digest: str

    @property
    def choices(self) -> list[str]:
        return list(self.spec.labels.values())

    def record(self) -> dict[str, Any]:
        """What the registry keeps of it."""
        return {**self.spec.model_dump(), "count": len(self.queries), "digest": self.digest}


def read_evaluation(patch: Source) -> Evaluation | None:
    """The evaluation in `patch`, or None where it brings none.

    Raises Refused, naming the file and the line or field, where it does not parse.
    """
    if SPEC not in patch.files():
        return None
    where = f"{patch.name}: {SPEC}"
    raw = _read(patch, SPEC)
    try:
        spec = EvaluationSpec.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise Refused(f"{where}: {field}: {first['msg']}.") from error
    path = f"eval/{spec.items}"
    content = _read(patch, path)
    labels = list(spec.labels)
    queries, golds = [], []
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n"), start=1):
        if not line.strip():
            continue
        query, label = _item(line, spec, f"{patch.name}: {path}: line {number}")
        queries.append(query)
        golds.append(labels.index(label))
    if not queries:
        raise Refused(f"{patch.name}: {path} holds no items.")
    query, times = Counter(queries).most_common(1)[0]
    if times > 1:
        raise Refused(f"{patch.name}: {path} holds an item {times} times: {query[:80]!r}.")
    digest = hashlib.sha256(raw + b"\0" + content).hexdigest()
    return Evaluation(spec=spec, queries=queries, golds=golds, digest=digest)


def _item(line: str, spec: EvaluationSpec, where: str) -> tuple[str, str]:
    try:
        item = json.loads(line)
        json.dumps(item, ensure_ascii=False).encode()  # refuses half a character, as "\ud800"
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where} is not JSON: {error}.") from error
    if not isinstance(item, dict):
        raise Refused(f"{where} is no JSON object.")
    for field in (*spec.input_fields, spec.label_field):
        if not isinstance(item.get(field), str) or not item[field].strip():
            raise Refused(f"{where}: field {field!r} is missing, empty or no text.")
    if item[spec.label_field] not in spec.labels:
        raise Refused(f"{where}: {item[spec.label_field]!r} is none of the labels.")
    return FIELD.sub(lambda match: item[match[1]], spec.prompt), item[spec.label_field]


def _read(patch: Source, file: str) -> bytes:
    if file not in patch.files():
        raise Refused(f"{patch.name}: {SPEC} names {file}, which does not exist.")
    size = patch.files()[file].size
    if size > LARGEST:
        raise Refused(f"{patch.name}: {file} has {size} bytes; at most {LARGEST} are read.")
    return patch.read(file, 0, size)
