"""The guard set: a little of what every language model should keep. Our own words, CC0."""

from pathlib import Path

from judging.spec import ChoiceOfItem, Text
from judging.task import Task, make_task, read_items

HERE = Path(__file__).parent / "guard"
SPECS = (
    Text(name="guard-text", items="text.jsonl", text_field="text"),
    ChoiceOfItem(
        name="guard-knowledge",
        items="knowledge.jsonl",
        prompt="{question}",
        input_fields=["question"],
        choices_field="choices",
        label_field="answer",
    ),
)


def guard() -> list[Task]:
    """Plain text to be found likely, and general knowledge to choose from."""
    return [_task(spec) for spec in SPECS]


def _task(spec: Text | ChoiceOfItem) -> Task:
    assert isinstance(spec.items, str)
    content = (HERE / spec.items).read_bytes()
    return make_task(spec, read_items(content, spec, spec.items), content)
