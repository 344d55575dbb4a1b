"""What `portllm doctor` looks at: nothing is changed, and a check that fails stops no other."""

from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from bot.doctor.database import check_database, check_file_system, sqlite_file
from bot.doctor.finding import Finding, Level
from bot.doctor.hub import ENDPOINT, Subscribed, check_hub
from bot.doctor.machine import check_disk, check_libraries, check_privacy
from bot.hub import Hub
from bot.hub.account import token_file
from bot.settings import Settings
from bot.watching.followed import heads, targets

__all__ = ["ENDPOINT", "Finding", "Level", "diagnose"]

MOST_BASES = 50  # whose size is asked for
MOUNTS = Path("/proc/mounts")


def diagnose(settings: Settings, hub: Hub | None) -> list[Finding]:
    """Every finding on this machine and, with `hub`, on the Hub and on what is subscribed."""
    database, engine = check_database(settings.registry_url)
    found, private = [database], [token_file()]
    if database.level is not Level.ERROR and (file := sqlite_file(settings.registry_url)):
        private.append(file)
        if MOUNTS.exists():  # on Linux
            found.append(check_file_system(file, MOUNTS.read_text()))
    found += [check_privacy(private), check_libraries()]
    largest = 0
    if hub is not None:
        nothing = Subscribed([], []) if database.level is Level.OK else None
        of_hub, largest = check_hub(hub, _subscribed(engine) if engine else nothing)
        found += of_hub
    return [*found, check_disk(settings.home, largest)]


def _subscribed(engine: Engine) -> Subscribed:
    with Session(engine) as session:
        return Subscribed(heads(session, MOST_BASES), targets(session))
