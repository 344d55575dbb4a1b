"""What a port has to prove before it is published. One per subscription; the defaults are ours."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from porting.errors import UsageError

Share = Annotated[float, Field(ge=0, le=1)]
Action = Literal["publish", "ask", "reject"]  # what a verdict says is to be done


class VerdictPolicy(BaseModel):
    """Every field has a default, so that `{}` is a policy. Unknown fields are refused.

    Accuracies and margins on them are shares of items (0.05 is 5 points); of plain text, margins
    are bits per byte.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Against the old base with the patch, the port may lose less than this on the patch's task.
    margin: Share = 0.05
    # Over the new base alone, it has to gain more than this.
    minimum_gain: Share = 0.0
    # On the guard set, the patch may cost the new base this much more than it cost the old one.
    guard_margin: Share = 0.10
    # The same, of plain text: bits per byte.
    guard_bits: Annotated[float, Field(ge=0, le=10)] = 0.05
    # 1 - confidence of the intervals, over all looks at the items together. Only one end of one
    # can make an answer wrong: half of this is the chance of that, for each question.
    alpha: Annotated[float, Field(ge=1e-6, le=0.5)] = 0.05
    # Items judged at the first look; while it is not clear, twice as many or all, to the most.
    first_items: Annotated[int, Field(ge=20)] = 200
    most_items: Annotated[int, Field(ge=20)] = 1600
    # What is done when it is still not clear, and when the new base alone already does as well.
    unclear: Action = "ask"
    not_needed: Action = "reject"
    # Whether anything is measured at all; if not, every port asks.
    evaluate: bool = True
    # The patch is added this many times; `auto` takes the scale that the loss asks for.
    scale: Literal["auto"] | Annotated[float, Field(gt=0, le=2)] = 1.0

    def looks(self, total: int) -> list[int]:
        """How many of `total` items are judged at each look, fixed before the first."""
        most, counts, count = min(total, self.most_items), [], self.first_items
        while 2 * count <= most:  # a look at few new items costs more certainty than it gives
            counts.append(count)
            count *= 2
        return [*counts, most]


def parse_policy(raw: str | bytes, where: str) -> VerdictPolicy:
    """Raises UsageError, naming the field, where `raw` is no policy."""
    try:
        return VerdictPolicy.model_validate_json(raw)
    except ValidationError as error:
        wrong = error.errors()
        field = wrong[0]["loc"][:1]
        # Of a field that may be one of two, there is a message for each.
        said = ", or ".join(each["msg"] for each in wrong if each["loc"][:1] == field)
        raise UsageError(f"{where}: {''.join(f'{name}: ' for name in field)}{said}.") from error
