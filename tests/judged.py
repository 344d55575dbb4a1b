"""A Hub with a patch of two tiny tensors, and ports that are judged already: no model runs.

The bot's steps are called as functions, which is what DBOS makes of them outside of a workflow.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.numpy import save

from bot.context import Context, job_of
from bot.hub import Hub, HubPublisher
from bot.running.workflow import Bot
from bot.settings import Settings
from judging.evidence import Evidence
from judging.verdict import Verdict
from localhub.server import Server
from registry import following, ports, records
from registry.database import Database
from registry.following import Head
from registry.models import Patch, Port, PortState, Release, Rule, Subscription

BASE, PATCH, PORTED = "vendor/base", "owner/patch", "owner/ported"
CARD = b"---\nlicense: mit\n---\nRelease "
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "base_model_name_or_path": BASE, "r": 2, "lora_alpha": 2,
    "target_modules": ["q_proj"], "bias": "none",
}  # fmt: skip


class Killed(Exception):
    """The process died here."""


class Mortal(HubPublisher):
    """A publisher that dies right after it wrote for the nth time, if `lives` says so."""

    lives: int | None = None

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("create", "branch", "commit", "tag", "retitle", "close_request"):
            return found

        def then_maybe_die(*args: Any, **kwargs: Any) -> Any:
            done = found(*args, **kwargs)
            if self.lives is not None:
                self.lives -= 1
                if self.lives < 0:
                    self.lives = None
                    raise Killed(name)
            return done

        return then_maybe_die


class Judged:
    """`api` is the owner's client; the bot works with the same account."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        token = server.add_user("owner", orgs=("vendor",))
        self.api = HfApi(endpoint=server.endpoint, token=token)
        home = Settings(home=folder / "home")
        home.home.mkdir()
        hub = Hub(server.endpoint, token)
        self.publisher = Mortal(hub)
        self.context = Context(hub, self.publisher, Database(home.registry_url), home)
        self.bot = object.__new__(Bot)  # there may be one of a name in a process
        self.bot.context = self.context
        self.base_sha = self.push(BASE, {"README.md": CARD})
        weights = {
            f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": np.zeros(
                shape, np.float32
            )
            for side, shape in (("A", (2, 4)), ("B", (4, 2)))
        }
        pinned = CONFIG | {"revision": self.base_sha}
        self.files = {
            "adapter_config.json": json.dumps(pinned).encode(),
            "adapter_model.safetensors": save(weights),
        }
        self.patch_sha = self.push(PATCH, self.files)

    def push(self, repo: str, files: dict[str, bytes]) -> str:
        self.api.create_repo(repo, exist_ok=True)
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        return self.api.create_commit(repo, added, commit_message="A commit").oid

    def subscribe(self, to: str = PORTED, **manners: str) -> int:
        with self.context.database.session() as session:
            patch = Patch(
                repo=PATCH, owner="owner", sha=self.patch_sha, kind="LoRA", portability="A",
                base_repo=BASE, base_sha=self.base_sha, license=None, evaluation=None,
            )  # fmt: skip
            patch = records.add_patch(session, patch)
            head = Head(BASE, "main", self.base_sha)
            base = following.follow(session, Rule.REF, BASE, "main", [head])
            made = records.subscribe(session, patch, base, to, "adapter", None, None, manners)
            return made.id

    def target(self) -> str:
        """A repo that nothing goes to yet."""
        with self.context.database.session() as session:
            return f"owner/ported-{session.query(Subscription).count()}"

    def release(self, sha: str | None = None) -> int:
        """The id of a release that moved weights, as it is said."""
        sha = sha or self.push(BASE, {"README.md": CARD + str(len(self.releases())).encode()})
        with self.context.database.session() as session:
            (base,) = following.followed_bases(session)
            (release,) = following.observe(session, base.id, [Head(BASE, "main", sha)])
            release.change, release.reason = "weights", "Every tensor moved."
            return release.id

    def releases(self) -> list[Release]:
        with self.context.database.session() as session:
            return list(session.query(Release).order_by(Release.id))

    def judge(self, subscription_id: int, action: Any = "ask", release: int | None = None) -> str:
        """The key of a port to a (new) release that was made and has this verdict."""
        release = release or self.release()
        with self.context.database.session() as session:
            subscription = session.get_one(Subscription, subscription_id)
            job = job_of(subscription, session.get_one(Release, release))
            ports.create_ports(session, release, {subscription_id: asdict(job)})
        self.make(job.key, action)
        return job.key

    def make(self, key: str, action: Any) -> None:
        """What the workflow does up to the verdict."""
        made = {}
        own = json.loads(self.files["adapter_config.json"]) | {"of": key}
        files = self.files | {"adapter_config.json": json.dumps(own).encode()}
        for name, content in files.items():
            path = self.context.settings.work(key) / "adapter" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            made[f"adapter/{name}"] = hashlib.sha256(content).hexdigest()
        verdict = Verdict(action=action, reason=f"The evidence says {action}.")
        with self.context.database.session() as session:
            ports.update_port(
                session, key, state=PortState.JUDGED, reason=verdict.reason, made=made,
                evidence=Evidence().model_dump(), verdict=verdict.model_dump(),
            )  # fmt: skip

    def publish(self, key: str, lives: int | None = None) -> None:
        """The step, again and again until it gets to its end; killed at its nth write, once."""
        self.publisher.lives = lives
        while True:
            try:
                self.bot.publish(key, self.read(key).attempt, {})
            except Killed:
                continue
            self.publisher.lives = None
            return

    def read(self, key: str) -> Port:
        with self.context.database.session() as session:
            return session.get_one(Port, key)

    def change(self, key: str, **changes: Any) -> None:
        with self.context.database.session() as session:
            ports.update_port(session, key, **changes)

    def control(self, what: Callable[..., Any], *args: Any) -> Any:
        with self.context.database.session() as session:
            return what(session, *args)

    def with_settings(self, **changes: Any) -> Context:
        settings = self.context.settings.model_copy(update=changes)
        return replace(self.context, settings=settings)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    folder = tmp_path_factory.mktemp("judged")
    with Server(folder / "hub") as server:
        made = Judged(server, folder)
        yield made
        made.context.database.close()


@pytest.fixture
def target(judged: Judged) -> str:
    """A repo of this test's own."""
    return judged.target()
