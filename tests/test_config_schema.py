"""What portllm.yaml may say, and what is said of what it may not. No Hub is asked."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bot.cli import app
from bot.config.schema import FILE, KEYS, MOST, check, json_schema
from patch_cards.harmless import DEEPEST, LONGEST

DOCS = Path(__file__).parents[1] / "docs"
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


class Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def dumped(data: Any) -> bytes:
    return yaml.dump(data, Dumper=Plain, sort_keys=False).encode()


def faults(data: Any) -> list[str]:
    return [str(each) for each in check(dumped(data))[1]]


def test_the_published_schema_is_ours() -> None:
    published = json.loads((DOCS / "portllm.schema.json").read_text())
    assert published == json_schema(), "portllm config schema > docs/portllm.schema.json"
    jsonschema.Draft202012Validator.check_schema(published)


def test_the_page_names_every_key_and_its_examples_are_sound() -> None:
    page = (DOCS / "portllm-yaml.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == KEYS[""]
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(examples) > 1
    for example in examples:
        entries, wrong = check(example.encode())
        assert entries and not wrong
        assert VALIDATOR.is_valid(yaml.safe_load(example))


# For each key, values that may stand there and values that may not, by the schema alone.
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "follow": (["org/base", "org/base@v*", "tree:org/base", "org/M-v*"], [3, None, "", "x" * 301]),
    "to": (["me/ported", None, "me/on-{name}"], [7, ["me/x"]]),
    "as": (["adapter", "merged", "both"], ["merge", None, 1]),
    "by": (["commit", "branch", "request"], ["pr", True]),
    "base": (["org/base@abc1234", None], [1.5]),
    "policy": (["reapply", "freeze", None], ["thaw"]),
    "verdict": (
        [{}, None, {"margin": 0.1, "scale": "auto"}, {"first_items": 20, "unclear": "reject"}],
        [{"margn": 0.1}, {"margin": 2}, {"first_items": 1}, {"margin": "0.1"}, [], 3],
    ),
    "eval": ([True, False, None], ["maybe", 1]),
    "schedule": (["* 22 * * *", "* * * * mon-fri", None], [22]),
    "minimum_release_age": (["24h", "3d"], ["24", "1 h", "24h\n", 24, None]),
    "group": (["night", None], [1]),
    "from": (["v1.0", "abc1234", None], [1.0, 1234567]),
    "notify": (
        [None, {}, {"discussion": True}, {"json": ["https://example.org/x"]}],
        [{"slack": "x"}, {"json": "https://example.org"}, {"json": ["http://example.org"]},
         {"discussion": "yes please"}, {"json": ["https://example.org"] * 6}],
    ),
    "enabled": ([True, False], ["off course", None]),
}  # fmt: skip


@st.composite
def entries(draw: st.DrawFn) -> tuple[dict[str, Any], set[str]]:
    """A subscription, and which of its keys the schema refuses."""
    names = draw(st.sets(st.sampled_from(sorted(VALUES)), max_size=5))
    names |= {"follow"} if draw(st.integers(0, 9)) else set()
    wrong = draw(st.sets(st.sampled_from(sorted(names)), max_size=2)) if names else set()
    entry = {name: draw(st.sampled_from(VALUES[name][name in wrong])) for name in sorted(names)}
    if not draw(st.integers(0, 5)):
        entry["shedule"] = "* 22 * * *"
        wrong |= {"shedule"}
    return entry, wrong | ({"follow"} - names)


@settings(deadline=None)
@given(st.lists(entries(), max_size=3), st.booleans())
def test_schema_and_check_agree_and_every_wrong_key_is_named(
    made: list[tuple[dict[str, Any], set[str]]], alone: bool
) -> None:
    made = made[:1] if alone else made
    data: Any = made[0][0] if alone and made else [entry for entry, _ in made]
    wrong = [(number, key) for number, (_, keys) in enumerate(made, 1) for key in keys]
    # Two bases in one file: beyond the schema.
    two_bases = len({e["base"] for e, _ in made if isinstance(e.get("base"), str)}) > 1
    found = check(dumped(data))[1]
    assert VALIDATOR.is_valid(data) == (not wrong and bool(made))
    assert bool(found) == (bool(wrong) or not made or two_bases)
    for number, key in wrong:
        missing = f"'{key}' is missing"
        field = key if isinstance(data, dict) else f"{number}.{key}"
        assert any(each.field.startswith(field) or missing in each.said for each in found)
    for each in found:  # the line is that of the key
        key = each.field.rpartition(".")[2]
        if each.line is not None and key and not key.isdigit():
            assert f"{key}:" in dumped(data).decode().splitlines()[each.line - 1]


BEYOND = {
    "follow": ["base", "org/b*@x", "--help"],
    "to": ["nobody"],
    "schedule": ["* * * *", "61 * * * *", "* * * * 1", "0 0 30 2 *"],
    "base": ["org"],
    "notify": [
        {"json": ["https://hooks.slack.com/services/T/B/x"]},
        {"json": ["https://discord.com/api/webhooks/1/x"]},
        {"json": ["https://127.0.0.1/x"]}, {"json": ["https://[::1]/x"]},
        {"json": ["https://192.168.1.1/"]}, {"json": ["https://localhost/"]},
        {"json": ["https://me:secret@example.org/"]}, {"json": ["https://[::1"]},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in BEYOND.items() for v in values])
def test_what_no_schema_can_tell_is_refused_all_the_same(key: str, value: Any) -> None:
    data = {"follow": "org/base"} | {key: value}
    assert VALIDATOR.is_valid(data)
    (said,) = faults(data)
    assert key in said


def test_secrets_are_refused_as_secrets() -> None:
    for value in BEYOND["notify"][:2]:
        assert "this file is public" in faults({"follow": "a/b", "notify": value})[0]


@pytest.mark.parametrize("key", KEYS[""])
def test_a_slip_of_the_finger_is_understood(key: str) -> None:
    slip = key[:-2] + key[-1] + key[-2] if len(key) > 3 else key + key[-1]
    assert f"unknown key '{slip}'; did you mean '{key}'?" in "".join(faults({slip: 1}))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"follow: a/b\nschedule: * 22 * * *\n", "line 2: it is no YAML"),
        (b"follow: &x a/b\nto: *x\n", "aliases are not allowed"),
        (b"[" * (DEEPEST + 1), f"more than {DEEPEST} deep"),
        (b"[" * 60_000, f"more than {DEEPEST} deep"),
        (b"# " + b"x" * LONGEST, f"longer than {LONGEST} characters"),
        (b"follow: a/b\nfollow: c/d\n", "line 2, follow: it is there twice"),
        (b"- follow: a/b\n- verdict: {margin: 1, margin: 0}\n", "2.verdict.margin"),
        (b"follow: !!python/object/apply:os.system [ls]\n", "no YAML"),
        *(
            (b"follow: a/b\nto: !!%s\n" % tag, "tags")
            for tag in (b"bool x", b'int ""', b"timestamp x")
        ),
        (b"\xff\xfe", "no YAML"),
        (b"? [a]\n: b\n", "no YAML"),
        (b'follow: a/b\ngroup: "a\\0b"\n', "a NUL"),
        (b"follow: a/b\nverdict: {alpha: 1.0e-17}\n", "verdict.alpha"),  # no interval is so wide
        (b"", "one subscription, or a list"),
        (b"just words", "one subscription, or a list"),
        (b"- just words", "line 1, 1: "),
        (b"[]", "at least 1"),
        (b"- follow: a/b\n" * (MOST + 1), f"at most {MOST}"),
    ],
)
def test_hostile_and_odd_files_are_refused_with_a_reason(raw: bytes, said: str) -> None:
    entries_, found = check(raw)
    assert entries_ == [] and said in " ".join(map(str, found))


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_break_it(raw: bytes) -> None:
    entries_, found = check(raw)
    assert bool(entries_) != bool(found)


def test_eval_and_verdict_make_one_policy() -> None:
    def policy(text: str) -> dict[str, Any] | None:
        return check(f"follow: a/b\n{text}".encode())[0][0].verdict_policy()

    assert policy("") is None
    off = policy("eval: off\nverdict: {margin: 0.2}")
    assert off is not None and (off["evaluate"], off["margin"]) == (False, 0.2)
    assert (policy("verdict: {margin: 0.2}") or {})["evaluate"] is True


def test_the_command_checks_files_and_stdin(tmp_path: Path) -> None:
    run, file = CliRunner(), tmp_path / FILE
    file.write_text("follow: a/b\n")
    done = run.invoke(app, ["validate-config", str(file), "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"valid": True, "faults": []})
    done = run.invoke(app, ["validate-config", "-", "--json"], input="folow: a/b\nas: all\n")
    told = json.loads(done.stdout)["faults"]
    assert [(each["line"], each["field"]) for each in told] == [(1, ""), (1, "folow"), (2, "as")]
    assert done.exception is not None and "Faults: 3." in str(done.exception)
    printed = run.invoke(app, ["validate-config", "-"], input="folow: a/b\nas: all\n").stdout
    assert printed.count("\n") == 4 and "did you mean 'follow'?" in printed
    missing = run.invoke(app, ["validate-config", str(tmp_path / "none")])
    assert "is no file" in str(missing.exception)
    assert json.loads(run.invoke(app, ["config", "schema"]).stdout) == json_schema()
