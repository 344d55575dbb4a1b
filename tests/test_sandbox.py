"""The computing process: no token, no home, no Hub; it answers, refuses, crashes, never lingers."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bot.making import sandbox
from porting.errors import PortllmError, Refused
from tests.tiny import raw_adapter, raw_base, save_adapter, save_base

PYTHON = sys.executable  # some tests put another program in its place
SECRET = "hf_" + "s" * 34

STAND_IN = """#!{python}
import fcntl, json, os, sys, time
job = json.loads(sys.argv[-1])
{body}
"""
SLEEPER = """
from bot.making import compute

def port(job):
    fcntl.flock(os.open(job["lock"], os.O_RDWR), fcntl.LOCK_EX)  # held until the process is gone
    compute.tell(progress=["working", 0, 1])
    time.sleep(600)

compute.port = port
sys.argv = ["compute", sys.argv[-1]]
compute.main()
"""
PARENT = """
import sys
from bot.making import sandbox

sys.executable = sys.argv[1]
sandbox.run({"do": "port", "lock": sys.argv[2]}, lambda *what: print(*what, flush=True))
"""


def stand_in(folder: Path, body: str) -> Path:
    """A program to be run in the interpreter's place, with the environment that a child gets."""
    program = folder / "stand-in"
    program.write_text(STAND_IN.format(python=PYTHON, body=body))
    program.chmod(0o755)
    return program


def locked(file: Path) -> bool:
    with file.open("r+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_until_free(file: Path) -> None:
    for _ in range(600):
        if not locked(file):
            return
        time.sleep(0.05)
    raise AssertionError("the computing process lives on")


def test_the_child_has_no_token_no_home_and_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / ".cache/huggingface").mkdir(parents=True)
    (home / ".cache/huggingface/token").write_text(SECRET)
    for name, value in {
        "HOME": str(home), "HF_HOME": str(home / ".cache/huggingface"), "HF_TOKEN": SECRET,
        "HUGGING_FACE_HUB_TOKEN": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET,
        "PORTLLM_HOME": str(home), "PYTHONPATH": str(home), "HF_ENDPOINT": "http://hub.invalid",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    body = """
from huggingface_hub import constants, get_token
from pathlib import Path
seen = {"environment": dict(os.environ), "token": get_token(), "home": str(Path.home()),
        "offline": constants.HF_HUB_OFFLINE}
print(json.dumps({"result": seen}))
"""
    monkeypatch.setattr("bot.making.sandbox.sys.executable", str(stand_in(tmp_path, body)))
    seen = sandbox.run({})
    assert seen["token"] is None and seen["offline"] is True
    assert SECRET not in json.dumps(seen) and str(home) not in json.dumps(seen)
    assert not Path(seen["home"]).exists()  # a folder of its own, gone afterwards
    ours = {
        "HOME",
        "HF_HOME",
        "TMPDIR",
        "TQDM_DISABLE",
        "TOKENIZERS_PARALLELISM",
        "OMP_WAIT_POLICY",
    }
    assert set(seen["environment"]) <= {*ours, *sandbox.OFFLINE, *sandbox.KEPT, "LC_CTYPE"}


def test_code_in_the_folder_of_the_user_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("json", "torch", "safetensors"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('a stranger was here')")
    base = raw_base(tmp_path / "base", {})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused):
        sandbox.run(order(base, base, tmp_path / "out"))


def order(base: Path, patch: Path, out: Path) -> dict[str, Any]:
    order = {"do": "port", "form": "merged", "policy": None, "hashed": True}
    return order | {"base": str(base), "patch": str(patch), "out": str(out)}


def test_a_result_and_its_progress_come_back(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    patch = save_adapter(tmp_path / "patch", base)
    told: list[tuple[Any, ...]] = []
    digests = sandbox.run(order(base, patch, tmp_path / "out"), lambda *what: told.append(what))
    assert "merged/model.safetensors" in digests
    assert {"config.json", "model.safetensors"} <= {
        file.name for file in (tmp_path / "out/merged").iterdir()
    }
    assert told and all(what == "merging, bytes" and done <= total for what, done, total, _ in told)
    finished = [file for *_, file in told if file]
    assert sorted(finished) == sorted(path.name for path in (tmp_path / "out/merged").iterdir())
    assert told[-1][1:3] == (told[-1][2],) * 2


def test_a_refusal_crosses_as_a_refusal(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    patch = raw_adapter(tmp_path / "patch", {"layer": (32, 32)}, use_dora=True)
    with pytest.raises(Refused, match=r"(?i)dora"):
        sandbox.run(order(base, patch, tmp_path / "out"))
    assert not (tmp_path / "out/merged").exists()


def test_a_crash_is_told_with_its_last_words() -> None:
    with pytest.raises(PortllmError, match=r"ended with 1: (?s:.*)KeyError: 'nonsense'") as error:
        sandbox.run({"do": "nonsense"})
    assert error.value.exit_code == 1 and not isinstance(error.value, Refused)


def test_a_child_that_was_killed_or_said_nothing_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = stand_in(tmp_path, "os.kill(os.getpid(), 9)")
    monkeypatch.setattr("bot.making.sandbox.sys.executable", str(program))
    with pytest.raises(PortllmError, match="ended by SIGKILL"):
        sandbox.run({})
    stand_in(tmp_path, "")
    with pytest.raises(PortllmError, match="ended with 0"):
        sandbox.run({})


def test_what_a_library_prints_is_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "print('loading ...'); print('[1]'); print('7'); print(json.dumps({'result': job}))"
    monkeypatch.setattr("bot.making.sandbox.sys.executable", str(stand_in(tmp_path, body)))
    assert sandbox.run({"some": "job"}) == {"some": "job"}


def test_the_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    lock, program = tmp_path / "lock", stand_in(tmp_path, SLEEPER)
    lock.touch()
    with subprocess.Popen(
        [PYTHON, "-c", PARENT, str(program), str(lock)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "working 0 1\n"
        assert locked(lock)
        parent.kill()
    wait_until_free(lock)


def test_the_child_ends_when_its_parent_has_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    monkeypatch.setattr("bot.making.sandbox.sys.executable", str(stand_in(tmp_path, SLEEPER)))

    def enough(*_: object) -> None:
        assert locked(lock)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sandbox.run({"do": "port", "lock": str(lock)}, enough)
    wait_until_free(lock)
    assert os.environ.get("HF_HUB_OFFLINE") is None  # the parent itself stays as it was
