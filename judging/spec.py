"""What `eval/portllm-eval.json` may hold: one of five kinds, told apart by their fields.

Unknown fields are refused.
"""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)

FIELD = re.compile(r"\{(\w+)\}")
# In a text; with its sign, unless that stands between two numbers.
NUMBER = re.compile(r"((?:(?<![0-9])-)?[0-9][0-9,]*(?:\.[0-9]+)?)")
PART = r"[A-Za-z0-9]+((\.|_{1,2}|-)[A-Za-z0-9]+)*"  # of a repo's id
MOST_LABELS = 100
Word = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,93}\.jsonl$")]


def value_text(value: Any) -> str:
    """A JSON value as it stands in a prompt: texts, numbers, booleans; nothing else has one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value).strip() and str(value)
    return ""


def _numbered(labels: Any) -> Any:
    """A list of labels is the same as numbers from 0 to them."""
    if not isinstance(labels, list):
        return labels
    return {str(number): text for number, text in enumerate(labels)}


class Item(BaseModel):
    """One question. `number` counts the items of the file from 1."""

    number: int
    query: str
    choices: list[str] = []
    gold: int = 0
    answer: str = ""


class HubFile(BaseModel):
    """Items in a data set on the Hub, at a commit: a name that moves would move the scores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: Annotated[str, StringConstraints(pattern=rf"^{PART}/{PART}$", max_length=193)]
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    file: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._/-]{0,199}\.jsonl$")]


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ClassVar[Literal["choice", "generation", "text", "lm-eval"]]

    name: Name


class _WithItems(Spec):
    items: Annotated[
        Annotated[FileName, Tag("beside")] | Annotated[HubFile, Tag("hub")],
        Discriminator(lambda items: "hub" if isinstance(items, dict | HubFile) else "beside"),
    ]


class _Asked(_WithItems):
    prompt: Word
    input_fields: Annotated[list[Word], Field(min_length=1)]

    @model_validator(mode="after")
    def _prompt_uses_its_fields(self) -> Self:
        used = set(FIELD.findall(self.prompt))
        if used != set(self.input_fields):
            raise ValueError(f"prompt uses {sorted(used)}, input_fields are {self.input_fields}")
        if "<!--" in self.prompt or "```" in self.prompt:
            raise ValueError("a prompt with <!-- or ``` could not be shown on a card")
        return self

    def ask(self, values: dict[str, str]) -> str:
        return FIELD.sub(lambda match: values[match[1]], self.prompt)


class Choice(_Asked):
    """The likeliest of the same labels for every item; `labels` by value, or by number from 0."""

    kind = "choice"

    label_field: Word
    labels: Annotated[
        dict[Word, Word], Field(min_length=2, max_length=MOST_LABELS), BeforeValidator(_numbered)
    ]

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(set(self.labels.values())) < len(self.labels):
            raise ValueError("two labels have the same text, so no score can tell them apart")
        return self


class ChoiceOfItem(_Asked):
    """The likeliest of the choices that each item lists; the label is the right one's number."""

    kind = "choice"

    label_field: Word
    choices_field: Word


class Generation(_Asked):
    """A text that the model writes; its end decides (`last-number`), or all of it (`text`)."""

    kind = "generation"

    answer_field: Word
    compare: Literal["last-number", "text"]
    max_tokens: Annotated[int, Field(ge=1, le=2048)] = 256
    stop: Annotated[list[Word], Field(max_length=8)] = ["\n\n"]


class Text(_WithItems):
    """Plain text, to be found likely."""

    kind = "text"

    text_field: Word


class Named(Spec):
    """A task of lm-eval, by its name there."""

    kind = "lm-eval"

    lm_eval: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]


AnySpec = Choice | ChoiceOfItem | Generation | Text | Named
KINDS: dict[str, type[AnySpec]] = {
    "lm_eval": Named,
    "text_field": Text,
    "answer_field": Generation,
    "choices_field": ChoiceOfItem,
}

# What a field is, where the pattern that it has to match would say it less well.
MEANT = {
    "name": "small letters, digits and -, at most 64",
    "items": "a file beside this one, such as heldout.jsonl, or its repo, revision and file",
    "repo": "a data set on the Hub, as namespace/name",
    "revision": "a commit, 40 digits and letters a to f: a branch would move",
    "file": "a .jsonl file in that data set",
    "lm_eval": "the name of a task in lm-eval",
}


def first_fault(error: ValidationError) -> str:
    """What is wrong first, with the name of its field, for somebody who never saw our code."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if part not in ("beside", "hub")]
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_pattern_mismatch" and parts[-1] in MEANT:
        said = f"has to be {MEANT[parts[-1]]}"
    return ": ".join([".".join(parts), said] if parts else [said])
