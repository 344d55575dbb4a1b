"""Publishing to a folder: what would be pushed is written there, and nothing to the Hub.

And a copy of the records for it to work on, so that nothing is remembered either.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sqlalchemy import insert, select, update

from bot.context import Context
from bot.hub import MAIN, Gated, Hub, HubPublisher, HubRepo, Published
from bot.publishing.content import Content, Copied, Uploaded
from bot.settings import Settings
from registry.database import Database
from registry.models import Event, Port, PortState, Record, Subscription, Worker, now
from registry.ports import AT_WORK

log = logging.getLogger("portllm")

ABOUT, FILES, SENT = "commit.json", "files", "sent"
ROWS = 1000  # copied at once
LEFT_OUT = (Event.__table__, Worker.__table__)


class DryRun:
    """Reads the Hub and writes to `folder`, a folder per repo: `commit.json` and `files/`."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder = hub, folder

    def state(self, repo: str) -> HubRepo:
        return HubPublisher(self.hub).state(repo)

    def create(self, repo: str, private: bool, gated: Gated = False) -> None:
        if not self.hub.exists(repo):
            how = f"{'private' if private else 'public'}{', gated' if gated else ''}"
            log.info("Dry run: %s would be created, %s.", repo, how)

    def branch(self, start: HubRepo, name: str) -> HubRepo:
        if name not in (self.hub.branches(start.repo) if start.sha else ()):
            return start
        return HubRepo(self.hub, start.repo, self.hub.head(start.repo, name))

    def upload(self, repo: str, path: Path, uploaded: Uploaded) -> None:
        sent = self.folder / repo / SENT
        sent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, sent / uploaded.sha256)

    def commit(
        self,
        repo: str,
        add: Mapping[str, Content],
        delete: list[str],
        title: str,
        description: str,
        parent: str,
        to: str = MAIN,
    ) -> Published:
        below = self.folder / repo
        shutil.rmtree(below / FILES, ignore_errors=True)
        copies = {}
        for name, content in add.items():
            if isinstance(content, Copied):
                copies[name] = f"{content.repo}@{content.sha}: {content.file}"
                continue
            file = below / FILES / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                file.write_bytes(content)
            elif isinstance(content, Uploaded):
                shutil.copyfile(below / SENT / content.sha256, file)
            else:
                shutil.copyfile(content, file)
        about = {
            "repo": repo,
            "to": to,
            "title": title,
            "description": description,
            "parent": parent or None,
            "delete": delete,
            "copied on the Hub": copies,
        }
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        (below / ABOUT).write_text(text, encoding="utf-8")
        log.info("Dry run: this would be pushed to %s (%s): %s", repo, to, below)
        return Published(sha="", url=str(below))

    def tag(self, repo: str, name: str, sha: str) -> None:
        log.info("Dry run: %s would be tagged %s.", repo, name)

    def retitle(self, repo: str, number: int, title: str, comment: str) -> None:
        log.info("Dry run: pull request %d of %s would become: %s", number, repo, title)

    def close_request(self, repo: str, number: int, comment: str) -> None:
        log.info("Dry run: pull request %d of %s would be closed: %s", number, repo, comment)

    def discuss(self, repo: str, title: str, comment: str) -> None:
        log.info("Dry run: in %r of %s it would be said: %s", title, repo, comment)


@contextmanager
def rehearsal(context: Context) -> Iterator[Context]:
    """The same context with a copy of the records, and a Hub that is only read.

    What an earlier one wrote is removed.
    """
    folder = _folder(context.settings)
    shutil.rmtree(folder, ignore_errors=True)
    home = folder / ".home"
    home.mkdir(mode=0o700, parents=True)
    changed = {"home": home, "database_url": None, "pushes_per_hour": 10**6, "showcase": None}
    settings = context.settings.model_copy(update=changed)
    records = Database(settings.registry_url)
    try:
        _copy(context.database, records)
        publisher = DryRun(context.hub, folder)
        yield replace(context, publisher=publisher, database=records, settings=settings)
    finally:
        records.close()
        shutil.rmtree(home)


def _copy(source: Database, target: Database) -> None:
    """All that is known. What is at work there begins anew: its artefacts are not copied."""
    with source.session() as reading, target.session() as writing:
        for table in Record.metadata.sorted_tables:
            if table in LEFT_OUT:
                continue
            rows = reading.execute(select(table).execution_options(yield_per=ROWS))
            for part in rows.mappings().partitions(ROWS):
                writing.execute(insert(table), [dict(row) for row in part])
        anew = {"state": PortState.WAITING, "due_at": now()}
        anew |= dict.fromkeys(("evidence", "verdict", "action", "made"))
        begun = update(Port).where(Port.state.in_((*AT_WORK, PortState.JUDGED)))
        writing.execute(begun.values(anew))
        writing.execute(update(Subscription).values(notify=None))


def pushed(settings: Settings) -> list[tuple[str, str, str, Path]]:
    """What the last dry run would have pushed: repo, ref, title, and the folder it lies in."""
    found = []
    for file in sorted(_folder(settings).glob(f"*/*/{ABOUT}")):
        about = json.loads(file.read_text(encoding="utf-8"))
        found.append((about["repo"], about["to"], about["title"], file.parent))
    return found


def _folder(settings: Settings) -> Path:
    return settings.home / "dry-run"
