"""What was measured, raw, so that a later policy can judge it again without a model."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    FiniteFloat,
    PlainSerializer,
    model_validator,
)


def _split(value: Any) -> Any:
    return value.split() if isinstance(value, str) else value


def _join(values: list[float] | list[int]) -> str:
    """Every digit, so that what is read back is judged alike."""
    return " ".join(str(value).removesuffix(".0") for value in values)


# One line of a lock file, instead of one line a number. A result is finite: no comparison with NaN
# is true, so that one would pass every test.
Results = Annotated[list[FiniteFloat], BeforeValidator(_split), PlainSerializer(_join)]
Losses = Annotated[list[float], BeforeValidator(_split), PlainSerializer(_join)]
Numbers = Annotated[list[int], BeforeValidator(_split), PlainSerializer(_join)]
# JSON has no NaN.
AnyFloat = Annotated[
    float, PlainSerializer(lambda value: value if math.isfinite(value) else str(value))
]
NEEDED = ("before", "old", "new", "port")  # arms


class Measured(BaseModel):
    """One task's results per arm, item by item, on the `items` with these numbers of `total`.

    Accuracy is 0 or 1 an item; bits per byte are those of one text, and less is better. Some arms
    may have been judged on more items already.
    """

    task: str
    digest: str
    total: int
    metric: Literal["accuracy", "bits per byte"]
    items: Numbers
    results: dict[str, Results]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if missing := set(NEEDED) - set(self.results):
            raise ValueError(f"no results of {sorted(missing)}")
        if not self.items or min(map(len, self.results.values())) < len(self.items):
            raise ValueError("an arm has fewer results than there are items, or there are none")
        if self.metric == "accuracy" and not set().union(*self.results.values()) <= {0, 1}:
            raise ValueError("an accuracy is 0 or 1 an item")
        return self


class Slice(BaseModel):
    """Loss on a few items along `W_new + s dW`: nats per answer, one row an item, a column a scale.

    `slope` is <-grad, dW> at s = 0, mean over items: above 0, the first step helps.
    """

    scales: list[float]
    losses: list[Losses]
    slope: AnyFloat


class Probe(BaseModel):
    """How far the merged checkpoint's logits are from those of base + adapter.

    Root mean square of the difference over that of the (centred) logits, and the `bound`.
    """

    difference: AnyFloat
    bound: float


class Evidence(BaseModel):
    """All that is known of one port. `own` is the patch's task; `looks` were planned, `look` taken.

    `faults` says what of the artefact is not as the new base has it; `forecast` is
    `porting.forecast`'s, as plain data; `engine` names what computed, `device` where.
    """

    engine: str = ""
    device: str = ""
    own: Measured | None = None
    guard: list[Measured] = []
    looks: Annotated[int, Field(ge=1)] = 1
    look: Annotated[int, Field(ge=1)] = 1
    scale: float = 1.0
    slice: Slice | None = None
    probe: Probe | None = None
    faults: list[str] = []
    forecast: dict[str, Any] | None = None
