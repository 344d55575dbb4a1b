"""What the Hub takes as the metadata of a model card; it refuses a push with anything else."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, ValidationError

_one_or_more = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
_Text = Annotated[str, StringConstraints(min_length=1)]
_Texts = Annotated[list[_Text], _one_or_more]
_Repo = Annotated[str, StringConstraints(pattern=r"^[\w.-]+(/[\w.-]+)?$")]


class _Typed(BaseModel):
    type: _Text


class _DataSet(_Typed):
    name: _Text


class _Metric(_Typed):
    value: Any


class _Result(BaseModel):
    task: _Typed
    dataset: _DataSet
    metrics: list[_Metric]


class _Model(BaseModel):
    name: _Text
    results: list[_Result]


class _CardData(BaseModel):
    """Of every field only what is known to be refused; what is not named here is taken."""

    base_model: Annotated[list[_Repo], _one_or_more] = []
    base_model_relation: Literal["adapter", "merge", "quantized", "finetune"] = "finetune"
    license: _Texts = []
    language: _Texts = []
    datasets: _Texts = []
    tags: list[_Text] = []
    pipeline_tag: _Text = "other"
    library_name: _Text = "other"
    index: list[_Model] = Field([], alias="model-index")


def faults(data: dict[str, Any]) -> list[str]:
    """A sentence for each field that the Hub would refuse."""
    try:
        _CardData.model_validate(data)
    except ValidationError as error:
        return [f'"{_path(each["loc"])}": {each["msg"]}' for each in error.errors()]
    return []


def _path(location: tuple[int | str, ...]) -> str:
    """As `model-index[0].results[0].task`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")
