"""Webhooks: kept in `webhooks.json`, delivered by worker threads that try a few times.

What waits for delivery is in memory: a webhook is a hint, and a restart loses it. A webhook that
names a job instead of an address has one recorded for each event.
"""

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from localhub.files import read_json, write_json
from localhub.jobs import JOBS, Jobs
from localhub.moves import main_head
from localhub.repos import Repo

Moved = tuple[str, str | None, str | None]  # ref, old sha, new sha
BACKOFF = (0.5, 2.0, 8.0)  # seconds before each further try


@dataclass(frozen=True)
class Delivery:
    """What one webhook is to be told of one event; the `id` is that of all its copies and tries."""

    hook: dict[str, Any]
    payload: dict[str, Any]
    id: str = field(default_factory=lambda: secrets.token_hex(12))


def _at_once(_: Delivery) -> Sequence[float]:
    return (0.0,)


class Webhooks:
    """Every webhook as `{id, user, url or job, watched, domains, secret, disabled}`.

    `plan` may be replaced, for tests of receivers: it is asked about every delivery, in the order
    of the events, and names the seconds to wait before each copy that is sent. None drops the
    delivery, two duplicate it, and unequal waits reorder what is sent.
    """

    def __init__(self, root: Path, jobs: Jobs) -> None:
        self.plan: Callable[[Delivery], Sequence[float]] = _at_once
        self._jobs = jobs
        self._path = root / "webhooks.json"
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._workers = ThreadPoolExecutor(16, thread_name_prefix="webhook")

    def close(self) -> None:
        self._closing.set()
        self._workers.shutdown(wait=True, cancel_futures=True)

    def of(self, user: str) -> list[dict[str, Any]]:
        return [hook for hook in read_json(self._path, []) if hook["user"] == user]

    def put(self, hook: dict[str, Any]) -> None:
        """Add the webhook, or replace the one with its id."""
        with self._lock:
            others = [each for each in read_json(self._path, []) if each["id"] != hook["id"]]
            write_json(self._path, [*others, hook])

    def delete(self, hook_id: str) -> None:
        with self._lock:
            hooks = [each for each in read_json(self._path, []) if each["id"] != hook_id]
            write_json(self._path, hooks)

    def repo_changed(self, repo: Repo, base: str, action: str, **more: Any) -> None:
        """A repository was created, deleted or moved."""
        self._send(repo, base, {"action": action, "scope": "repo"}, more)

    def config_changed(self, repo: Repo, base: str, updated: dict[str, Any]) -> None:
        event = {"action": "update", "scope": "repo.config"}
        told = {key: value for key, value in updated.items() if key == "private"}
        self._send(repo, base, event, {"updatedConfig": told})

    def content_changed(self, repo: Repo, base: str, moved: Iterable[Moved]) -> None:
        """Refs moved. A sha is None where the ref did not exist before or does not any more."""
        refs = [{"ref": ref, "oldSha": old, "newSha": new} for ref, old, new in moved]
        event = {"action": "update", "scope": "repo.content"}
        self._send(repo, base, event, {"updatedRefs": refs})

    def discussed(self, repo: Repo, base: str, discussion: dict[str, Any], action: str) -> None:
        shown = _discussion(repo, base, discussion)
        self._send(repo, base, {"action": action, "scope": "discussion"}, {"discussion": shown})

    def commented(
        self,
        repo: Repo,
        base: str,
        discussion: dict[str, Any],
        comment: dict[str, Any],
        action: str,
    ) -> None:
        shown = _discussion(repo, base, discussion)
        more = {
            "discussion": shown,
            "comment": {
                "id": comment["id"],
                "author": {"id": comment["author"]["name"]},
                "hidden": False,
                "content": comment["data"]["latest"]["raw"],
                "url": {"web": f"{shown['url']['web']}#{comment['id']}"},
            },
        }
        self._send(repo, base, {"action": action, "scope": "discussion.comment"}, more)

    def _send(self, repo: Repo, base: str, event: dict[str, str], more: dict[str, Any]) -> None:
        domain = event["scope"].split(".")[0]
        hooks = [hook for hook in read_json(self._path, []) if _watches(hook, repo, domain)]
        if hooks:
            payload = {"event": event, "repo": _repo(repo, base), **more}
            if domain == "repo":  # the Hub tells it in no other event
                payload["repo"]["headSha"] = main_head(repo.path)
            for hook in hooks:
                told = {**payload, "webhook": {"id": hook["id"], "version": 3}}
                delivery = Delivery(hook, told)
                for wait in self.plan(delivery):
                    self._workers.submit(self._later, delivery, wait)

    def _later(self, delivery: Delivery, seconds: float) -> None:
        if not self._closing.wait(seconds):
            self.deliver(delivery)

    def deliver(self, delivery: Delivery) -> None:
        """Send it now, and wait until it has arrived or several tries have failed."""
        hook = delivery.hook
        body = json.dumps(delivery.payload)
        if hook.get("job"):
            self._run(delivery, body)
            return
        headers = {"Content-Type": "application/json"}
        if hook["secret"]:
            headers["X-Webhook-Secret"] = hook["secret"]
        for wait in (*BACKOFF, None):
            try:
                answer = requests.post(
                    hook["url"], data=body, headers=headers, timeout=10, allow_redirects=False
                )
                if answer.status_code < 500 and answer.status_code != 429:
                    return
            except requests.RequestException:
                pass  # the receiver is away: try again
            if wait is None or self._closing.wait(wait):
                return

    def _run(self, delivery: Delivery, payload: str) -> None:
        """Record the job an event starts (hub docs, "Webhooks Automation")."""
        hook, repo = delivery.hook, delivery.payload["repo"]
        told = {
            "WEBHOOK_PAYLOAD": payload,
            "WEBHOOK_REPO_ID": repo["name"],
            "WEBHOOK_REPO_TYPE": repo["type"],
            "WEBHOOK_ID": delivery.id,
            **({"WEBHOOK_SECRET": hook["secret"]} if hook["secret"] else {}),
        }
        body = {**hook["job"], "environment": {**(hook["job"].get("environment") or {}), **told}}
        self._jobs.add(JOBS, hook["jobOwner"], body, {"type": "webhook", "id": hook["id"]})


