"""The tables.

Patch 1──* Subscription *──1 Base 1──* Release
               │                          │
               └────────*  Port  *────────┘        Score: one judged arm, recorded once
                          │                        Worker: a process that works, and its pulse
                          └──* Event               Control: what holds for all, such as a pause
                                                   Config: a patch's repo that has a portllm.yaml

Refs were resolved before they came here: every `sha` is a full commit sha.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    DateTime,
    ForeignKey,
    Index,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, validates


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in Python, naive UTC in the database (SQLite keeps no offset)."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value else None


def now() -> datetime:
    return datetime.now(UTC)


# Names from one to another are asked for, which no language may order otherwise.
BY_BYTES = String().with_variant(String(collation="C"), "postgresql")


class Record(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON}  # noqa: RUF012 (SQLAlchemy)


class Patch(Record):
    """A patch at one commit, with its class (A to D) and the base commit it was trained on.

    `task` names what its evaluation asks, null without one; `private` patches are shown to nobody:
    their repo, or a base of theirs, is private. What its published ports stand on was looked at
    last at `checked_at`.
    """

    __tablename__ = "patches"
    __table_args__ = (
        UniqueConstraint("repo", "sha"),
        Index(None, "base_repo", "id"),
        Index(None, "task", "id"),
        Index(
            "ix_patches_private",
            "id",
            sqlite_where=text("private = 1"),
            postgresql_where=text("private"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    repo: Mapped[str]
    owner: Mapped[str] = mapped_column(index=True)
    sha: Mapped[str]
    kind: Mapped[str]
    portability: Mapped[str]
    base_repo: Mapped[str]
    base_sha: Mapped[str]
    license: Mapped[str | None]
    pipeline_tag: Mapped[str | None]
    evaluation: Mapped[dict[str, Any] | None]
    task: Mapped[str | None]
    private: Mapped[bool] = mapped_column(default=False)
    added_at: Mapped[datetime] = mapped_column(default=now)
    checked_at: Mapped[datetime | None] = mapped_column(index=True)


class Rule(StrEnum):
    """What of `Base.repo` is followed, and what `Base.ref` says of it."""

    REF = "ref"  # the commits of a branch, `ref`
    TAGS = "tags"  # the tags of the repo that match `ref`, such as v*, in the order of versions
    REPOS = "repos"  # the repos that match `repo`, such as org/Model-v0.*, in that order
    TREE = "tree"  # the fine-tunes of the repo that have all of the Hub's tags in `ref`


class Base(Record):
    """What is followed, and the newest commit seen there: of the head repo, at the head ref.

    A tree has no head: each fine-tune moves by itself, and stands where its last release was.
    A commit that it was at before is `doubted` at first: a Hub may answer with what was.
    One that was seen to be `private` is shown to nobody, nor is a patch that follows it.
    """

    __tablename__ = "bases"
    __table_args__ = (UniqueConstraint("rule", "repo", "ref"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    rule: Mapped[Rule] = mapped_column(String(8), default=Rule.REF)
    repo: Mapped[str] = mapped_column(index=True)
    ref: Mapped[str]
    head_repo: Mapped[str]
    head_ref: Mapped[str]
    head_sha: Mapped[str]
    observed_at: Mapped[datetime] = mapped_column(default=now)
    looked_at: Mapped[datetime | None]
    changed_at: Mapped[datetime | None]
    due_at: Mapped[datetime | None] = mapped_column(index=True)
    doubted_sha: Mapped[str | None]
    doubted_at: Mapped[datetime | None]
    problem: Mapped[str | None]
    private: Mapped[bool] = mapped_column(default=False)


class Release(Record):
    """A step of a base, from a commit to another, and what changed (null until classified).

    `missed` counts the attempts at which the commit was not there.
    """

    __tablename__ = "releases"
    __table_args__ = (
        Index("ix_releases_base_id_id", "base_id", "id"),
        Index(
            "ix_releases_unclassified",
            "id",
            sqlite_where=text("change IS NULL"),
            postgresql_where=text("change IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    base_id: Mapped[int] = mapped_column(ForeignKey("bases.id"))
    from_repo: Mapped[str]
    from_ref: Mapped[str]
    from_sha: Mapped[str]
    repo: Mapped[str]
    ref: Mapped[str]
    sha: Mapped[str]
    change: Mapped[str | None]
    reason: Mapped[str | None]
    attempt: Mapped[int] = mapped_column(default=1)
    missed: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime | None]
    seen_at: Mapped[datetime] = mapped_column(default=now)

    base: Mapped[Base] = relationship()

    @property
    def name(self) -> str:
        return f"{self.repo}@{self.sha[:7]}"


class Subscription(Record):
    """A patch, what it follows, and where its ports go. Ended rather than deleted.

    `delivery` is how ports come into `to_repo`: as a commit, a branch each or a pull request;
    `notify` says who hears of them; `managed` that the patch's own portllm.yaml asks for it.
    `policy` is what a patch of class C means on a new base, null for every other one;
    `verdict_policy` what a port has to prove, null for the defaults; `manners` when ports are made
    (`bot.running.manners`), `group_name` the group of these. It started at `from_repo` at
    `from_sha`, and is settled on the base of its last judged port.
    """

    __tablename__ = "subscriptions"
    __table_args__ = (
        UniqueConstraint("patch_id", "base_id", "to_repo"),
        Index(None, "base_id", "id"),
        Index(
            "ix_subscriptions_active",
            "base_id",
            "settled_repo",
            "settled_sha",
            "created_at",
            "id",
            "ended_at",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index(
            "ix_subscriptions_grouped",
            "base_id",
            "group_name",
            sqlite_where=text("group_name IS NOT NULL"),
            postgresql_where=text("group_name IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    patch_id: Mapped[int] = mapped_column(ForeignKey("patches.id"))
    base_id: Mapped[int] = mapped_column(ForeignKey("bases.id"))
    to_repo: Mapped[str] = mapped_column(BY_BYTES, index=True)
    form: Mapped[str]
    delivery: Mapped[str] = mapped_column(String(8), default="commit")
    notify: Mapped[dict[str, Any] | None]
    managed: Mapped[bool] = mapped_column(default=False)
    policy: Mapped[str | None]
    verdict_policy: Mapped[dict[str, Any] | None]
    manners: Mapped[dict[str, Any] | None]
    group_name: Mapped[str | None]
    from_repo: Mapped[str]
    from_sha: Mapped[str]
    settled_repo: Mapped[str]
    settled_sha: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)
    paused_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    patch: Mapped[Patch] = relationship()
    base: Mapped[Base] = relationship()


class PortState(StrEnum):
    WAITING = "waiting"  # to be begun: `due_at` says from when on it may be
    QUEUED = "queued"
    RUNNING = "running"
    JUDGED = "judged"  # to be published
    PUBLISHED = "published"
    ASKED = "asked"
    REJECTED = "rejected"
    REFUSED = "refused"
    FAILED = "failed"
    DECLINED = "declined"  # its pull request was closed
    SUPERSEDED = "superseded"  # a newer release came before it was begun
    CANCELLED = "cancelled"
    ROLLED_BACK = "rolled back"
    WITHDRAWN = "withdrawn"


class Port(Record):
    """Patch x release -> artefact. `key` names its inputs, `job`.

    The first attempt's workflow has the key as its id; `attempt` counts from 1. `made` are the
    sha256 of what was judged; `action` is the verdict's, to be counted by.
    """

    __tablename__ = "ports"
    __table_args__ = (
        UniqueConstraint("subscription_id", "release_id"),
        Index(None, "release_id", "subscription_id"),
        Index(None, "state", "due_at", "key"),
        Index(None, "action", "state", "due_at", "key"),
        Index(None, "release_id", "action", "subscription_id"),
        Index(None, "published_at", "key"),
    )

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    subscription_id: Mapped[int] = mapped_column(ForeignKey("subscriptions.id"))
    release_id: Mapped[int] = mapped_column(ForeignKey("releases.id"))
    job: Mapped[dict[str, Any]]
    state: Mapped[PortState] = mapped_column(String(16), default=PortState.WAITING)
    step: Mapped[str | None]
    reason: Mapped[str]
    attempt: Mapped[int] = mapped_column(default=1)
    due_at: Mapped[datetime] = mapped_column(default=now)
    evidence: Mapped[dict[str, Any] | None]
    verdict: Mapped[dict[str, Any] | None]
    action: Mapped[str | None] = mapped_column(String(8))
    made: Mapped[dict[str, Any] | None]
    url: Mapped[str | None]
    published_sha: Mapped[str | None]
    published_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)

    subscription: Mapped[Subscription] = relationship()
    release: Mapped[Release] = relationship()

    @validates("verdict")
    def _keep_action(self, _: str, verdict: dict[str, Any] | None) -> dict[str, Any] | None:
        self.action = verdict["action"] if verdict else None
        return verdict


class Event(Record):
    """A line of a port's log: a step begun, failed or done. `blame` is set on a failure."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(primary_key=True)
    port_key: Mapped[str] = mapped_column(ForeignKey("ports.key"), index=True)
    at: Mapped[datetime] = mapped_column(default=now)
    attempt: Mapped[int]
    step: Mapped[str | None]
    blame: Mapped[str | None]
    text: Mapped[str]


class Worker(Record):
    """A process that does work; one whose pulse has stopped has its work taken over.

    `traffic` counts the bytes that it moved since its start, by way.
    """

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    started_at: Mapped[datetime] = mapped_column(default=now)
    pulse_at: Mapped[datetime] = mapped_column(default=now)
    traffic: Mapped[dict[str, Any] | None]


class Control(Record):
    """What holds for everything, by name: `paused`, with the reason given."""

    __tablename__ = "controls"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[dict[str, Any]]
    set_at: Mapped[datetime] = mapped_column(default=now)


class Config(Record):
    """A patch's repo with a `portllm.yaml`: the commit last read, and what was wrong there.

    `request` is the number of the pull request that proposed the file, if we opened one.
    """

    __tablename__ = "configs"

    repo: Mapped[str] = mapped_column(primary_key=True)
    sha: Mapped[str]
    problem: Mapped[str | None]
    request: Mapped[int | None]
    read_at: Mapped[datetime] = mapped_column(default=now)


class Score(Record):
    """One arm judged once: per-item results under (base, patch, task, engine)."""

    __tablename__ = "scores"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    result: Mapped[dict[str, Any]]
    judged_at: Mapped[datetime] = mapped_column(default=now)
