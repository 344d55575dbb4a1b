"""A world for faults: a Hub behind two doors, subscriptions, and a bot that can be killed often.

The bot asks at the Hub's own door, where faults may be ordered; the world's owner, its vendor and
whoever checks the result come in at the back, where there are none.
"""

import contextlib
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import uvicorn
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file

from bot.address import parse_repo
from bot.context import Context
from bot.hub import Hub, HubPublisher
from bot.register import register
from bot.running.manners import Manners
from bot.settings import Settings
from bot.subscribing import Wanted, begin
from bot.watching.follow import parse_follow
from localhub.app import create_app
from localhub.server import Server
from registry.database import Database
from tests.forks import forks
from tests.tiny import edit_json, save_adapter, save_base, save_tokenizer
from tests.world import write_evaluation

BASE, PLAIN, JUDGED = "vendor/base", "owner/plain", "owner/judged"
FIRST_TAG = "v1.0"
LONGEST = 90.0  # seconds that one life may take
MOST_LIVES = 12
CARD = "README.md"
END = "<!-- portllm:end -->"

# One that imports everything and never starts a thread: a process forked from it is quick.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Subscribed:
    """A subscription of the world: its patch, what it follows, where to and in which form."""

    patch: str
    follow: str
    to: str
    form: str

    @property
    def is_judged(self) -> bool:
        return self.patch == JUDGED


SUBSCRIBED = (
    Subscribed(JUDGED, BASE, "owner/judged-merged", "merged"),
    Subscribed(PLAIN, BASE, "owner/plain-adapter", "adapter"),
    Subscribed(JUDGED, f"{BASE}@v*", "owner/judged-both", "both"),
    Subscribed(PLAIN, f"{BASE}@v*", "owner/plain-merged", "merged"),
)


@dataclass(frozen=True)
class Life:
    """One life of the bot, which ends by itself or, the `number`th time it is `where`, by SIGKILL.

    Attributes:
        where: `before` or `after` of what `tests.mortal` names, such as `before step make`.
        forever: `portllm bot run` instead of `--once`.
        skew: seconds that its clock is wrong by.
        broken: what can't be written: on a disk that is `full` or `read-only`, files; or a
            `database`; "" for all can.
        real: whether models judge; otherwise every port is found good.
        fresh: whether its computing process is a new one, and not forked.
        slain: every other computing process is killed when it has told so many things.
        rival: the chance that somebody commits to the target just before the bot does.
    """

    where: str = ""
    number: int = 1
    forever: bool = False
    skew: float = 0.0
    broken: str = ""
    real: bool = False
    fresh: bool = False
    slain: int = 0
    rival: float = 0.0
    xet: bool = False


@dataclass(frozen=True)
class Place:
    """Where a life takes place."""

    folder: Path
    endpoint: str
    token: str
    back_door: str


def live(life: Life, place: Place) -> None:
    from tests import mortal  # by the fork server only: it changes the bot

    mortal.live(life, place)


