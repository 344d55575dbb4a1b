"""Log lines: one per event, about something, and without any secret."""

import io
import json
import logging
import os
import pty
import subprocess
import sys
import threading
from contextvars import Context
from pathlib import Path

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bot import logs

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
words = st.text(LETTERS, min_size=20, max_size=40)
passwords = st.text(LETTERS + "!$%^*()_+-=/:@.~", min_size=8, max_size=20)
# What gives it away, and the part of it that nobody may see.
secrets = st.one_of(
    words.map(lambda word: (f"hf_{word}", word)),
    words.map(lambda word: (f"hf_oauth_{word}", word)),
    words.map(lambda word: (f"Authorization: Bearer {word}", word)),
    words.map(lambda word: (repr({"authorization": f"Bearer {word}"}), word)),
    words.map(lambda word: (repr([(b"x-webhook-secret", word.encode())]), word)),
    words.map(lambda word: (f"PORTLLM_WEBHOOK_SECRET={word}", word)),
    words.map(lambda word: (f"https://someone:{word}@example.com/x", word)),
    words.map(lambda word: (f"https://{word}@example.com/x", word)),
    passwords.map(lambda word: (f"postgresql+psycopg://me:{word}@db.example.com/x", word)),
    passwords.map(lambda word: (f"postgres://db.example.com/x?user=me&password={word}&a=b", word)),
).filter(lambda made: "password" not in made[1] and "&" not in made[1])


def line_of(formatter: logging.Formatter, log: logging.Logger, said: str, ways: str) -> str:
    """What a logger writes of `said`, in the message, an argument or the reason of a failure."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    log.handlers, log.propagate = [handler], False
    if ways == "message":
        log.warning(said.replace("%", "%%"), *())
    elif ways == "argument":
        log.warning("It says %s.", said)
    elif ways == "extra":
        log.warning("It moved.", extra={"base": said})
    else:
        try:
            raise ValueError(said) from KeyError(said)
        except ValueError:
            log.exception("It failed.")
    return stream.getvalue()


@settings(max_examples=400)
@given(
    secrets,
    st.text(max_size=20),
    st.text(max_size=20),
    st.sampled_from(["message", "argument", "extra", "failure"]),
    st.sampled_from([logs.Json, logs.Human]),
)
def test_what_looks_like_a_secret_is_never_seen(
    secret: tuple[str, str], before: str, after: str, ways: str, formatter: type[logging.Formatter]
) -> None:
    shown, hidden = secret
    assume(hidden not in before + after)
    line = line_of(formatter(), logging.getLogger("tested"), f"{before} {shown} {after}", ways)
    assert hidden not in line and hidden not in json.dumps(line)
    if formatter is logs.Json:
        assert len(line.splitlines()) == 1
        assert hidden not in "".join(map(str, json.loads(line).values()))


@given(st.text(min_size=6, max_size=30), st.sampled_from(["message", "argument", "failure"]))
def test_what_was_hidden_is_never_seen(secret: str, ways: str) -> None:
    logs.hide(secret, None, "")
    try:
        line = line_of(logs.Json(), logging.getLogger("tested"), f"({secret})", ways)
    finally:
        logs._known.clear()
    said = json.loads(line)
    assert f"({secret})" not in said["message"] + said.get("error", "")


def test_what_is_no_secret_stays() -> None:
    for text in (
        "hf_hub_download and hf_raise_for_status failed; hf_xet is there",
        "org/base@0123456789abcdef0123456789abcdef01234567 moved",
        "http://127.0.0.1:8080/org/base@main and https://example.com/a?b=c@d",
        "The token: it may not write. No secret is set.",
        "port-0123456789abcdef: judging: 5 of 10",
    ):
        assert logs.redact(text) == text
    assert logs.redact("at postgres://a:b@c/d") == "at postgres://***@c/d"


def test_a_line_says_what_it_is_about() -> None:
    Context().run(say_what_it_is_about)  # without what the tests before told of theirs


def say_what_it_is_about() -> None:
    log = logging.getLogger("tested")
    key = "port-0123456789abcdef"
    said = json.loads(line_of(logs.Json(), log, f"{key}: judged", "argument"))
    assert (said["port"], said["level"], said["logger"]) == (key, "warning", "tested")
    assert said["at"].endswith("+00:00")
    with logs.telling(base="org/base", attempt=2):
        logs.tell(step="look")
        inside = json.loads(line_of(logs.Json(), log, "a library's", "message"))
        threads = []
        thread = threading.Thread(
            target=lambda: threads.append(line_of(logs.Json(), log, "another", "message"))
        )
        thread.start()
        thread.join()
    outside = json.loads(line_of(logs.Json(), log, "later", "message"))
    assert (inside["base"], inside["attempt"], inside["step"]) == ("org/base", 2, "look")
    for other in (outside, json.loads(threads[0])):
        assert not {"base", "attempt", "step", "port"} & other.keys()


WORKED = """
import logging, sys, warnings
from bot import logs
logs.set_up()
from dbos import DBOS, SetWorkflowID
key = "port-0123456789abcdef"
DBOS(config={"name": "tested", "system_database_url": "sqlite:///" + sys.argv[1]})

@DBOS.step(name="make")
def make():
    logging.getLogger("library").warning("within")
    logs.tell(step="make")
    logging.getLogger("library").warning("told")

@DBOS.workflow(name="port")
def port():
    make()

DBOS.launch()
for id in (f"{key}.2.publication-1", "another"):
    with SetWorkflowID(id):
        DBOS.start_workflow(port).get_result()
logging.getLogger("dbos").error("of DBOS")
logging.getLogger("huggingface_hub").warning("of the client")
warnings.warn("of Python")
DBOS.destroy()
raise RuntimeError("with hf_" + "A" * 34)
"""


def test_a_process_writes_json_where_nobody_looks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKED, str(tmp_path / "memory.db")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    by = {line["message"]: line for line in lines}
    within = [line for line in lines if line["message"] == "within"]
    key = "port-0123456789abcdef"
    assert [(line.get("port"), line.get("attempt")) for line in within] == [(key, "2"), (None,) * 2]
    assert not any("step" in line for line in within)
    told = [line for line in lines if line["message"] == "told"]
    assert [(line.get("port"), line["step"]) for line in told] == [(key, "make"), (None, "make")]
    assert by["of DBOS"]["logger"] == "dbos"
    assert sum(line["message"] == "of the client" for line in lines) == 1
    assert any("of Python" in message for message in by)
    last = lines[-1]
    assert (last["level"], last["message"]) == ("critical", "RuntimeError: with ***")
    assert "Traceback" in last["error"] and "AAAA" not in done.stderr and done.returncode == 1


def test_on_a_terminal_lines_are_for_people() -> None:
    script = "from bot import logs; import logging; logs.set_up(); logging.warning('a\\x1b[2Jb')"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    line = os.read(ours, 1000).decode()
    os.close(ours)
    assert line.rstrip().endswith(" a?[2Jb") and len(line.split()[0]) == len("14:03:22")
