"""The record of scores: what was judged is known, where all that it depends on is the same."""

import pytest

from bot.making import sandbox, validate
from judging.evidence import Evidence, Measured
from judging.spec import Item, Text
from judging.task import Task, make_task
from tests.judged import Judged
from tests.judged import judged as judged  # the fixture


def task(count: int) -> Task:
    items = [Item(number=number, query=f"text {number}") for number in range(1, count + 1)]
    return make_task(Text(name="x", items="x.jsonl", text_field="t"), items, b"")


def test_a_score_of_another_kind_of_device_is_none_of_ours(judged: Judged) -> None:
    asked = task(30)
    results = {arm: [1.5] * 30 for arm in ("before", "old", "new", "port")}
    measured = Measured(
        task="x", digest=asked.digest, total=30, metric="bits per byte",
        items=list(range(1, 31)), results=results,
    )  # fmt: skip
    on = {
        device: validate._Record(judged.context, [asked], 1600, 0, device)
        for device in ("cpu", "cuda")
    }
    on["cuda"].save(Evidence(own=measured), "old", "a" * 40, "b" * 40)
    assert on["cuda"].has_all(on["cuda"].known("a" * 40, "b" * 40))
    assert on["cpu"].known("a" * 40, "b" * 40)["known"] == {}


def test_the_device_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    validate._device.cache_clear()
    found = validate._device()
    assert found in ("cpu", "cuda")
    monkeypatch.setattr(sandbox, "run", None)
    assert validate._device() == found
