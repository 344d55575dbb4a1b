"""What the pages and the API show of the records, as plain data."""

from datetime import datetime
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from judging.evidence import Measured
from registry.history import Figure, Moment, figure
from registry.models import Base
from registry.status import shown

T = TypeVar("T")


class View(BaseModel):
    model_config = ConfigDict(frozen=True)

    @classmethod
    def of(cls, record: object, **facts: Any) -> Self:
        """The record's own values of these names, and `facts`."""
        own = {name: getattr(record, name) for name in cls.model_fields if name not in facts}
        return cls(**own, **facts)


class Page(View, Generic[T]):
    """`next` is what to ask for as `cursor` to get more; null at the end."""

    items: list[T]
    next: str | None


class PatchRow(View):
    repo: str
    sha: str
    kind: str
    portability: str
    base_repo: str
    base_sha: str
    license: str | None
    pipeline_tag: str | None
    task: str | None
    added_at: datetime


class SubscriptionRow(View):
    """`state` and `reason` say where it stands, and why, in one sentence."""

    id: int
    patch: str
    base: str
    follows: str
    to: str
    form: str
    policy: str | None
    delivery: str
    managed: bool
    state: str
    reason: str
    port: str | None
    url: str | None


class Followed(SubscriptionRow):
    """A subscription, and its ports to the newest releases, the oldest first."""

    moments: list[Moment]


class PatchView(View):
    patch: PatchRow
    subscriptions: Page[Followed]


class PortRow(View):
    """`repo` at `sha` is the release; `due_at` is when it is gone on with, null at an end."""

    key: str
    patch: str
    base: str
    repo: str
    sha: str
    to: str
    form: str
    state: str
    step: str | None
    verdict: str | None
    reason: str
    attempt: int
    due_at: datetime | None
    created_at: datetime
    updated_at: datetime
    published_at: datetime | None
    url: str | None


class Line(View):
    """Of a port's log; `blame` is whose part it was that failed."""

    at: datetime
    attempt: int
    step: str | None
    blame: str | None
    text: str


class Task(View):
    """One task's results on `items` of `total`, by arm: mean, and the interval around it."""

    task: str
    metric: str
    items: int
    total: int
    arms: dict[str, Figure]

    @classmethod
    def of_measured(cls, measured: Measured, alpha: float) -> Self:
        metric, count = measured.metric, len(measured.items)
        arms = {
            arm: figure(metric, results[:count], alpha) for arm, results in measured.results.items()
        }
        return cls.of(measured, items=count, arms=arms)


class PortView(View):
    """`inputs` name what it is made of, `files` the sha256 of what came out."""

    port: PortRow
    inputs: dict[str, str]
    verdict_reason: str | None
    policy: str | None
    scale: float
    engine: str | None
    tasks: list[Task]
    forecast: dict[str, Any] | None
    files: dict[str, str]
    published_sha: str | None
    log: list[Line]


class BaseRow(View):
    """One following of a repo: `follows` as a user writes it, and where it stands."""

    id: int
    repo: str
    rule: str
    follows: str
    head_repo: str
    head_sha: str
    looked_at: datetime | None
    problem: str | None

    @classmethod
    def following(cls, base: Base) -> Self:
        return cls.of(base, follows=shown(base))


class ReleaseRow(View):
    """`verdicts` counts the ports to it by their verdict, over all patches; `none` have none."""

    id: int
    base: str
    follows: str
    repo: str
    sha: str
    from_repo: str
    from_sha: str
    change: str | None
    reason: str | None
    seen_at: datetime
    verdicts: dict[str, int]


class BaseView(View):
    repo: str
    followings: list[BaseRow]
    releases: Page[ReleaseRow]
    followers: Page[SubscriptionRow]


class StatusView(View):
    """`counts` of ports by state go up to `most`; `worker_names` and `queues` are the owner's."""

    at: datetime
    paused: str | None
    workers: int
    pulse_at: datetime | None
    watched: bool
    worker_names: list[str]
    queues: dict[str, int]
    most: int
    counts: dict[str, int]
    working: list[PortRow]
    waiting: list[PortRow]
    again: list[PortRow]
    failed: list[PortRow]
    unread: list[ReleaseRow]
    blocked: list[BaseRow]
