"""When a port is begun: after how long, at which hours, together with which others. Pure.

What Renovate and conda-forge learned: a vendor force-fixes within hours, people sleep at night, and
whoever is flooded turns the bot off.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from apscheduler.triggers.cron import CronTrigger
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
SPAN = re.compile(r"(\d{1,4})([mhdw])")
MINUTE = timedelta(minutes=1)
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def _span(value: Any) -> Any:
    """`24h` as a time span; anything else is Pydantic's to parse."""
    match = SPAN.fullmatch(value) if isinstance(value, str) else None
    return timedelta(**{UNITS[match[2]]: int(match[1])}) if match else value


def crontab(value: str) -> str:
    """`value`, if it is a crontab line that matches some minute; else raises ValueError."""
    CronTrigger.from_crontab(value, UTC)
    if re.search(r"\d", value.split()[4]):
        raise ValueError("name the weekdays (mon-fri): programs number them differently")
    if _fires(value, EPOCH) is None:
        raise ValueError("no minute ever matches")
    return value


class Manners(BaseModel):
    """What a subscriber asks of the bot.

    Attributes:
        minimum_release_age: how old a release is before it is ported, such as `24h`.
        schedule: a crontab line (UTC); a port is begun and published only in minutes that match,
            in all five fields. Weekdays go by name.
        group: ports of one release and group are published together, once all are judged.
        enabled: false where its portllm.yaml pauses it, which `Subscription.paused_at` then says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    minimum_release_age: Annotated[timedelta, BeforeValidator(_span)] = timedelta(0)
    schedule: Annotated[str, AfterValidator(crontab)] | None = None
    group: str | None = None
    enabled: bool = True


@dataclass(frozen=True)
class Hold:
    """Why a port is not begun or published now, and until when, if that is known."""

    reason: str
    until: datetime | None = None


def hold(
    at: datetime,
    manners: Manners,
    released_at: datetime,
    all_paused: str | None,
    paused_at: datetime | None,
) -> Hold | None:
    """What keeps a port waiting at the moment `at`, or None.

    Args:
        all_paused: why everything is paused, if it is.
        paused_at: since when its subscription is paused, if it is.
    """
    if all_paused is not None:
        return Hold(f"Everything is paused: {all_paused}. It goes on with: portllm resume --all")
    if paused_at is not None:
        return Hold(f"Paused since {moment(paused_at)}. It goes on with: portllm resume")
    ripe = released_at + manners.minimum_release_age
    if manners.minimum_release_age and at < ripe:
        return Hold(f"The release is let ripen until {moment(ripe)}.", ripe)
    if manners.schedule is not None and not is_open(manners.schedule, at):
        opens = next_opening(manners.schedule, at)
        until = f" until {moment(opens)}" if opens else "; it never opens"
        return Hold(f"Outside of its schedule ({manners.schedule}){until}.", opens)
    return None


def is_open(schedule: str, at: datetime) -> bool:
    minute = at.replace(second=0, microsecond=0)
    return _fires(schedule, minute) == minute


def next_opening(schedule: str, at: datetime) -> datetime | None:
    return _fires(schedule, at.replace(second=0, microsecond=0) + MINUTE)


def _fires(schedule: str, at: datetime) -> datetime | None:
    fires: datetime | None = CronTrigger.from_crontab(schedule, UTC).get_next_fire_time(None, at)
    return fires


def moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
