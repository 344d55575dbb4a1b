"""A dry run says what would be pushed, to the byte; it changes neither the Hub nor the records."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from bot.context import Context
from bot.hub import HubRepo
from bot.publishing.dry_run import DryRun, pushed, rehearsal
from bot.running.workflow import Bot
from localhub.server import Server
from registry.database import Database
from registry.models import Port, PortState, Record
from registry.ports import AT_WORK
from tests.judged import Judged
from tests.world import BASE, PORTED, Portllm, World


@pytest.fixture
def judged(hub: Server, tmp_path: Path) -> Iterator[Judged]:
    made = Judged(hub, tmp_path)
    yield made
    made.context.database.close()


def rows(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    with database.engine.connect() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(select(table))), key=str)
            for table in Record.metadata.sorted_tables
        }


def written(folder: Path) -> dict[str, str]:
    """The git blob id of every file, and its sha256."""
    found = {}
    for path in (each for each in folder.rglob("*") if each.is_file()):
        content, name = path.read_bytes(), path.relative_to(folder).as_posix()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        large = path.suffix == ".safetensors"
        found[name] = hashlib.sha256(content).hexdigest() if large else blob
    return found


@pytest.mark.parametrize("action", ["publish", "ask"])
def test_what_is_written_is_what_is_pushed_after_it(judged: Judged, action: str) -> None:
    into = judged.subscribe(target := judged.target())
    key = judged.judge(into, action)
    before, folder = judged.read(key), judged.context.settings.home / "dry-run"
    dry = object.__new__(Bot)
    dry.context = replace(judged.context, publisher=DryRun(judged.context.hub, folder))
    dry.publish(key, 1, {})
    assert not judged.context.hub.exists(target)
    ((repo, to, title, where),) = pushed(judged.context.settings)
    assert (repo, title) == (target, f"Port to {before.job['new_repo']}@"
        f"{before.job['new_sha'][:7]} ({key})")  # fmt: skip
    about = json.loads((where / "commit.json").read_text())
    assert about["parent"] is None and f"PortLLM-Port: {key}" in about["description"]

    judged.change(key, state=PortState.JUDGED, published_at=None, url=None)
    judged.publish(key)
    revision = {"publish": "main", "ask": "refs/pr/1"}[action]
    assert to == {"publish": "main", "ask": "new pull request"}[action]
    there = HubRepo(judged.context.hub, target, judged.context.hub.head(target, revision))
    files = {name: entry.digest for name, entry in there.files().items()}
    assert files.pop(".gitattributes")
    assert written(where / "files") == files


def test_a_copy_of_the_records_is_worked_on(judged: Judged) -> None:
    into = judged.subscribe(judged.target(), schedule="* * * * *")
    at_work = judged.judge(into, "publish")
    done = judged.judge(into, "ask")
    judged.change(at_work, state=PortState.RUNNING)
    judged.publish(done)
    before = rows(judged.context.database)
    with rehearsal(judged.context) as pretended:
        copied = rows(pretended.database)
        for table in ("patches", "bases", "releases", "subscriptions", "controls", "scores"):
            assert copied[table] == before[table]
        assert len(copied["ports"]) == 2 and before["events"] and not copied["events"]
        states = {row[0]: row[4] for row in copied["ports"]}
        assert states == {at_work: PortState.WAITING, done: PortState.ASKED}
        assert not set(states.values()) & set(AT_WORK)
        _forget(pretended)
    assert rows(judged.context.database) == before
    home = judged.context.settings.home
    assert [path.name for path in (home / "dry-run").iterdir()] == []


def _forget(context: Context) -> None:
    with context.database.engine.begin() as connection:
        for table in reversed(Record.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture
def world(hub: Server, tmp_path: Path) -> World:
    return World(hub, tmp_path)


def test_the_bot_runs_dry(world: World, portllm: Portllm) -> None:
    world.subscribed("adapter", evaluated=False)
    world.drift()
    portllm("bot", "run", "--dry-run", code=2)
    assert "--once" in portllm.messages
    before, status = world.commits(BASE), portllm.json("status")
    dry = world.portllm("bot", "run", "--once", "--dry-run")
    heading, row = dry.stdout.splitlines()
    assert heading.split("\t") == ["repo", "to", "title", "folder"]
    repo, to, title, folder = row.split("\t")
    assert (repo, to) == (PORTED, "new pull request") and title.startswith(f"Port to {BASE}@")
    assert "adapter_model.safetensors" in written(Path(folder) / "files")
    assert "nothing is remembered" in dry.stderr
    assert not world.api.repo_exists(PORTED) and world.commits(BASE) == before
    assert portllm.json("ports") == [] and portllm.json("status") == status
    assert not list((world.folder / "home").rglob("workflows.db*"))


def test_no_more_are_pushed_in_an_hour_than_is_said(judged: Judged) -> None:
    targets = []
    for _ in range(3):
        into = judged.subscribe(judged.target())
        targets.append(judged.read(judged.judge(into, "publish")).job["to_repo"])
    environment = {"HF_ENDPOINT": judged.server.endpoint, "HF_TOKEN": str(judged.api.token)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.capped_bot", str(judged.context.settings.home)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "2\n", done.stderr
    there = [judged.context.hub.exists(target) for target in targets]
    assert sorted(there) == [False, True, True]
    with judged.context.database.session() as session:
        (waits,) = [
            row for row in session.query(Port) if row.job["to_repo"] == targets[there.index(False)]
        ]
    assert waits.state == PortState.QUEUED
    assert waits.reason == "Judged; waiting to be pushed (at most 2 an hour)."
