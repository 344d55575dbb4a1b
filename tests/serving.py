"""`portllm serve` in this process, on a Hub and a registry with one base that is followed."""

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import uvicorn
from huggingface_hub import HfApi
from sqlalchemy import select
from starlette.applications import Starlette

from bot.context import Context
from bot.hub import Hub, HubPublisher
from bot.serve.app import Webhooks, config_of, create_app
from bot.serve.registration import Registration
from bot.settings import Settings
from localhub.server import Server
from registry.database import Database
from registry.following import Head, follow
from registry.models import Base, Patch, Port, PortState, Release, Rule, Subscription

SECRET = "a secret of thirty-two characters"
BASE, TARGET = "vendor/base", "owner/ported"


def until(done: Callable[[], bool]) -> None:
    """Wait for what comes of itself, in time."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, "it did not come about"
        threading.Event().wait(0.01)


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """The address that it is served at, as `portllm serve` does."""
    config = config_of(app)
    config.port = 0
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Served:
    """A Hub with one base that is followed; entered, `portllm serve` in this process.

    `answers` are the repos whose pull requests were followed up.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        token = server.add_user("owner", orgs=("vendor",))
        self.api = HfApi(endpoint=server.endpoint, token=token)
        self.commit(BASE)
        hub = Hub(server.endpoint, token)
        folder.mkdir()
        settings = Settings(home=folder, poll_seconds=3600)
        database = Database(settings.registry_url)
        self.context = Context(hub, HubPublisher(hub), database, settings)
        self.answers: list[str] = []
        self.base = self.subscribe()

    def commit(self, repo: str) -> str:
        self.api.create_repo(repo, exist_ok=True)
        content = random.randbytes(8)
        return self.api.upload_file(path_or_fileobj=content, path_in_repo="a.bin", repo_id=repo).oid

    def subscribe(
        self, rule: Rule = Rule.REF, repo: str = BASE, ref: str = "main", to: str = TARGET
    ) -> int:
        """The id of the base that is followed."""
        head = Head(repo, ref, self.api.model_info(repo).sha or "") if "*" not in repo else None
        with self.context.database.session() as session:
            heads = [head or Head(repo, ref, "0" * 40)] if rule != Rule.TREE else []
            base = follow(session, rule, repo, ref, heads)
            patch = Patch(
                repo=f"owner/patch-{random.random()}",
                owner="owner",
                sha="1" * 40,
                kind="lora",
                portability="A",
                base_repo=repo,
                base_sha="2" * 40,
            )
            subscription = Subscription(
                patch=patch,
                base=base,
                to_repo=to,
                form="adapter",
                from_repo=repo,
                from_sha=base.head_sha,
                settled_repo=repo,
                settled_sha=base.head_sha,
            )
            session.add(subscription)
            session.flush()
            return base.id

    def asks(self, to_repo: str) -> None:
        """A port that waits for an answer."""
        with self.context.database.session() as session:
            subscription = session.scalars(select(Subscription)).first()
            release = Release(
                base_id=self.base,
                **{"from_repo": BASE, "from_ref": "main", "from_sha": "3" * 40},
                **{"repo": BASE, "ref": "main", "sha": "4" * 40},
            )
            session.add_all((release, subscription))
            session.flush()
            port = Port(
                key=f"port-{random.randbytes(8).hex()}",
                subscription_id=subscription.id,
                release_id=release.id,
                job={"to_repo": to_repo},
                state=PortState.ASKED,
                reason="",
            )
            session.add(port)

    def follow_up(self, context: Context, repo: str) -> None:
        assert context is self.context
        self.answers.append(repo)

    def __enter__(self) -> "Served":
        webhooks = Webhooks(SECRET, None, self.follow_up)
        self._serving = serving(create_app(self.context, webhooks))
        self.url = self._serving.__enter__()
        self.session = requests.Session()
        return self

    def __exit__(self, *_: object) -> None:
        self._serving.__exit__(None, None, None)

    def register(self) -> None:
        Registration(self.context, f"{self.url}/webhooks", SECRET).keep()

    def post(self, body: Any, secret: str = SECRET, kind: str = "application/json") -> int:
        headers = {"X-Webhook-Secret": secret, "Content-Type": kind}
        data = json.dumps(body) if isinstance(body, dict) else body
        return self.session.post(f"{self.url}/webhooks", data=data, headers=headers).status_code

    def counts(self, metric: str) -> dict[str, int]:
        shown = requests.get(f"{self.url}/metrics").text
        prefix = f"portllm_{metric}_total{{outcome="
        lines = [line[len(prefix) :] for line in shown.splitlines() if line.startswith(prefix)]
        return {
            name.strip('"'): int(float(count))
            for name, count in (line.rsplit("} ", 1) for line in lines)
        }

    def heads(self) -> tuple[str, list[tuple[str, str]]]:
        """Where the base stands, and the steps that it made."""
        with self.context.database.session() as session:
            rows = session.scalars(select(Release).order_by(Release.id))
            steps = [(row.from_sha, row.sha) for row in rows]
            return session.get_one(Base, self.base).head_sha, steps

    def changes(self) -> list[str | None]:
        """Of the releases: what their workflows found, if they have begun."""
        with self.context.database.session() as session:
            return list(session.scalars(select(Release.change)))

    def looked_at(self) -> object:
        with self.context.database.session() as session:
            return session.get_one(Base, self.base).looked_at

    def asked(self) -> int:
        """How often the Hub was asked where a repo stands."""
        return sum(1 for _ in self.server.traffic.of(r"^/api/models/[^/]+/[^/]+/revision/", "GET"))


def event(repo: str = BASE, scope: str = "repo.content", **more: Any) -> dict[str, Any]:
    return {
        "event": {"action": "update", "scope": scope},
        "repo": {"type": "model", "name": repo},
        **more,
    }


def hooks(served: Served) -> dict[str, Any]:
    """Those of the account, by address."""
    found = defaultdict(list)
    for hook in served.api.list_webhooks():
        found[hook.url].append(hook)
    return found
