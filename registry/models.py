"""The tables.

Patch 1──* Subscription *──1 Base 1──* Release
               │                          │
               └────────*  Port  *────────┘        Score: one judged arm, recorded once

Refs were resolved before they came here: every `sha` is a full commit sha.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, MetaData, String, TypeDecorator, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


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
    """A patch at one commit, with its class (A to D) and the base commit it was trained on."""

    __tablename__ = "patches"
    __table_args__ = (UniqueConstraint("repo", "sha"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    repo: Mapped[str] = mapped_column(index=True)
    sha: Mapped[str]
    kind: Mapped[str]
    portability: Mapped[str]
    base_repo: Mapped[str]
    base_sha: Mapped[str]
    license: Mapped[str | None]
    evaluation: Mapped[dict[str, Any] | None]
    added_at: Mapped[datetime] = mapped_column(default=now)


class Base(Record):
    """A followed repo and ref, and the newest commit seen there."""

    __tablename__ = "bases"
    __table_args__ = (UniqueConstraint("repo", "ref"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    repo: Mapped[str]
    ref: Mapped[str]
    head_sha: Mapped[str]
    observed_at: Mapped[datetime] = mapped_column(default=now)
    problem: Mapped[str | None]


class Release(Record):
    """A new commit of a followed base, and what changed in it (null until classified)."""

    __tablename__ = "releases"
    __table_args__ = (UniqueConstraint("base_id", "sha"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    base_id: Mapped[int] = mapped_column(ForeignKey("bases.id"))
    from_sha: Mapped[str]
    sha: Mapped[str]
    change: Mapped[str | None]
    reason: Mapped[str | None]
    seen_at: Mapped[datetime] = mapped_column(default=now)

    base: Mapped[Base] = relationship()


class Subscription(Record):
    """A patch, what it follows, and where its ports go. Ended rather than deleted.

    `policy` is what a patch of class C means on a new base, null for every other one;
    `verdict_policy` what a port has to prove, null for the defaults.
    """

    __tablename__ = "subscriptions"
    __table_args__ = (UniqueConstraint("patch_id", "base_id", "to_repo"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    patch_id: Mapped[int] = mapped_column(ForeignKey("patches.id"))
    base_id: Mapped[int] = mapped_column(ForeignKey("bases.id"))
    to_repo: Mapped[str]
    form: Mapped[str]
    policy: Mapped[str | None]
    verdict_policy: Mapped[dict[str, Any] | None]
    from_sha: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]

    patch: Mapped[Patch] = relationship()
    base: Mapped[Base] = relationship()


class PortState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PUBLISHED = "published"
    ASKED = "asked"
    REJECTED = "rejected"
    REFUSED = "refused"
    FAILED = "failed"


class Port(Record):
    """Patch x release -> artefact. `key` names its inputs, `job`; it is its workflow's id."""

    __tablename__ = "ports"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    subscription_id: Mapped[int] = mapped_column(ForeignKey("subscriptions.id"))
    release_id: Mapped[int] = mapped_column(ForeignKey("releases.id"))
    job: Mapped[dict[str, Any]]
    state: Mapped[PortState] = mapped_column(String(16), default=PortState.QUEUED)
    step: Mapped[str | None]
    reason: Mapped[str]
    evidence: Mapped[dict[str, Any] | None]
    url: Mapped[str | None]
    published_sha: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)

    subscription: Mapped[Subscription] = relationship()
    release: Mapped[Release] = relationship()


class Score(Record):
    """One arm judged once: per-item results under (base, patch, task, engine)."""

    __tablename__ = "scores"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    result: Mapped[dict[str, Any]]
    judged_at: Mapped[datetime] = mapped_column(default=now)
