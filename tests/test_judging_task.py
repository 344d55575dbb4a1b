"""The task of a patch is data from a stranger: read literally, or refused by name."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judging.guard import guard
from judging.spec import HubFile
from judging.task import LARGEST, SPEC, Task, order, read_task
from porting import FileEntry, Folder
from porting.errors import Refused

GOOD: dict[str, Any] = {
    "name": "tickets",
    "items": "heldout.jsonl",
    "prompt": "Ticket: {text}\nTeam:",
    "input_fields": ["text"],
    "label_field": "team",
    "labels": {"billing": " billing", "shipping": " shipping"},
}
ITEMS: list[dict[str, Any]] = [
    {"text": "Where is my parcel?", "team": "shipping"},
    {"text": "I paid twice.", "team": "billing"},
]
NO_LABELS = {"labels": None, "label_field": None}
CHOICES = {"labels": None, "choices_field": "options", "label_field": "right"}
WRITTEN = NO_LABELS | {"answer_field": "answer", "compare": "text"}
TEXTS = {"name": "plain", "items": "heldout.jsonl", "text_field": "text"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ON_HUB = {"repo": "some/data", "revision": COMMIT, "file": "test/rows.jsonl"}


class Memory:
    """A `Source` in memory; `sizes` are what it claims, where that differs from the truth."""

    name = "me/patch@abc1234"

    def __init__(self, files: dict[str, bytes], sizes: dict[str, int] | None = None) -> None:
        self.content, self.sizes = files, sizes or {}

    def files(self) -> dict[str, FileEntry]:
        return {
            name: FileEntry(self.sizes.get(name, len(data)), hashlib.sha256(data).hexdigest())
            for name, data in self.content.items()
        }

    def read(self, file: str, start: int, end: int) -> bytes:
        return self.content[file][start:end]


def lines(items: list[dict[str, Any]], ascii_only: bool = True) -> bytes:
    return "".join(json.dumps(item, ensure_ascii=ascii_only) + "\n" for item in items).encode()


def of_spec(spec: dict[str, Any], content: bytes) -> Memory:
    return Memory({SPEC: json.dumps(spec).encode(), "eval/heldout.jsonl": content})


def source(content: bytes | None = None, **changes: Any) -> Memory:
    spec = {key: value for key, value in (GOOD | changes).items() if value is not None}
    return of_spec(spec, lines(ITEMS) if content is None else content)


def read(memory: Memory) -> Task:
    task = read_task(memory)
    assert task is not None
    task.items.sort(key=lambda item: item.number)  # as in the file
    return task


def test_a_good_one_is_read_whole() -> None:
    task = read(source())
    assert (task.name, task.kind, task.metric) == ("tickets", "choice", "accuracy")
    assert [item.query for item in task.items] == [f"Ticket: {i['text']}\nTeam:" for i in ITEMS]
    assert [item.choices for item in task.items] == [[" billing", " shipping"]] * 2
    assert [item.gold for item in task.items] == [1, 0]
    record = task.record()
    assert record["count"] == 2 and record.items() >= GOOD.items()
    assert json.loads(json.dumps(record)) == record
    assert Task.model_validate_json(task.model_dump_json()) == task
    assert task.digest != read(source(prompt="{text}")).digest


def test_it_is_read_from_a_folder_and_absent_is_no_error(tmp_path: Path) -> None:
    assert read_task(Folder(tmp_path)) is None
    (tmp_path / "eval").mkdir()
    for name, data in source().content.items():
        (tmp_path / name).write_bytes(data)
    assert read_task(Folder(tmp_path)) == read_task(source())


# The kinds


@pytest.mark.parametrize(
    ("labels", "values", "golds"),
    [
        ([" no", " yes"], [1, 0, "1"], [1, 0, 1]),
        ({"true": " yes", "false": " no"}, [True, False, "true"], [0, 1, 0]),
        ({"2": " two", "3.5": " more"}, [2, 3.5, "2"], [0, 1, 0]),
    ],
)
def test_labels_are_texts_numbers_or_booleans(
    labels: Any, values: list[Any], golds: list[int]
) -> None:
    items = [{"text": f"{n}", "team": value} for n, value in enumerate(values)]
    assert [item.gold for item in read(source(lines(items), labels=labels)).items] == golds


@pytest.mark.parametrize("value", [2, -1, True, 1.0, "yes", 10**400])
def test_a_label_out_of_range_is_refused_by_line(value: Any) -> None:
    items = [{"text": "a", "team": 0}, {"text": "b", "team": value}]
    with pytest.raises(Refused, match=r"line 2: '.+' is none of the labels \(0, 1\)"):
        read_task(source(lines(items), labels=[" no", " yes"]))


def test_numbers_and_booleans_stand_in_a_prompt_as_they_do_in_json() -> None:
    items = [{"text": text, "team": "billing"} for text in (5, 0, -2.5, True, False)]
    task = read(source(lines(items), prompt="{text}"))
    assert [item.query for item in task.items] == ["5", "0", "-2.5", "true", "false"]


def test_an_item_may_bring_its_own_choices() -> None:
    items = [
        {"text": "3 + 4", "options": [6, 7, "\n8"], "right": 1},
        {"text": "Rome?", "options": [" Italy", "Spain"], "right": "0"},
    ]
    task = read(source(lines(items), **CHOICES))
    assert [item.choices for item in task.items] == [[" 6", " 7", "\n8"], [" Italy", " Spain"]]
    assert [item.gold for item in task.items] == [1, 0] and task.kind == "choice"


@pytest.mark.parametrize(
    ("options", "right", "reason"),
    [
        (["one"], 0, "'options' is no list of 2 to 100 different texts"),
        (["one", "one"], 0, "'options' is no list"),
        (["one", " one"], 0, "'options' is no list"),
        (["one", ""], 0, "'options' is no list"),
        (["one", None], 0, "'options' is no list"),
        (["one", ["two"]], 0, "'options' is no list"),
        ([str(n) for n in range(101)], 0, "'options' is no list"),
        ("one, two", 0, "'options' is no list"),
        (None, 0, "'options' is no list"),
        (["one", "two"], 2, "'2' is none of the labels (0, 1)"),
        (["one", "two"], "two", "'two' is none of the labels (0, 1)"),
        (["one", "two"], None, "'right' is missing"),
    ],
)
def test_choices_that_can_not_be_told_apart_are_refused(
    options: Any, right: Any, reason: str
) -> None:
    items = [
        {"text": "a", "options": ["one", "two"], "right": 0},
        {"text": "b", "options": options, "right": right},
    ]
    with pytest.raises(Refused, match="line 2: ") as refusal:
        read_task(source(lines(items), **CHOICES))
    assert reason in str(refusal.value)


def test_an_answer_may_be_written() -> None:
    items = [{"text": "Say hi.", "answer": "Hi there"}, {"text": "3 + 4", "answer": 7}]
    task = read(source(lines(items), **WRITTEN))
    assert task.kind == "generation" and [i.answer for i in task.items] == ["Hi there", "7"]
    assert task.spec["max_tokens"] == 256 and task.spec["stop"] == ["\n\n"]
    numbers = WRITTEN | {"compare": "last-number", "max_tokens": 64, "stop": ["Q:"]}
    fine = [{"text": f"{n}", "answer": n} for n in (7, -1.5, "1,234", "6 x 12 = 72\n#### 72")]
    assert len(read(source(lines(fine), **numbers)).items) == 4
    with pytest.raises(Refused, match="line 1: field 'answer' holds no number"):
        read_task(source(lines(items), **numbers))
    with pytest.raises(Refused, match="line 1: field 'answer' is missing"):
        read_task(source(lines([{"text": "x", "answer": ""}]), **WRITTEN))


def test_plain_text_is_found_likely() -> None:
    items = [{"text": "Once upon a time.", "topic": 3}, {"text": "A { brace"}]
    task = read(of_spec(TEXTS, lines(items)))
    assert (task.kind, task.metric) == ("text", "bits per byte")
    assert [item.query for item in task.items] == ["Once upon a time.", "A { brace"]


def test_a_task_of_lm_eval_is_named() -> None:
    raw = json.dumps({"name": "arc", "lm_eval": "arc_easy"}).encode()
    task = read_task(Memory({SPEC: raw}))
    assert task is not None and task.kind == "lm-eval" and task.spec["lm_eval"] == "arc_easy"
    assert task.items == [] and task.digest == hashlib.sha256(raw).hexdigest()


def test_items_may_lie_on_the_hub_at_a_commit() -> None:
    memory, asked = source(items=ON_HUB), []
    rows = Memory({"test/rows.jsonl": lines(ITEMS)})
    rows.name = "some/data@0123456"

    def fetch(named: HubFile) -> Memory:
        asked.append(named.model_dump())
        return rows

    task = read_task(memory, fetch)
    assert task is not None and len(task.items) == 2 and asked == [ON_HUB]
    assert json.loads(json.dumps(task.record()))["items"] == ON_HUB
    with pytest.raises(Refused, match="items on the Hub, which were not fetched"):
        read_task(memory)
    rows.content = {"test/rows.jsonl": b"{"}
    with pytest.raises(Refused, match=r"some/data@0123456: test/rows\.jsonl: line 1 is not JSON"):
        read_task(memory, fetch)
    rows.content = {}
    with pytest.raises(Refused, match=r"names test/rows\.jsonl, which does not exist"):
        read_task(memory, fetch)


def test_the_guard_set_is_read_like_any_other() -> None:
    text, knowledge = guard()
    assert (text.kind, len(text.items)) == ("text", 40)
    assert (knowledge.kind, len(knowledge.items)) == ("choice", 200)
    assert guard() == [text, knowledge]


# The order


def many(count: int, name: str = "tickets") -> Task:
    items = [{"text": f"item {n}", "team": "billing"} for n in range(1, count + 1)]
    task = read_task(source(lines(items), name=name))
    assert task is not None
    return task


def test_items_are_asked_in_an_order_that_only_content_decides() -> None:
    task = many(400)
    numbers = [item.number for item in task.items]
    assert numbers == [item.number for item in many(400).items] == order(task.digest, 400)
    assert sorted(numbers) == list(range(1, 401))
    assert all(item.query == f"Ticket: item {item.number}\nTeam:" for item in task.items)
    assert numbers != [item.number for item in many(400, "other").items]
    # A fair sample: of the first 100, about a quarter is of each quarter of the file.
    assert all(10 < sum(low < n <= low + 100 for n in numbers[:100]) < 40 for low in (0, 100, 200))


# What is refused


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"surprise": 1}, "surprise: "),
        ({"doc_to_text": "{{ 7*7 }}"}, "doc_to_text: "),
        ({"prompt": None}, "prompt: "),
        ({"prompt": ""}, "prompt: "),
        ({"prompt": "\ud800{text}"}, "prompt: "),
        ({"prompt": "{text} {other}"}, "prompt uses ['other', 'text']"),
        ({"prompt": "no field"}, "prompt uses []"),
        ({"prompt": "{text} ```"}, "could not be shown on a card"),
        ({"input_fields": ["text", "more"]}, "input_fields are ['text', 'more']"),
        ({"input_fields": []}, "input_fields: "),
        ({"input_fields": "text"}, "input_fields: "),
        ({"labels": {"only": " one"}}, "labels: "),
        ({"labels": [" one"]}, "labels: "),
        ({"labels": [" one", 2]}, "labels.1: "),
        ({"labels": [" one", " one"]}, "two labels have the same text"),
        ({"labels": {"a": " one", "b": " one"}}, "two labels have the same text"),
        ({"labels": {f"l{i}": f" {i}" for i in range(101)}}, "labels: "),
        ({"labels": {"billing": " billing", "shipping": ""}}, "labels.shipping: "),
        ({"labels": "billing"}, "labels: "),
        ({"labels": None}, "labels: "),
        ({"label_field": None}, "label_field: "),
        ({"name": "Two Words"}, "name: has to be small letters"),
        ({"name": "a\n"}, "name: has to be small letters"),
        ({"items": 7}, "items: "),
        ({"items": None}, "items: "),
        ({"items": ["heldout.jsonl"]}, "items: "),
        ({"items": ON_HUB | {"revision": "main"}}, "items.revision: has to be a commit"),
        ({"items": ON_HUB | {"revision": COMMIT[:7]}}, "items.revision: has to be a commit"),
        ({"items": ON_HUB | {"repo": "../data"}}, "items.repo: has to be a data set"),
        ({"items": ON_HUB | {"repo": "data"}}, "items.repo: has to be a data set"),
        ({"items": ON_HUB | {"file": "rows.parquet"}}, "items.file: has to be a .jsonl file"),
        ({"items": ON_HUB | {"token": "x"}}, "items.token: "),
        ({"items": {"repo": "some/data", "revision": COMMIT}}, "items.file: "),
        (CHOICES | {"labels": [" a", " b"]}, "labels: "),
        (WRITTEN | {"compare": "regex"}, "compare: Input should be 'last-number' or 'text'"),
        (WRITTEN | {"compare": None}, "compare: "),
        (WRITTEN | {"max_tokens": 10**6}, "max_tokens: "),
        (WRITTEN | {"stop": ["x"] * 9}, "stop: "),
        ({"lm_eval": "../task"}, "lm_eval: has to be the name of a task in lm-eval"),
        ({"lm_eval": "arc_easy"}, "items: "),
        ({"text_field": "text"}, "prompt: "),
    ],
)
def test_a_spec_that_is_wrong_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused, match=re.escape(f"me/patch@abc1234: {SPEC}: ")) as refusal:
        read_task(source(**changes))
    said = str(refusal.value)
    assert field in said
    for noise in ("Value error", "constrained", "HubFile", "function-", "beside", "[type="):
        assert noise not in said.split(": ", 2)[2].replace("a file beside this one", "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from([*GOOD, *CHOICES, *WRITTEN, "text_field", "lm_eval", "stop", "\ud800"])


@given(changes=st.dictionaries(FIELDS, JSON, min_size=1, max_size=3), row=JSON)
@settings(deadline=None, max_examples=60)
def test_whatever_is_written_is_read_or_refused(changes: dict[str, Any], row: Any) -> None:
    memory = of_spec(GOOD | changes, json.dumps(row).encode())
    try:
        read_task(memory)
    except Refused as refusal:
        assert str(refusal).encode().startswith(b"me/patch@abc1234: eval/")


@pytest.mark.parametrize(
    "items",
    ["../secret.jsonl", "/etc/passwd", "a/b.jsonl", "..", ".hidden.jsonl", "", "a\\b.jsonl",
     "x.jsonl\n", "x.jsonl\0"],
)  # fmt: skip
def test_items_are_a_plain_name_beside_the_spec(items: str) -> None:
    memory = source(items=items)
    memory.content[f"eval/{items}"] = lines(ITEMS)
    with pytest.raises(Refused, match="items: has to be a file beside this one"):
        read_task(memory)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"name": "\\ud800"}']
)
def test_a_spec_that_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused, match=re.escape(SPEC)):
        read_task(Memory({SPEC: raw}))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{text: 1}", "not JSON"),
        (b'{"text": "cut', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "\\ud800", "team": "billing"}', "not JSON"),
        (b'{"text": "\xff", "team": "billing"}', "not JSON"),
        (b"[1]", "no JSON object"),
        (b'{"team": "billing"}', "'text'"),
        (b'{"text": ["x"], "team": "billing"}', "'text'"),
        (b'{"text": "  ", "team": "billing"}', "'text'"),
        (b'{"text": "x"}', "'team'"),
        (b'{"text": "x", "team": null}', "'team'"),
        (b'{"text": "x", "team": "sales"}', "'sales' is none of the labels"),
    ],
)
def test_a_wrong_item_is_refused_by_line(line: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=r"heldout\.jsonl: line 3") as refusal:
        read_task(source(lines(ITEMS[:1]) + b"\n" + line + b"\n"))
    assert reason in str(refusal.value)


def test_no_items_items_twice_and_a_missing_file_are_refused() -> None:
    with pytest.raises(Refused, match=r"eval/heldout\.jsonl holds no items"):
        read_task(source(b"\n \n"))
    twice = lines(ITEMS) + b"\n" + lines([ITEMS[0] | {"team": "billing", "more": 1}])
    with pytest.raises(Refused, match=r"heldout\.jsonl: line 4 is the same item as line 1\."):
        read_task(source(twice))
    memory = source()
    del memory.content["eval/heldout.jsonl"]
    with pytest.raises(Refused, match=r"names eval/heldout\.jsonl, which does not exist"):
        read_task(memory)


@pytest.mark.parametrize("file", [SPEC, "eval/heldout.jsonl"])
def test_a_file_that_is_too_large_is_not_even_read(file: str) -> None:
    memory = Memory(source().content, {file: LARGEST + 1})
    with pytest.raises(Refused, match=f"{re.escape(file)} has {LARGEST + 1} bytes"):
        read_task(memory)


# Nothing in it is code


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
TRICKS = st.sampled_from(
    ["{{ 7*7 }}", "{text.__class__}", "{text!r:>9}", "{0}", "{}", "{{", "}}", "{label}", "{text}",
     "{% for x in y %}", "${text}", "%s", r"\1 \g<0>", "<!-- portllm:end -->", "a\u2028b\x0bc\x85d"]
)  # fmt: skip


@given(text=st.one_of(TEXT, TRICKS, st.builds("{}{}".format, TEXT, TRICKS)), plain=st.booleans())
@settings(deadline=None)
def test_an_items_text_is_inserted_literally(text: str, plain: bool) -> None:
    memory = source(lines([{"text": text, "team": "billing"}], plain), prompt="A {text} B {text}.")
    assert [item.query for item in read(memory).items] == [f"A {text} B {text}."]


@given(first=TRICKS, second=TRICKS)
@settings(deadline=None)
def test_the_text_of_one_field_never_pulls_in_another(first: str, second: str) -> None:
    fields = {"text": first, "label": second, "team": "billing"}
    memory = source(
        lines([fields]), prompt="{{{text}}} {label} {text.x}", input_fields=["text", "label"]
    )
    assert [item.query for item in read(memory).items] == [f"{{{{{first}}}}} {second} {{text.x}}"]
