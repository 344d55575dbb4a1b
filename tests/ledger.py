"""Whether the Hub, the registry and the disk agree: read with the plain client and plain SQL.

Shares no code with the bot but the arithmetic of a port, which serves as the oracle of its bytes.
"""

import hashlib
import json
import re
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from packaging.version import Version

from porting import Folder, merge, plan, repoint
from tests.faulty import BASE, CARD, JUDGED, FaultyWorld, Subscribed, read

TRAILER = re.compile(r"^PortLLM-Port: (port-\w+)$", re.MULTILINE)
GENERATED = re.compile(r"<!-- portllm:begin.*?<!-- portllm:end -->\n?", re.DOTALL)
HEAD = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)
LOCK, CHART = "portllm.lock.json", "portllm-chart.svg"
OPEN = ("waiting", "queued", "running", "judged")
DONE = ("published", "asked")
LOST = ("failed", "refused")  # a newer port may have taken its place
ENDS = {("publish", "published"), ("ask", "asked"), ("reject", "rejected")}
TABLES = ("ports", "releases", "subscriptions", "events")
QUIET = ("rejected", "declined", "superseded", "cancelled", "rolled back", "withdrawn")
STAY = {"registry.db", "workflows.db", "bot.lock", "work", "scratch", "lm-eval"}  # of its home


def violations(world: FaultyWorld) -> list[str]:
    """What is not as it should be once all is quiet; one sentence each."""
    ledger = Ledger(world)
    return [
        *ledger.unfinished(),
        *(found for each in ledger.subscribed for found in ledger.of_subscription(each)),
        *(found for each in ledger.subscribed for found in ledger.of_target(each)),
        *left_behind(world),
    ]


def left_behind(world: FaultyWorld) -> Iterator[str]:
    """Files of a bot that lives no more."""
    for path in world.home.iterdir():
        if path.name.removesuffix("-wal").removesuffix("-shm") not in STAY:
            yield f"left in its home: {path.name}"
    for folder in (world.home / "work", world.home / "scratch", world.scratch):
        if folder.exists():
            yield from (f"left in {folder.name}: {path.name}" for path in folder.iterdir())
    for path in (world.folder / "hf").rglob("*.incomplete"):
        yield f"left in the client's cache: {path.name}"


@dataclass(frozen=True)
class Row:
    """A port, as the registry has it."""

    key: str
    state: str
    reason: str
    to: str
    sha: str
    url: str | None
    published_sha: str | None
    action: str | None


