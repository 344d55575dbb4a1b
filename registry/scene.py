"""What holds for all at a moment: whether everything is paused, and whether anybody is at work."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry.models import Base, Control, PortState, Subscription, Worker
from registry.workers import clock

CLASSIFYING = "classifying"
# What the bot has to go on with; the rest waits for the next release, or for a person.
PENDING = (
    CLASSIFYING,
    PortState.WAITING,
    PortState.QUEUED,
    PortState.RUNNING,
    PortState.JUDGED,
)
SILENCE = timedelta(minutes=1)  # after which a process is taken for gone
LATE = timedelta(minutes=15)  # by which a look at a base may be late
START = "start one: portllm bot run"


@dataclass(frozen=True)
class Scene:
    """`paused` says why everything is; `is_worked` whether a worker's pulse is felt."""

    at: datetime
    paused: str | None
    is_worked: bool

    @classmethod
    def now(cls, session: Session) -> "Scene":
        at, pulse = clock(session), session.scalar(select(func.max(Worker.pulse_at)))
        return cls(at, paused(session), pulse is not None and at - pulse < SILENCE)

    def pause(self, subscription: Subscription) -> str | None:
        """Why nothing is begun or published for it, and how it goes on."""
        if self.paused is not None:
            why = self.paused.rstrip(".")
            return f"Everything is paused: {why}. It goes on with: portllm resume --all"
        if subscription.paused_at is not None:
            since, name = moment(subscription.paused_at), subscription.to_repo
            return f"Paused since {since}. It goes on with: portllm resume {name}"
        return None

    def neglect(self, state: str, due_at: datetime) -> str | None:
        """Who is missing, where something was to be done at `due_at` and is not."""
        if state in PENDING and not self.is_worked and self.at - due_at >= SILENCE:
            return f"No worker is running; {START}"
        return None

    def unwatched(self, base: Base, name: str) -> str | None:
        """Who is missing, where the base `name` was to be looked at and was not."""
        looked, due = base.looked_at, base.due_at
        if due is None or self.at - due < LATE or (looked is not None and looked >= due):
            return None
        since = f"since {moment(looked)}" if looked else "yet"
        return f"Nobody has looked at {name} {since}, so no bot is running; {START}"


def paused(session: Session) -> str | None:
    """Why everything is paused, if it is."""
    control = session.get(Control, "paused")
    return str(control.value["reason"]) if control else None


def moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
