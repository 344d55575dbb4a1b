"""What a patch does to a base, in the few forms that every kind of patch comes down to.

Update
 +- LoraPair   scale * B A is added
 +- Addend     scale * a stored tensor is added
 +- Absolute   a stored tensor is the new value; its difference to the old base is added
 +- Operator   PEFT's own code says what changes
"""

from dataclasses import dataclass
from typing import Literal

from porting.base.layout import TensorInfo

Meaning = Literal["additive", "initialised", "operator"]


@dataclass(frozen=True)
class LoraPair:
    """The update of one weight: `scale * B @ A`, A `(rank, in, ...)` and B `(out, rank)`.

    Where the weight is a stack of experts, A is `(experts * rank, in)` and B `(out, rank *
    experts)`, its columns ordered by rank and then by expert, as PEFT's `ParamWrapper` keeps them.

    Attributes:
        parameter: `weight`, or the parameter of an expert layer (PEFT's `target_parameters`).
        fan_in_fan_out: what the config says for the whole adapter; the plan decides by the shape.
        embedding: whether the weight is `(in, out)`, `in` being the vocabulary.
    """

    module: str
    a: TensorInfo
    b: TensorInfo
    rank: int
    scale: float
    fan_in_fan_out: bool = False
    embedding: bool = False
    parameter: str = "weight"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of `B @ A`: `(out, in, ...)`; of one expert if there are several."""
        return (self.b.shape[0], *self.a.shape[1:])

    @property
    def experts(self) -> int:
        return self.a.shape[0] // self.rank

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return (self.a, self.b)

    @property
    def target(self) -> str:
        """The name of the parameter it changes, without PEFT's prefix."""
        return f"{self.module}.{self.parameter}"


@dataclass(frozen=True)
class Addend:
    """`scale * value` is added to the parameter `target`, which has the shape of `value`."""

    target: str
    value: TensorInfo
    scale: float = 1.0

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return (self.value,)


@dataclass(frozen=True)
class Absolute:
    """`value` replaces `target` (or its `rows`): what is added is its difference to the old base.

    `field` is the field of the config that brought it, for messages.
    """

    target: str
    value: TensorInfo
    field: str
    rows: tuple[int, ...] | None = None

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return (self.value,)


@dataclass(frozen=True)
class Operator:
    """A change that PEFT computes, on a throw-away layer, from the tensors of one module.

    `additive` kinds give a delta whatever the base holds (class A); `initialised` ones are a LoRA
    that started from the old base's weight (class B); `operator` ones map a weight to another one
    (class C). `tensors` are the module's own and those that the whole adapter shares. `rank` and
    `scale` are those of a LoRA. An `optional` parameter, a bias, is one that the
    base's layer may not have.
    """

    module: str
    parameter: str
    tensors: tuple[TensorInfo, ...]
    meaning: Meaning
    rank: int | None = None
    scale: float = 1.0
    optional: bool = False

    @property
    def target(self) -> str:
        return f"{self.module}.{self.parameter}"


Update = LoraPair | Addend | Absolute | Operator
