"""A PostgreSQL for tests, of Debian's package: `python -m tests.postgres` starts one for a while.

It refuses to run as root; then it runs as the user that the package makes for it.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

USER = "postgres"
MISSING = "There is no initdb here: install PostgreSQL (on Debian, `apt install postgresql`)."
# Nothing of it outlives the tests, so nothing has to reach the disk.
OPTIONS = "-c fsync=off -c full_page_writes=off -c synchronous_commit=off -c max_connections=300"


def programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`, which Debian keeps off the PATH."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


class Postgres:
    """A server that only this machine can reach, by a socket in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}@/{database}?host={self.folder}"

    def create(self, database: str) -> str:
        """The URL of a new and empty database."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)


@contextmanager
def running() -> Iterator[Postgres]:
    """A server, stopped and gone at the end. Raises FileNotFoundError where there is none."""
    found = programs()
    if found is None:
        raise FileNotFoundError(MISSING)
    # Not pytest's folder: the path of a socket is short, and another user must get there.
    folder = Path(tempfile.mkdtemp(prefix="portllm-pg-"))
    owner = USER if os.geteuid() == 0 else None
    if owner is not None:
        shutil.chown(folder, owner)
    common: dict[str, Any] = {
        "user": owner,
        "cwd": "/",
        "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        "stdout": subprocess.DEVNULL,
        "start_new_session": True,  # a Ctrl-C is not for them
    }
    end = 'read _; "$0/pg_ctl" -D "$1/data" -m immediate stop; rm -rf "$1"'
    # What it reads ends with this process, however that ends.
    with subprocess.Popen(["sh", "-c", end, found, folder], stdin=subprocess.PIPE, **common):
        data, log = folder / "data", folder / "log"
        making = ["--auth=trust", "--no-sync", f"--username={USER}", "--encoding=UTF8"]
        subprocess.run([found / "initdb", "-D", data, *making], check=True, **common)
        sockets = f"-c listen_addresses='' -c unix_socket_directories='{folder}'"
        start = ["-D", data, "-w", "-l", log, "-o", f"{sockets} {OPTIONS}", "start"]
        subprocess.run([found / "pg_ctl", *start], check=True, **common)
        yield Postgres(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for all tests of this process; skips them where there is none."""
    if programs() is None:
        pytest.skip(MISSING)
    with running() as server:
        yield server


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with running() as server, suppress(KeyboardInterrupt):
        print(server.url(), flush=True)
        print("It runs until Ctrl-C.", file=sys.stderr)
        signal.pause()


if __name__ == "__main__":
    main()
