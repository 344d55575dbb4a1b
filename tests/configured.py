"""A Hub with patches that have a portllm.yaml, and a bot that may die at any write."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from bot.config.discovery import TITLE, look_for_configs
from bot.config.schema import FILE
from bot.context import Context
from bot.hub import Hub, HubPublisher
from bot.hub.tagged import TAG
from bot.settings import Settings
from localhub.server import Server
from registry.database import Database
from registry.models import Config, Subscription
from registry.status import shown
from tests.world import BASE, World

CARD = f"---\nlicense: mit\ntags: [{TAG}]\n---\nMine\n"
UNTAGGED = CARD.replace(TAG, "lora")


class Killed(Exception):
    """The process died here."""


class Mortal(Database):
    """Dies right after a transaction, or a write to the Hub, once `lives` have passed."""

    lives: int | None = None

    def passed(self) -> None:
        if self.lives is not None:
            self.lives -= 1
            if self.lives < 0:
                self.lives = None
                raise Killed

    @contextmanager
    def session(self) -> Iterator[Any]:
        with super().session() as session:
            yield session
        self.passed()


class Writing(HubPublisher):
    passed: Callable[[], None]

    def commit(self, *arguments: Any, **options: Any) -> Any:
        done = super().commit(*arguments, **options)
        self.passed()
        return done

    def discuss(self, *arguments: Any) -> None:
        super().discuss(*arguments)
        self.passed()


class Files:
    """A Hub with a base; the bot is `robot`, and obeys its own files, `owner`'s and `other`'s."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.world = server, World(server, folder)
        self.api, self.count = self.world.api, 0
        self.other = HfApi(server.endpoint, server.add_user("other", orgs=("theirs",)))
        robot = server.add_user("robot", orgs=("vendor", "theirs"))
        home = Settings(home=folder / "robot", owners="owner, other")
        home.home.mkdir()
        hub = Hub(server.endpoint, robot)
        self.records = Mortal(home.registry_url)
        publisher = Writing(hub)
        publisher.passed = self.records.passed
        self.context = Context(hub, publisher, self.records, home)
        self.world.push_patch("patched", revision=self.world.base_sha)
        names = ("adapter_config.json", "adapter_model.safetensors",
                 "eval/portllm-eval.json", "eval/items.jsonl")  # fmt: skip
        self.patch = {name: (self.world.patch / name).read_bytes() for name in names}
        self.other.create_repo("theirs/base", private=True)

    def repo(self, owner: str = "owner", **files: Any) -> str:
        """A patch of its own, with the tag; `file` is what its portllm.yaml says."""
        self.count += 1
        repo = f"{owner}/patch-{self.count}"
        api = self.other if owner == "other" else self.api
        api.create_repo(repo)
        self.push(repo, self.patch | {"README.md": CARD}, **files)
        return repo

    def push(self, repo: str, files: dict[str, Any] | None = None, file: Any = None) -> str:
        named = dict(files or {})
        if file is not None:
            named[FILE] = file if isinstance(file, bytes) else yaml.safe_dump(file).encode()
        operations = [
            CommitOperationDelete(name)
            if content is None
            else CommitOperationAdd(name, content.encode() if isinstance(content, str) else content)
            for name, content in named.items()
        ]
        api = self.other if repo.startswith("other/") else self.api
        return api.create_commit(repo, operations, commit_message="An edit").oid

    def look(self) -> None:
        look_for_configs(self.context)

    def until_done(self, lives: int | None = None) -> bool:
        """Look, and once more if that was killed. Returns whether it was."""
        self.records.lives = lives
        try:
            self.look()
        except Killed:
            self.look()
            return True
        finally:
            self.records.lives = None
        return False

    def subscribed(self, repo: str, ended: bool = False) -> list[Subscription]:
        with self.records.session() as session:
            found = [s for s in session.query(Subscription) if s.patch.repo == repo]
            for each in found:
                shown(each.base)
            return [each for each in found if ended or each.ended_at is None]

    def follows(self, repo: str) -> dict[str, str]:
        return {each.to_repo: shown(each.base) for each in self.subscribed(repo)}

    def problem(self, repo: str) -> str | None:
        with self.records.session() as session:
            row = session.get(Config, repo)
            return row.problem if row else None

    def said(self, repo: str) -> list[str]:
        """Everything that was said in our discussions in the repo."""
        rows = self.api.get_repo_discussions(repo, discussion_type="discussion")
        return [
            event.content
            for row in rows
            if row.title == TITLE
            for event in self.api.get_discussion_details(repo, row.num).events
            if event.type == "comment"
        ]


def one(to: str, **more: Any) -> dict[str, Any]:
    return {"follow": BASE, "to": to} | more
