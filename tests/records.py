"""Subscriptions and ports in a registry of their own, with a bot that reaches no Hub."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from bot.context import Context
from bot.hub import Hub, HubPublisher
from bot.running.workflow import Bot
from bot.settings import Settings
from registry import following, records
from registry.database import Database
from registry.following import Head
from registry.models import Patch, Port, PortState, Rule, Subscription
from registry.ports import create_ports, update_port
from registry.status import Status, status
from tests.judged import BASE

LONG_AGO = timedelta(hours=2)


class Records:
    """Subscriptions of one patch to one base, with a bot that has a registry and no Hub."""

    def __init__(self, home: Path) -> None:
        settings = Settings(home=home)
        self.database = Database(settings.registry_url)
        hub = Hub("http://127.0.0.1:9", "none")
        self.context = Context(hub, HubPublisher(hub), self.database, settings)
        self.bot = object.__new__(Bot)  # there may be one of a name in a process
        self.bot.context = self.context
        self.shas = iter(f"{number:040x}" for number in range(10**6))

    def subscribe(self, to: str = "owner/ported", base: str = BASE, **manners: str) -> int:
        owner = to.partition("/")[0]
        with self.database.session() as session:
            patch = Patch(
                repo=f"{owner}/patch", owner=owner, sha="d" * 40, kind="LoRA", portability="A",
                base_repo=BASE, base_sha="a" * 40, license=None, evaluation=None,
            )  # fmt: skip
            head = [Head(base, "main", "a" * 40)]
            followed = following.follow(session, Rule.REF, base, "main", head)
            kept = records.add_patch(session, patch)
            made = records.subscribe(session, kept, followed, to, "adapter", None, None, manners)
            return made.id

    def release(self, into: int, change: str | None = "weights") -> int:
        """The id of a release of what this subscription follows."""
        with self.database.session() as session:
            base = session.get_one(Subscription, into).base
            head = Head(base.repo, "main", next(self.shas))
            (release,) = following.observe(session, base.id, [head])
            release.change, release.reason = change, "It moved." if change else None
            return release.id

    def port(self, into: int, state: PortState, key: str, **changes: Any) -> str:
        release, job = self.release(into), {"key": key, "to_repo": "owner/ported"}
        with self.database.session() as session:
            create_ports(session, release, {into: job})
            update_port(session, key, state=state, **{"reason": f"It is {state}."} | changes)
        return key

    def read(self, key: str) -> Port:
        with self.database.session() as session:
            return session.get_one(Port, key)

    def status(self, into: int) -> Status:
        with self.database.session() as session:
            return status(session, session.get_one(Subscription, into))

    def change(self, model: type[Any], id: object, **changes: Any) -> None:
        with self.database.session() as session:
            record = session.get_one(model, id)
            for name, value in changes.items():
                setattr(record, name, value)

    def do(self, what: Any, *arguments: Any) -> Any:
        with self.database.session() as session:
            return what(session, *arguments)


def active_subscriptions(session: Session) -> list[Subscription]:
    active = select(Subscription).where(Subscription.ended_at.is_(None))
    return list(session.scalars(active.order_by(Subscription.id)))
