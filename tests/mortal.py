"""One life of the bot, and one of its computing process, forked from what has imported everything.

Imported by the fork server only: the waits of the bot's steps are shortened here, before the
workflows are defined, and every boundary at which it may be killed is given a name.
"""

import errno
import functools
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub.utils._http as backoff
from dbos import DBOS
from huggingface_hub import HfApi, constants
from sqlalchemy import Engine
from sqlalchemy.engine.default import DefaultDialect

from bot.running import failure

failure.STEP.update(interval_seconds=0.05)
_step = DBOS.step


class Death:
    """Kills this process at the `left`th time that it comes to `where`."""

    where, left = "", 0

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def at(self, where: str) -> None:
        if where != self.where:
            return
        with self._lock:
            self.left -= 1
            if self.left == 0:
                tell(f"bot: killed {where}")
                os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def around(self, what: str) -> Iterator[None]:
        self.at(f"before {what}")
        yield
        self.at(f"after {what}")


class Disk:
    """From the first making of a port on, writing fails, where that is planned."""

    BREAKS_AT = "make"
    planned: int | None = None
    error: int | None = None


death, disk = Death(), Disk()
history = Path()


def tell(what: str) -> None:
    with history.open("a") as out:
        out.write(f"{time.time():.3f} {what}\n")


def _mortal_step(*, name: str, **options: Any) -> Callable[[Any], Any]:
    def decorate(body: Callable[..., Any]) -> Any:
        @functools.wraps(body)
        def mortal(*arguments: Any, **more: Any) -> Any:
            disk.error = disk.planned if name == disk.BREAKS_AT else disk.error
            with death.around(f"step {name}"):
                return body(*arguments, **more)

        return _step(name=name, **options)(mortal)

    return decorate


DBOS.step = _mortal_step
_register_queue = DBOS.register_queue


# Only now (E402): the bot's workflows are defined with the step above. The first three are imported
# (F401) for the computing process, which is forked from this one.
import judging.run  # noqa: E402
import porting.forecast  # noqa: E402
import porting.stack  # noqa: E402, F401
from bot.cli.sources import open_context  # noqa: E402
from bot.hub import client  # noqa: E402
from bot.making import compute, sandbox  # noqa: E402
from bot.publishing import requests  # noqa: E402
from bot.running import dispatch, run  # noqa: E402
from registry import following, models  # noqa: E402
from tests.faulty import Life, Place, edit_card  # noqa: E402
from tests.forks import FORKS  # noqa: E402

WAIT = timedelta(seconds=0.3)
DOUBT = timedelta(seconds=3)
POLL, TIDY = 0.3, 2.0  # seconds
METHODS = ("state", "create", "upload", "commit", "tag", "retitle")
FILES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
BROKEN = {"full": errno.ENOSPC, "read-only": errno.EROFS}
LARGEST_FILE, SMALL = "database", 1 << 16  # bytes: the databases are larger than that
GOOD = ("old", "port")  # arms that get every item right; the others get none


def live(life: Life, place: Place) -> None:
    global history
    history = place.folder / "history"
    _move_in(place)
    _hurry()
    if life.skew:
        _skew(life.skew)
    if not life.fresh:
        Forked.life = life
        # It would start another one: only the first process knows that there is one.
        forkserver._forkserver.ensure_running = _nothing
        sandbox.subprocess = SimpleNamespace(Popen=Forked, PIPE=None)
    constants.HF_HUB_DISABLE_XET = not life.xet
    context = open_context()
    death.where, death.left = life.where, life.number
    disk.planned = BROKEN.get(life.broken)
    _name_boundaries(context.database.engine, str(place.folder))
    if life.broken == LARGEST_FILE:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))
    publisher: Any = MortalPublisher(context.publisher, life.rival, place)
    (run.run_forever if life.forever else run.run_once)(replace(context, publisher=publisher))
    sys.stderr.flush()
    os._exit(0)


def _move_in(place: Place) -> None:
    """The environment, the standard streams and the caches of this world."""
    log = os.open(place.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("portllm").setLevel(logging.INFO)
    os.environ |= {
        "HF_TOKEN": place.token,
        "PORTLLM_HOME": str(place.folder / "home"),
        "PORTLLM_POLL_SECONDS": str(POLL),
        "TMPDIR": str(place.folder / "tmp"),
    }
    tempfile.tempdir = None
    client.constants = SimpleNamespace(ENDPOINT=place.endpoint)
    constants.HF_HUB_CACHE = str(place.folder / "hf/hub")
    constants.HF_XET_CACHE = str(place.folder / "hf/xet")


def _hurry() -> None:
    """Minutes become fractions of a second, and nobody waits for idle threads at the end."""
    failure.AGAIN = (WAIT,) * len(failure.AGAIN)
    dispatch.HELD, following.DOUBT, run.TIDY_SECONDS = WAIT, DOUBT, TIDY
    requests.SOONEST, requests.LATEST = WAIT, WAIT
    run.DISPATCH_SECONDS = POLL / 3
    DBOS.register_queue = partial(_often, _register_queue)
    DBOS.destroy = _nothing
    quick = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds / 20, 0.2)))
    backoff.time = quick


