"""What the active subscriptions follow, and where their ports go."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.models import Base, Subscription

ACTIVE = Subscription.ended_at.is_(None)


def heads(session: Session, most: int | None = None) -> list[tuple[str, str]]:
    """The repos that are followed now, each at the commit seen last; at `most` so many of them."""
    followed = select(Subscription.base_id).where(ACTIVE)
    rows = select(Base.head_repo, Base.head_sha).where(Base.id.in_(followed), Base.head_repo != "")
    ordered = rows.distinct().order_by(Base.head_repo, Base.head_sha)
    return [(repo, sha) for repo, sha in session.execute(ordered.limit(most))]


def targets(session: Session) -> list[str]:
    """The repos that ports go to."""
    rows = select(Subscription.to_repo).where(ACTIVE).distinct().order_by(Subscription.to_repo)
    return list(session.scalars(rows))