def _watches(hook: dict[str, Any], repo: Repo, domain: str) -> bool:
    names = {repo.kind: repo.id, "user": repo.namespace, "org": repo.namespace}
    return (
        not hook["disabled"]
        and domain in hook["domains"]
        and (not repo.settings["private"] or repo.namespace in hook["namespaces"])
        and any(names.get(item["type"]) == item["name"] for item in hook["watched"])
    )


def _repo(repo: Repo, base: str) -> dict[str, Any]:
    settings = repo.settings
    return {
        "type": repo.kind,
        "name": repo.id,
        "id": settings["_id"],
        "private": settings["private"],
        "url": {"web": f"{base}/{repo.web_path}", "api": f"{base}/{repo.api_path}"},
        "owner": {"id": repo.namespace},
    }


def _discussion(repo: Repo, base: str, discussion: dict[str, Any]) -> dict[str, Any]:
    num = discussion["num"]
    shown = {
        "id": f"{repo.settings['_id']}-{num}",
        "num": num,
        "title": discussion["title"],
        "status": discussion["status"],
        "isPullRequest": discussion["isPullRequest"],
        "author": {"id": discussion["author"]["name"]},
        "url": {
            "web": f"{base}/{repo.web_path}/discussions/{num}",
            "api": f"{base}/{repo.api_path}/discussions/{num}",
        },
    }
    if discussion["isPullRequest"]:
        shown["changes"] = discussion["changes"]
    return shown


def new_hook(user: str, namespaces: list[str]) -> dict[str, Any]:
    """A webhook still without an address; `namespaces` are those whose private repos it may see."""
    return {
        "id": secrets.token_hex(12),
        "user": user,
        "namespaces": namespaces,
        "created": time.time(),
        "disabled": False,
        "url": None,
        "job": None,
        "secret": None,
    }