@contextlib.contextmanager
def back_door(server: Server) -> Iterator[str]:
    """Another endpoint of the same Hub, which knows no faults."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    app = create_app(server.hub)
    door = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=door.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        door.should_exit = True
        thread.join()


@dataclass
class FaultyWorld:
    """`folder` holds the Hub, the bot's home and all temporary files of one world."""

    folder: Path
    server: Server
    api: HfApi
    tokens: dict[str, str]
    first_sha: str
    subscribed: tuple[Subscribed, ...] = SUBSCRIBED
    releases: int = 0

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def scratch(self) -> Path:
        return self.folder / "tmp"

    @property
    def place(self) -> Place:
        token = self.tokens["owner"]
        return Place(self.folder, self.server.endpoint, token, str(self.api.endpoint))

    @cached_property
    def context(self) -> Context:
        """To look into the registry, and to do what a user does with a command."""
        hub = Hub(str(self.api.endpoint), self.tokens["owner"])
        settings = Settings(home=self.home)
        return Context(hub, HubPublisher(hub), Database(settings.registry_url), settings)

    # The bot

    def begin(self, life: Life) -> Any:
        process = forks("tests.mortal").Process(target=live, args=(life, self.place))
        process.start()
        return process

    def live(self, life: Life = Life(), seconds: float | None = None) -> int:
        """Let the bot live; after so many seconds, if given, it is killed. Returns how it ended."""
        process = self.begin(life)
        return self.end(process, seconds)

    def live_until(self, life: Life, is_reached: Callable[[], bool]) -> None:
        """Let the bot live until that is so, and kill it."""
        process, late = self.begin(life), time.monotonic() + LONGEST
        while not is_reached() and time.monotonic() < late and process.is_alive():
            time.sleep(0.1)
        self.end(process, 0)

    def end(self, process: Any, seconds: float | None = None) -> int:
        process.join(LONGEST if seconds is None else seconds)
        if process.exitcode is None:
            if seconds is None:
                self.tell("stuck: it lived for too long")
            process.kill()
            process.join()
        code = int(process.exitcode)
        process.close()
        return code

    def until_done(self, real: bool = False) -> None:
        """Let the bot live until there is nothing to do; after many lives that is given up."""
        for path in (self.folder / "hf").rglob("*.incomplete"):
            os.utime(path, (0, 0))  # a day has passed
        for _ in range(MOST_LIVES):
            if code := self.live(Life(real=real)):
                self.tell(f"stopped: a life in peace ended with {code}")
            with self.registry() as registry:
                undone = registry.execute(
                    "SELECT count(*) FROM ports"
                    " WHERE state IN ('waiting', 'queued', 'running', 'judged')"
                    " UNION ALL SELECT count(*) FROM releases WHERE change IS NULL"
                    " UNION ALL SELECT count(*) FROM bases WHERE doubted_sha IS NOT NULL"
                ).fetchall()
            if not any(count for (count,) in undone):
                return
            time.sleep(1)

    @contextlib.contextmanager
    def registry(self) -> Iterator[sqlite3.Connection]:
        """The bot's records, past the bot."""
        connection = sqlite3.connect(self.home / "registry.db")
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def tell(self, what: str) -> None:
        with (self.folder / "history").open("a") as history:
            history.write(f"{time.time():.3f} {what}\n")

    def history(self) -> str:
        return (self.folder / "history").read_text()

    def log(self) -> str:
        """What the bot said, in all its lives."""
        return (self.folder / "log").read_text()

    # What others do to the Hub

    def release(self, shards: int = 3, branch: str = "main") -> str:
        """The vendor moves every weight of the first so many shards a little. Returns the sha."""
        self.releases += 1
        torch.manual_seed(self.releases)
        files = sorted((self.folder / "base").glob("*.safetensors"))[:shards]
        for file in files:
            moved = {n: w + 1e-3 * torch.randn(w.shape) for n, w in load_file(file).items()}
            save_file(moved, file, metadata={"format": "pt"})
        return self._push(files, f"Better weights, {self.releases}", branch)

    def readme(self) -> str:
        card = self.folder / "base" / CARD
        card.write_text(f"---\nlicense: mit\n---\nWords, {time.time()}\n")
        return self._push([card], "Words")

    def tag(self, name: str) -> None:
        self.api.create_tag(BASE, tag=name)

    def rewrite(self, gone: str) -> str:
        """A force-push: main has other weights and another history, and `gone` is no more."""
        self.api.create_branch(BASE, branch="other")
        self.api.super_squash_history(BASE, branch="other")
        sha = self.release(branch="other")
        self.server.force(BASE, "refs/heads/main", sha)
        self.api.delete_branch(BASE, branch="other")
        self.server.forget(BASE, gone)
        self.tell(f"vendor: forced main from {gone[:7]} to {sha[:7]}")
        return sha

    @contextlib.contextmanager
    def hidden(self, repo: str) -> Iterator[None]:
        """While this lasts, there is no such repo."""
        found = self.server.hub.repos.find("model", repo)
        assert found is not None
        aside = self.folder / "aside"
        found.path.rename(aside)
        yield
        aside.rename(found.path)

    @contextlib.contextmanager
    def revoked(self) -> Iterator[None]:
        """While this lasts, nobody's token counts."""
        tokens, aside = self.folder / "hub/tokens.json", self.folder / "aside"
        tokens.rename(aside)
        yield
        aside.rename(tokens)

    def _push(self, files: list[Path], title: str, branch: str = "main") -> str:
        operations = [CommitOperationAdd(file.name, file) for file in files]
        done = self.api.create_commit(
            BASE, operations=operations, commit_message=title, revision=branch
        )
        shutil.copytree(self.folder / "base", self.folder / "bases" / done.oid)
        self.tell(f"vendor: {title}: {done.oid[:7]}")
        return done.oid

    def edit(self, repo: str) -> None:
        """The owner adds a line to a target's card."""
        owner = HfApi(endpoint=self.api.endpoint, token=self.tokens["owner"])
        if edit_card(owner, repo, f"A note of {time.time()}.\n"):
            self.tell(f"owner: wrote to {repo}")


