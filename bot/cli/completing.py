"""What the shell's TAB offers: names from the registry, read as they are, and never made."""

from contextlib import suppress
from typing import Any

from sqlalchemy import Select, select

from bot.cli.sources import open_registry, read_settings
from registry.models import Patch, Port, Subscription
from registry.status import STATES

MOST = 50


def patches(incomplete: str) -> list[str]:
    return _read(select(Patch.repo).where(Patch.repo.startswith(incomplete, autoescape=True)))


def targets(incomplete: str) -> list[str]:
    name = Subscription.to_repo
    return _read(select(name).where(name.startswith(incomplete, autoescape=True)))


def targets_and_patches(incomplete: str) -> list[str]:
    return targets(incomplete) + patches(incomplete)


def ports(incomplete: str) -> list[str]:
    return _read(select(Port.key).where(Port.key.startswith(incomplete, autoescape=True)))


def states(incomplete: str) -> list[str]:
    return [state for state in STATES if state.startswith(incomplete)]


def _read(query: Select[Any]) -> list[str]:
    with suppress(Exception):  # whatever is wrong, a half-typed command is no place to say it
        settings = read_settings()
        if settings.is_shared or (settings.home / "registry.db").exists():
            with open_registry().session() as session:
                return list(session.scalars(query.distinct().limit(MOST)))
    return []
