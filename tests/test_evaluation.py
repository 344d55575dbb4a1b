"""The evaluation of a patch is data from a stranger: read literally, or refused by name."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.evaluation import LARGEST, SPEC, Evaluation, read_evaluation
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


def source(content: bytes | None = None, **changes: Any) -> Memory:
    spec = {key: value for key, value in (GOOD | changes).items() if value is not None}
    return Memory(
        {
            SPEC: json.dumps(spec).encode(),
            "eval/heldout.jsonl": lines(ITEMS) if content is None else content,
        }
    )


def read(memory: Memory) -> Evaluation:
    evaluation = read_evaluation(memory)
    assert evaluation is not None
    return evaluation


def test_a_good_one_is_read_whole() -> None:
    evaluation = read(source())
    assert evaluation.queries == [f"Ticket: {item['text']}\nTeam:" for item in ITEMS]
    assert evaluation.choices == [" billing", " shipping"] and evaluation.golds == [1, 0]
    record = evaluation.record()
    assert record["count"] == 2 and record["name"] == "tickets"
    assert json.loads(json.dumps(record)) == record
    assert evaluation.digest != read(source(prompt="{text}")).digest


def test_it_is_read_from_a_folder_and_absent_is_no_error(tmp_path: Path) -> None:
    assert read_evaluation(Folder(tmp_path)) is None
    (tmp_path / "eval").mkdir()
    for name, data in source().content.items():
        (tmp_path / name).write_bytes(data)
    assert read_evaluation(Folder(tmp_path)) == read(source())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"surprise": 1}, "surprise"),
        ({"doc_to_text": "{{ 7*7 }}"}, "doc_to_text"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "{text} {other}"}, "prompt uses ['other', 'text']"),
        ({"prompt": "no field"}, "prompt uses []"),
        ({"input_fields": ["text", "more"]}, "input_fields are ['text', 'more']"),
        ({"input_fields": []}, "input_fields"),
        ({"labels": {"only": " one"}}, "labels"),
        ({"labels": {f"l{i}": f" {i}" for i in range(101)}}, "labels"),
        ({"labels": {"billing": " billing", "shipping": ""}}, "labels.shipping"),
        ({"labels": ["billing", "shipping"]}, "labels"),
        ({"name": "Two Words"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"items": 7}, "items"),
    ],
)
def test_a_spec_that_is_wrong_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused, match=re.escape(f"me/patch@abc1234: {SPEC}")) as refusal:
        read_evaluation(source(**changes))
    assert field in str(refusal.value)


@pytest.mark.parametrize(
    "items",
    ["../secret.jsonl", "/etc/passwd", "a/b.jsonl", "..", ".hidden.jsonl", "", "a\\b.jsonl",
     "x.jsonl\n", "x.jsonl\0"],
)  # fmt: skip
def test_items_are_a_plain_name_beside_the_spec(items: str) -> None:
    memory = source()
    memory.content[SPEC] = json.dumps(GOOD | {"items": items}).encode()
    memory.content[f"eval/{items}"] = lines(ITEMS)
    with pytest.raises(Refused, match="items: "):
        read_evaluation(memory)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"name": "\\ud800"}']
)
def test_a_spec_that_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused, match=re.escape(SPEC)):
        read_evaluation(Memory({SPEC: raw}))


GOOD_LINE = lines(ITEMS[:1])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{text: 1}", "not JSON"),
        (b'{"text": "cut', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "\\ud800", "team": "billing"}', "not JSON"),
        (b"[1]", "no JSON object"),
        (b'{"team": "billing"}', "'text'"),
        (b'{"text": 5, "team": "billing"}', "'text'"),
        (b'{"text": "  ", "team": "billing"}', "'text'"),
        (b'{"text": "x"}', "'team'"),
        (b'{"text": "x", "team": null}', "'team'"),
        (b'{"text": "x", "team": "sales"}', "'sales' is none of the labels"),
    ],
)
def test_a_wrong_item_is_refused_by_line(line: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=r"heldout\.jsonl: line 3") as refusal:
        read_evaluation(source(GOOD_LINE + b"\n" + line + b"\n"))
    assert reason in str(refusal.value)


def test_no_items_items_twice_and_a_missing_file_are_refused() -> None:
    with pytest.raises(Refused, match=r"eval/heldout\.jsonl holds no items"):
        read_evaluation(source(b"\n \n"))
    with pytest.raises(Refused, match=r"holds an item 2 times: 'Ticket: Where"):
        read_evaluation(source(lines([*ITEMS, ITEMS[0] | {"team": "billing"}])))
    memory = source()
    del memory.content["eval/heldout.jsonl"]
    with pytest.raises(Refused, match=r"names eval/heldout\.jsonl, which does not exist"):
        read_evaluation(memory)


@pytest.mark.parametrize("file", [SPEC, "eval/heldout.jsonl"])
def test_a_file_that_is_too_large_is_not_even_read(file: str) -> None:
    memory = Memory(source().content, {file: LARGEST + 1})
    with pytest.raises(Refused, match=f"{re.escape(file)} has {LARGEST + 1} bytes"):
        read_evaluation(memory)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
TRICKS = st.sampled_from(
    ["{{ 7*7 }}", "{text.__class__}", "{text!r:>9}", "{0}", "{}", "{{", "}}", "{label}", "{text}",
     "{% for x in y %}", "${text}", "%s", r"\1 \g<0>", "<!-- portllm:end -->", "a\u2028b\x0bc\x85d"]
)  # fmt: skip


@given(text=st.one_of(TEXT, TRICKS, st.builds("{}{}".format, TEXT, TRICKS)), plain=st.booleans())
@settings(deadline=None)
def test_an_items_text_is_inserted_literally(text: str, plain: bool) -> None:
    memory = source(lines([{"text": text, "team": "billing"}], plain), prompt="A {text} B {text}.")
    assert read(memory).queries == [f"A {text} B {text}."]


@given(first=TRICKS, second=TRICKS)
@settings(deadline=None)
def test_the_text_of_one_field_never_pulls_in_another(first: str, second: str) -> None:
    fields = {"text": first, "label": second, "team": "billing"}
    memory = source(
        lines([fields]), prompt="{{{text}}} {label} {text.x}", input_fields=["text", "label"]
    )
    assert read(memory).queries == [f"{{{{{first}}}}} {second} {{text.x}}"]