def edit_card(api: HfApi, repo: str, line: str) -> bool:
    """Commit the card of `repo` with another line at its end; whether nobody was faster."""
    if not api.repo_exists(repo):
        return False
    sha = api.model_info(repo).sha
    assert sha is not None
    card = read(api, repo, CARD, sha) if api.file_exists(repo, CARD, revision=sha) else b""
    operation = CommitOperationAdd(CARD, card + line.encode())
    try:
        api.create_commit(repo, operations=[operation], commit_message="A note", parent_commit=sha)
    except HfHubHTTPError as error:
        if error.response.status_code != 412:
            raise
        return False
    return True


def read(api: HfApi, repo: str, file: str, sha: str) -> bytes:
    """The file, past every cache."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import get_session, hf_raise_for_status

    url = hf_hub_url(repo, file, revision=sha, endpoint=api.endpoint)
    answer = get_session().get(url, headers={"authorization": f"Bearer {api.token}"})
    hf_raise_for_status(answer)
    content: bytes = answer.content
    return content


@dataclass(frozen=True)
class Template:
    """A world as it is when all is subscribed and nothing has happened. Copied for each run."""

    folder: Path
    tokens: dict[str, str]
    first_sha: str

    @contextlib.contextmanager
    def world(self, folder: Path, kept: Sequence[Subscribed] = SUBSCRIBED) -> Iterator[FaultyWorld]:
        """A copy of it in `folder`, with only these subscriptions."""
        shutil.copytree(self.folder, folder)
        (folder / "tmp").mkdir()
        with _opened(folder, self.tokens, self.first_sha) as world:
            world.subscribed = tuple(kept)
            with world.registry() as registry:
                registry.executemany(
                    "UPDATE subscriptions SET ended_at = created_at WHERE to_repo = ?",
                    [(each.to,) for each in SUBSCRIBED if each not in kept],
                )
            yield world


@contextlib.contextmanager
def _opened(folder: Path, tokens: dict[str, str], sha: str = "") -> Iterator[FaultyWorld]:
    with Server(folder / "hub") as server, back_door(server) as endpoint:
        tokens = tokens or {name: server.add_user(name) for name in ("vendor", "owner")}
        api = HfApi(endpoint=endpoint, token=tokens["vendor"])
        yield FaultyWorld(folder, server, api, tokens, sha)


def make_template(folder: Path) -> Template:
    """The base in three shards, a patch without an evaluation and one with, four subscriptions."""
    os.environ |= dict.fromkeys(ONE_THREAD, "1")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # of the fork server
    (folder / "home").mkdir(parents=True)
    base = save_tokenizer(save_base(folder / "base", shard_size="40KB"))
    with _opened(folder, {}) as world:
        owner = HfApi(endpoint=world.api.endpoint, token=world.tokens["owner"])
        world.api.create_repo(BASE)
        sha = world.api.upload_folder(repo_id=BASE, folder_path=base).oid
        world.tag(FIRST_TAG)
        for repo in (PLAIN, JUDGED):
            patch = save_adapter(folder / "patches" / repo, base, r=4, lora_alpha=8)
            edit_json(patch / "adapter_config.json", base_model_name_or_path=BASE, revision=sha)
            if repo == JUDGED:
                write_evaluation(patch, base, "patched")
            owner.create_repo(repo)
            owner.upload_folder(repo_id=repo, folder_path=patch)
            register(world.context, parse_repo(repo), None)
        for each in SUBSCRIBED:
            begin(
                world.context,
                Wanted(
                    patch=parse_repo(each.patch),
                    follow=parse_follow(each.follow),
                    to=each.to,
                    form=each.form,
                    policy=None,
                    verdict_policy=None,
                    manners=Manners(),
                    start=None,
                ),
            )
        world.context.database.close()
        return Template(folder, world.tokens, sha)