def _often(register: Any, *name: str, **options: Any) -> Any:
    return register(*name, **options | {"polling_interval_sec": 0.05})


def _skew(seconds: float) -> None:
    """A clock that is wrong, for all that read one."""

    class Skewed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=seconds)

    models.datetime = Skewed
    right = time.time
    time.time = lambda: right() + seconds


def _name_boundaries(registry: Engine, folder: str) -> None:
    commit, send, compute_it = DefaultDialect.do_commit, httpx2.Client.send, sandbox.run

    def mortal_commit(dialect: Any, connection: Any) -> None:
        with death.around(f"{'registry' if dialect is registry.dialect else 'memory'} commit"):
            commit(dialect, connection)

    def mortal_send(client: Any, request: Any, **options: Any) -> Any:
        with death.around(f"request {request.method}"):
            return send(client, request, **options)

    def mortal_run(*arguments: Any, **options: Any) -> Any:
        with death.around("sandbox"):
            return compute_it(*arguments, **options)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name not in (*FILES, "open") or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.fspath(arguments[0])
        if not isinstance(path, str) or not path.startswith(folder):
            return
        if name != "open":
            death.at(f"before file {name}")
        writes = name != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if disk.error and writes and not path.endswith(("history", "log")):
            raise OSError(disk.error, os.strerror(disk.error), path)

    DefaultDialect.do_commit = mortal_commit
    httpx2.Client.send = mortal_send
    sandbox.run = mortal_run
    sys.addaudithook(hook)


class MortalPublisher:
    """May be killed before and after each call. A rival commits to the target before it does."""

    def __init__(self, publisher: Any, rival: float, place: Place) -> None:
        self._publisher, self._rival = publisher, rival
        self._owner = HfApi(endpoint=place.back_door, token=place.token)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._publisher, name)
        if name not in METHODS:
            return found

        def mortal(*arguments: Any, **options: Any) -> Any:
            if name == "commit" and random.random() < self._rival:
                edit_card(self._owner, arguments[0], f"A note of {time.time()}.\n")
                tell(f"owner: wrote to {arguments[0]}, just before the bot")
            with death.around(f"publisher {name}"):
                return found(*arguments, **options)

        return mortal


class Forked:
    """Stands for `subprocess.Popen` of `bot.making.compute`: forked, it has no imports to wait for.

    Its standard streams are pipes as well, and it ends when the one that it reads does.
    """

    life: Life
    started = 0

    def __init__(self, command: list[str], *, env: dict[str, str], stderr: Any, **_: Any) -> None:
        child_in, self._stdin = FORKS.Pipe(duplex=False)
        out, child_out = FORKS.Pipe(duplex=False)
        errors = Connection(os.dup(stderr.fileno()), readable=False)
        ends = (child_in, child_out, errors)
        Forked.started += 1
        slain = self.life.slain * (self.started % 2)
        self._process = FORKS.Process(
            target=computing, args=(self.life.real, slain, command[-1], env, *ends)
        )
        self._process.start()
        for each in ends:
            each.close()
        self.stdout = os.fdopen(os.dup(out.fileno()))
        out.close()
        self.returncode: int | None = None

    def wait(self) -> None:
        self._process.join()
        self.returncode = self._process.exitcode

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        self._stdin.close()
        self.stdout.close()
        self.wait()


def computing(
    real: bool, slain: int, order: str, env: dict[str, str], *streams: Connection
) -> None:
    """`python -m bot.making.compute ORDER`, in a process that was forked."""
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None
    sys.stdin, sys.stdout, sys.argv = os.fdopen(0), os.fdopen(1, "w"), ["bot.making.compute", order]
    if not real:
        judging.run._answer, judging.run._look_closer = _canned, _nothing
    if slain:
        _slay_after(slain)
    compute.main()
    sys.stdout.flush()


def _canned(_: Any, asked: dict[Any, Any], known: dict[Any, list[float]], __: Any) -> None:
    for key, question in asked.items():
        good = question.arm in GOOD or question.task.name != "sides"
        known[key] += [float(good)] * (question.count - len(known[key]))


def _nothing(*_: Any) -> None:
    pass


def _slay_after(number: int) -> None:
    told, tell_on = [], compute.tell

    def mortal_tell(**message: Any) -> None:
        tell_on(**message)
        told.append(message)
        if len(told) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    compute.tell = mortal_tell
