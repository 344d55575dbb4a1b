"""Ports per hour by how many processes share the work: 1, 2 and 4, on a local Hub and a PostgreSQL.

    python -m benchmarks.throughput --ports 60 --runs 3

`queue` is what the queue itself takes: every step of a port does nothing. `small` are whole ports
of a tiny model, as adapters, asked for by a pull request. `large` is one merged port of a model in
eight files of 50 MB, spread over the workers. The processes are up before the clock starts.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from sqlalchemy import func, select

from benchmarks.inputs import make_adapter, make_base
from bot.address import parse_repo
from bot.context import Context
from bot.hub import Hub, HubPublisher
from bot.register import register
from bot.running.manners import Manners
from bot.settings import Settings
from bot.subscribing import Wanted, begin
from bot.watching.follow import parse_follow
from localhub.server import Server
from registry.database import Database
from registry.models import Port, PortState
from tests.postgres import Postgres, running

WORKERS = (1, 2, 4)
LONG = 1800.0  # seconds after which a run has failed
READY = ("Watching", "Working")
NOTHING = """
from bot.running import workflow
from bot.cli import main
from bot.hub import Published
from bot.publishing.publish import Delivered
from bot.making.scale import Choice
from judging.evidence import Evidence
from registry.models import PortState
workflow.plan_port = lambda *_: "nothing"
workflow.choose = lambda *_: Choice()
workflow.make = lambda *_: {}
workflow.measure = lambda *_: Evidence()
nowhere = Delivered(Published("", "http://nowhere"), PortState.ASKED, "Nothing was done.")
workflow.publish = lambda *_: nowhere
main()
"""


@dataclass(frozen=True)
class Kind:
    """Of what there are `ports`; `size` and `shards` of the base."""

    name: str
    size: str
    shards: int
    form: str
    ports: int
    script: str | None = None


class Shop:
    """A vendor and an owner on a Hub, and the processes of the owner."""

    def __init__(self, server: Server, postgres: Postgres, folder: Path) -> None:
        self.server, self.postgres, self.folder = server, postgres, folder
        self.token = server.add_user("owner", orgs=("vendor",))
        self.api = HfApi(endpoint=server.endpoint, token=self.token)

    def push(self, repo: str, folder: Path) -> str:
        self.api.create_repo(repo, exist_ok=True)
        return self.api.upload_folder(repo_id=repo, folder_path=folder).oid

    def measure(self, kind: Kind, workers: int, run: int) -> float:
        """Seconds from a release until all its ports are over."""
        name = f"{kind.name}-{workers}-{run}"
        base, seed = f"vendor/{name}", 10 * run + workers
        first = make_base(self.folder / kind.name / "old", kind.size, kind.shards)
        sha = self.push(base, first)
        patch = make_adapter(self.folder / name, kind.size, first, seed)
        config = json.loads((patch / "adapter_config.json").read_text())
        config |= {"base_model_name_or_path": base, "revision": sha}
        (patch / "adapter_config.json").write_text(json.dumps(config))
        self.push(f"owner/{name}", patch)
        second = make_base(self.folder / kind.name / "new", kind.size, kind.shards, seed=1)
        url = self.postgres.create(name)
        settings = Settings(home=self.folder / "home", database_url=url)
        hub = Hub(self.server.endpoint, self.token)
        context = Context(hub, HubPublisher(hub), Database(settings.registry_url), settings)
        register(context, parse_repo(f"owner/{name}"), None)
        for number in range(kind.ports):
            address, follow = parse_repo(f"owner/{name}"), parse_follow(base)
            to = f"owner/{name}-{number}"
            begin(context, Wanted(address, follow, to, kind.form, None, None, Manners(), None))
        with self._processes(kind, workers, url):
            start = time.perf_counter()
            self.push(base, second)
            until(lambda: is_over(context, kind.ports))
            seconds = time.perf_counter() - start
        context.database.close()
        return seconds

    @contextmanager
    def _processes(self, kind: Kind, workers: int, url: str) -> Iterator[None]:
        start = ["-c", kind.script] if kind.script else ["-m", "bot.cli"]
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder)))
            processes = []
            for number in range(workers):
                log = folder / f"{number}.log"
                role = ["worker"] if number else ["bot", "run"]
                environment = os.environ | {
                    "HF_ENDPOINT": self.server.endpoint,
                    "HF_TOKEN": self.token,
                    "HF_HOME": str(self.folder / "hf"),
                    "OMP_NUM_THREADS": "1",
                    "PORTLLM_HOME": str(folder / str(number)),
                    "PORTLLM_DATABASE_URL": url,
                    "PORTLLM_POLL_SECONDS": "1",
                    "PORTLLM_PUSHES_PER_HOUR": "1000000",
                }
                process = subprocess.Popen(
                    [sys.executable, *start, *role],
                    env=environment,
                    stderr=stack.enter_context(log.open("w")),
                )
                processes.append(process)
                until(lambda log=log: any(word in log.read_text() for word in READY))
            yield
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                assert process.wait(60) == 0


def is_over(context: Context, ports: int) -> bool:
    with context.database.session() as session:
        counted = session.execute(select(Port.state, func.count()).group_by(Port.state)).all()
    counts = dict(map(tuple, counted))
    if failed := counts.keys() & {PortState.FAILED, PortState.REFUSED}:
        raise SystemExit(f"There are ports that are {failed}.")
    return counts.get(PortState.ASKED, 0) == ports


def until(come) -> None:
    end = time.monotonic() + LONG
    while not come():
        if time.monotonic() > end:
            raise SystemExit("It did not come.")
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ports", type=int, default=60)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    kinds = (
        Kind("queue", "tiny", 1, "adapter", 4 * asked.ports, NOTHING),
        Kind("small", "tiny", 1, "adapter", asked.ports),
        Kind("large", "420M", 8, "merged", 1),
    )
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        folder = asked.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(Server(folder / "hub"))
        shop = Shop(server, stack.enter_context(running()), folder)
        for run in range(asked.runs):
            for kind in kinds:
                for workers in WORKERS:
                    took = shop.measure(kind, workers, run)
                    seconds[kind.name, workers].append(took)
                    print(f"{kind.name}, {workers}: {took:.1f} s", file=sys.stderr, flush=True)
    print("| what | workers | median s | min-max s | per hour | x one worker |")
    print("|---|---|---|---|---|---|")
    for kind in kinds:
        one = statistics.median(seconds[kind.name, 1])
        for workers in WORKERS:
            took = seconds[kind.name, workers]
            median = statistics.median(took)
            print(
                f"| {kind.name}: {kind.ports} | {workers} | {median:.1f} "
                f"| {min(took):.1f}-{max(took):.1f} | {3600 * kind.ports / median:,.0f} "
                f"| {one / median:.2f} |"
            )


if __name__ == "__main__":
    main()
