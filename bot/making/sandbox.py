"""Runs what reads strangers' files in a process of its own, without a token, told to stay offline.

The child gets a job on its command line and answers in JSON lines: `{"progress": ...}` while it
works, `{"result": ...}`, `{"refused": ...}` or `{"broken": ...}` at the end. It ends itself when
its standard input closes, so that it never outlives a bot that was killed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Protocol

from bot.running.machine import MachineError
from porting.errors import PortllmError, Refused

KEPT = ("PATH", "LANG", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "SYSTEMROOT")
KEPT_ONLINE = ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


class Report(Protocol):
    """Told how far something is."""

    def __call__(self, what: str, done: int, total: int, file: str = "") -> None:
        """`done` of `total` is done of `what`, which ends with the unit; `file` is finished now."""


def silent(what: str, done: int, total: int, file: str = "") -> None:
    """A `Report` that tells nobody."""


def run(
    job: dict[str, Any],
    report: Report = silent,
    cache: Path | None = None,
    online: bool = False,
) -> Any:
    """The result of `bot.making.compute` on `job`.

    Args:
        cache: where data sets of the Hub are found, and kept if the process is `online`; a folder
            that does not outlive the process if not given.
        online: let it ask the Hub, still without a token.

    Raises:
        Refused: the job's inputs are refused.
        MachineError: the process was killed, or has no room.
        PortllmError: the process failed; the message ends with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="portllm-") as scratch:
        kept = (*KEPT, *KEPT_ONLINE) if online else KEPT
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment |= {
            "HOME": scratch,
            "HF_HOME": str(cache or scratch),
            "TMPDIR": scratch,
            "TOKENIZERS_PARALLELISM": "false",
            # Threads that wait for each other by spinning are ten times slower on a busy machine.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TQDM_DISABLE": "1",  # the last words of a process that fails are to be its reason
        } | ({} if online else OFFLINE)
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(
                # -P: the folder that a user works in may hold a stranger's json.py.
                [sys.executable, "-P", "-m", "bot.making.compute", json.dumps(job)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                text=True,
            ) as child,
        ):
            assert child.stdout is not None
            for line in child.stdout:
                message = _parse(line)
                if "progress" in message:
                    report(*message["progress"])
                elif "result" in message:
                    return message["result"]
                elif "refused" in message:
                    raise Refused(message["refused"])
                elif "broken" in message:
                    raise MachineError(message["broken"])
            child.wait()
            if child.returncode < 0:
                name = signal.Signals(-child.returncode).name
                raise MachineError(f"The computing process was ended by {name}: is memory short?")
            errors.seek(max(0, errors.tell() - 2000))
            words = errors.read().decode("utf-8", "replace").strip()
    raise PortllmError(f"The computing process ended with {child.returncode}: {words[-1500:]}")


def _parse(line: str) -> dict[str, Any]:
    """A message of the child; anything a library printed is no message."""
    try:
        message = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}