class Ledger:
    def __init__(self, world: FaultyWorld) -> None:
        self.world, self.api = world, HfApi(world.api.endpoint, token=world.tokens["owner"])
        self.registry = _tables(world.home / "registry.db", *TABLES)
        active = {
            each["to_repo"]: each["id"]
            for each in self.registry["subscriptions"]
            if each["ended_at"] is None
        }
        self.subscribed = [each for each in world.subscribed if each.to in active]
        self._ids = active
        self._read: dict[tuple[str, str, str], bytes] = {}
        self._trees: dict[tuple[str, str], dict[str, str]] = {}
        self._made: dict[tuple[str, str], dict[str, str]] = {}

    def unfinished(self) -> Iterator[str]:
        for port in self.registry["ports"]:
            if port["state"] in OPEN:
                yield f"{port['key']} is not done: {port['state']}: {port['reason']}"
            elif port["state"] not in (*DONE, *QUIET, *LOST):
                yield f"{port['key']} is {port['state']}: {port['reason']}"
        for release in self.registry["releases"]:
            if release["change"] is None:
                yield f"release {release['sha'][:7]} is not classified: {release['reason']}"
        for event in self.registry["events"]:
            if event["blame"] == "ours":
                yield f"a bug at {event['port_key']}: {event['text']}"
        memory = _tables(self.world.home / "workflows.db", "workflow_status")
        for flow in memory["workflow_status"]:
            if flow["status"] not in ("SUCCESS", "ERROR", "CANCELLED"):
                yield f"workflow {flow['workflow_uuid']} is {flow['status']}"

    def of_subscription(self, subscribed: Subscribed) -> Iterator[str]:
        """The newest weights have exactly one port, and it is done."""
        head = self._followed(subscribed)
        ports = self._ports(subscribed)
        if self._weights(BASE, head) == self._weights(BASE, self.world.first_sha):
            return
        if not ports:
            yield f"{subscribed.to}: {head[:7]} has no port"
            return
        newest = ports[-1]
        if self._weights(BASE, newest.sha) != self._weights(BASE, head):
            yield f"{subscribed.to}: its newest port is to {newest.sha[:7]}, not {head[:7]}"
        if (newest.action, newest.state) not in ENDS or (
            subscribed.patch != JUDGED and newest.action != "ask"
        ):
            said = f"{newest.state} by the verdict {newest.action}"
            yield f"{subscribed.to}: its newest port, {newest.key}, is {said}"

    def of_target(self, subscribed: Subscribed) -> Iterator[str]:
        repo, ports = subscribed.to, {port.key: port for port in self._ports(subscribed)}
        if not self.api.repo_exists(repo):
            if lying := [key for key, port in ports.items() if port.state in DONE]:
                yield f"{repo} does not exist, but has {lying}"
            return
        commits = list(reversed(self.api.list_repo_commits(repo)))
        tags = {tag.name: tag.target_commit for tag in self.api.list_repo_refs(repo).tags}
        by_key: dict[str, list[str]] = defaultdict(list)
        tagged: dict[str, str] = {}
        before = commits[0].commit_id
        for commit in commits[1:]:
            for key in TRAILER.findall(commit.message):
                by_key[key].append(commit.commit_id)
                if key in ports:
                    tagged[f"base-{ports[key].sha[:7]}"] = commit.commit_id
                yield from self._whole(subscribed, commit.commit_id, ports.get(key))
                yield from self._keeps_words(repo, before, commit.commit_id)
            before = commit.commit_id
        for key, port in ports.items():
            found = by_key.pop(key, [])
            if found != ([port.published_sha] if port.state == "published" else []):
                yield f"{repo}: {key} is {port.state}, and main has {len(found)} commits of it"
        for key in by_key:
            yield f"{repo}: a commit of {key}, which is no port"
        if tags != tagged:
            yield f"{repo}: its tags are {tags}, and should be {tagged}"
        yield from self._requests(subscribed, ports)

    def _requests(self, subscribed: Subscribed, ports: dict[str, Row]) -> Iterator[str]:
        """Each port that asks has one open pull request, and each of those a port that asks."""
        repo = subscribed.to
        asks = {key for key, port in ports.items() if port.state == "asked"}
        requests = list(self.api.get_repo_discussions(repo, discussion_type="pull_request"))
        is_open = {each.num: each for each in requests if each.status == "open"}
        if len(is_open) != len(asks):
            titles = [each.title for each in is_open.values()]
            yield f"{repo}: {len(asks)} ports ask, by the open pull requests {titles}"
        for key in asks:
            port = ports[key]
            number = int((port.url or "/0").rpartition("/")[2])
            if number not in is_open or key not in is_open[number].title:
                yield f"{repo}: {key} asks, but not at {port.url}"
                continue
            ref = self.api.model_info(repo, revision=f"refs/pr/{number}").sha
            assert ref is not None
            yield from self._whole(subscribed, ref, port)

    def _whole(self, subscribed: Subscribed, sha: str, port: Row | None) -> Iterator[str]:
        """The commit has all that a port consists of, and nothing of another one."""
        what = f"{subscribed.to}@{sha[:7]}"
        files = self._files(subscribed.to, sha)
        if port is None or LOCK not in files or CARD not in files:
            yield f"{what}: no port, no lock or no card among {sorted(files)}"
            return
        lock = json.loads(self._content(subscribed.to, LOCK, sha))
        if lock["key"] != port.key or lock["new_base"]["sha"] != port.sha:
            yield f"{what}: the lock is that of {lock['key']}"
        if (extra := set(files) - {*lock["files"], CARD, CHART, LOCK, ".gitattributes"}) != set():
            yield f"{what}: files of no port: {sorted(extra)}"
        for name, digest in lock["files"].items():
            found = hashlib.sha256(self._content(subscribed.to, name, sha)).hexdigest()
            if found != digest:
                yield f"{what}: {name} is not what its lock says"
        for name, digest in self._oracle(subscribed, port.sha).items():
            if lock["files"].get(name) != digest:
                yield f"{what}: {name} is not the port to {port.sha[:7]}"

    def _keeps_words(self, repo: str, before: str, after: str) -> Iterator[str]:
        """What stood in the card before a port, outside of the generated part, stands there yet."""
        was, now = (_own_words(self._card(repo, sha)) for sha in (before, after))
        if not (now == was or (GENERATED.search(self._card(repo, before)) is None and was in now)):
            yield f"{repo}@{after[:7]}: the card's own words were {was!r} and are {now!r}"

    def _card(self, repo: str, sha: str) -> str:
        return self._content(repo, CARD, sha).decode() if CARD in self._files(repo, sha) else ""

    def _followed(self, subscribed: Subscribed) -> str:
        if "@" not in subscribed.follow:
            sha = self.api.model_info(BASE).sha
            assert sha is not None
            return sha
        tags = {tag.name: tag.target_commit for tag in self.api.list_repo_refs(BASE).tags}
        return tags[max(tags, key=lambda name: Version(name))]

    def _weights(self, repo: str, sha: str) -> dict[str, str]:
        files = self._files(repo, sha)
        return {name: oid for name, oid in files.items() if name.endswith(".safetensors")}

    def _files(self, repo: str, sha: str) -> dict[str, str]:
        if (repo, sha) not in self._trees:
            tree = self.api.list_repo_tree(repo, recursive=True, revision=sha)
            self._trees[repo, sha] = {
                each.path: each.blob_id for each in tree if isinstance(each, RepoFile)
            }
        return self._trees[repo, sha]

    def _content(self, repo: str, file: str, sha: str) -> bytes:
        key = (repo, file, self._files(repo, sha)[file])
        if key not in self._read:
            self._read[key] = read(self.api, repo, file, sha)
        return self._read[key]

    def _oracle(self, subscribed: Subscribed, sha: str) -> dict[str, str]:
        """sha256 of the weights of the port to the base's commit, by name, made here and now."""
        if (subscribed.to, sha) not in self._made:
            base, form = self.world.folder / "bases" / sha, subscribed.form
            patch, made = self.world.folder / "patches" / subscribed.patch, {}
            with tempfile.TemporaryDirectory() as out:
                if form != "adapter":
                    planned = plan(Folder(base), Folder(patch), as_="merged")
                    made |= merge(planned, base, patch, Path(out, "merged"))
                if form != "merged":
                    written = repoint(patch, Path(out, "adapter"), BASE, sha)
                    below = "adapter/" if form == "both" else ""
                    made |= {f"{below}{name}": digest for name, digest in written.items()}
            self._made[subscribed.to, sha] = {
                name: digest for name, digest in made.items() if name.endswith(".safetensors")
            }
        return self._made[subscribed.to, sha]

    def _ports(self, subscribed: Subscribed) -> list[Row]:
        """Of the subscription, the newest release last."""
        return [
            Row(
                each["key"],
                each["state"],
                each["reason"],
                job["to_repo"],
                job["new_sha"],
                each["url"],
                each["published_sha"],
                each["action"],
            )
            for each in sorted(self.registry["ports"], key=lambda each: each["release_id"])
            if each["subscription_id"] == self._ids[subscribed.to]
            for job in [json.loads(each["job"])]
        ]


def _own_words(card: str) -> str:
    return GENERATED.sub("", HEAD.sub("", card))


def _tables(path: Path, *names: str) -> dict[str, list[dict[str, Any]]]:
    database = sqlite3.connect(path)
    database.row_factory = sqlite3.Row
    try:
        return {
            name: [dict(row) for row in database.execute(f"SELECT * FROM {name}")] for name in names
        }
    finally:
        database.close()
