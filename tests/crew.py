"""A Hub, a database in Postgres, and processes of the bot that share it: stopped, frozen, killed.

Each has a home of its own, as if it were on a machine of its own.
"""

import os
import signal
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

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
from registry.models import Port, Worker
from tests import crew_member
from tests.crew_member import Part
from tests.forks import FORKS, forks
from tests.tiny import edit_json, save_adapter, save_base, save_tokenizer

BASE = "vendor/base"
LONG = 120.0  # seconds after which what is waited for is not coming


@dataclass
class Member:
    name: str
    process: ForkServerProcess
    reached: Event

    def wait(self) -> None:
        """Until it has come to where it pauses."""
        assert self.reached.wait(LONG), "It did not come there."

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self, number: int = signal.SIGKILL) -> int | None:
        """Send it a signal, wait for its end, and return its exit code."""
        self.send(number)
        self.process.join(LONG)
        return self.process.exitcode


@dataclass
class Crew:
    server: Server
    folder: Path
    url: str
    members: list[Member] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.token = self.server.add_user("owner", orgs=("vendor",))
        self.api = HfApi(endpoint=self.server.endpoint, token=self.token)
        self.base = save_tokenizer(save_base(self.folder / "base", shard_size="20KB"))
        self.base_sha = self._push(BASE, self.base)

    @cached_property
    def context(self) -> Context:
        """The owner's."""
        hub = Hub(self.server.endpoint, self.token)
        settings = Settings(home=self.folder / "owner", database_url=self.url)
        return Context(hub, HubPublisher(hub), Database(settings.registry_url), settings)

    def add_patch(self, repo: str) -> None:
        folder = save_adapter(self.folder / repo, self.base, r=4, lora_alpha=8)
        pinned = {"base_model_name_or_path": BASE, "revision": self.base_sha}
        edit_json(folder / "adapter_config.json", **pinned)
        self._push(repo, folder)
        register(self.context, parse_repo(repo), None)

    def subscribe(self, patch: str, to: str, form: str, unclear: str = "publish") -> None:
        policy = {"unclear": unclear}
        address, follow = parse_repo(patch), parse_follow(BASE)
        begin(self.context, Wanted(address, follow, to, form, None, policy, Manners(), None))

    def release(self, seed: int) -> str:
        """A new commit of the base: every weight moved a little."""
        torch.manual_seed(seed)
        for file in self.base.glob("*.safetensors"):
            moved = {name: w + 1e-3 * torch.randn(w.shape) for name, w in load_file(file).items()}
            save_file(moved, file, metadata={"format": "pt"})
        return self._push(BASE, self.base)

    def ports(self) -> list[Port]:
        with self.context.database.session() as session:
            return list(session.query(Port).order_by(Port.key))

    def start(self, home: str, role: str, pause: str = "", **more: Any) -> Member:
        """Start a process that is called as its home is."""
        (self.folder / home).mkdir(exist_ok=True)
        environment = {
            "WORKER": home,
            "HF_TOKEN": self.token,
            "HF_ENDPOINT": self.server.endpoint,
            "PORTLLM_HOME": str(self.folder / home),
            "PORTLLM_DATABASE_URL": self.url,
            "PORTLLM_POLL_SECONDS": "0.5",
            "LOG": str(self.folder / "log"),
        }
        reached = forks("tests.crew_member").Event()
        arguments = (Part(role, pause, **more), environment, reached)
        process = FORKS.Process(target=crew_member.main, args=arguments)
        process.start()
        self.members.append(Member(home, process, reached))
        return self.members[-1]

    def age(self, *members: Member) -> None:
        """Let them have been silent for long."""
        with self.context.database.session() as session:
            for member in members:
                session.get_one(Worker, member.name).pulse_at -= timedelta(hours=1)

    def _push(self, repo: str, folder: Path) -> str:
        self.api.create_repo(repo, exist_ok=True)
        return self.api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Weights"
        ).oid
