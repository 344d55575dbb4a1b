"""A clock that was set back: what the records say of times to come that can't be."""

from datetime import datetime, timedelta

from sqlalchemy import or_, update
from sqlalchemy.orm import Session

from registry.models import Base, Port, PortState, Release, Subscription

PAST = (Release.seen_at, Subscription.created_at, Base.changed_at)
WAITS = (PortState.WAITING, PortState.JUDGED, PortState.ASKED)


def mend(session: Session, at: datetime, longest: timedelta) -> None:
    """Nothing was seen or subscribed after now, and nothing waits for longer than `longest`.

    Nor for a moment that was named in times to come.
    """
    waits = update(Port).where(Port.state.in_(WAITS), Port.due_at > at)
    later = or_(Port.due_at > at + longest, Port.updated_at > at)
    session.execute(waits.where(later).values(due_at=at, updated_at=at))
    unread = update(Release).where(Release.change.is_(None), Release.due_at > at)
    later = or_(Release.due_at > at + longest, Release.seen_at > at)
    session.execute(unread.where(later).values(due_at=at))
    for column in PAST:
        session.execute(update(column.class_).where(column > at).values({column: at}))
    looked = update(Base).where(Base.looked_at > at)
    session.execute(looked.values(looked_at=at, due_at=at))
