"""Ports in a state or with a verdict, and the patches that have one: by index, however many."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from judging.policy import Action
from registry.models import Port, PortState, Subscription

FEW = 300  # ports whose patches are looked up


def such(
    state: PortState | None, action: Action | None, by_index: bool = True
) -> list[ColumnElement[bool]]:
    """That a port is in the state and has the verdict, as far as they are given.

    Not `by_index` where few ports are looked at: then SQLite must not read all that are such.
    """
    given = ((Port.state, state), (Port.action, action))
    return [
        (column if by_index else func.lower(column)) == value
        for column, value in given
        if value is not None
    ]


def all_with(session: Session, state: PortState | None, action: Action | None) -> set[int] | None:
    """The patches with such a port; None where there are more than a few such ports."""
    mine = select(Subscription.patch_id).join(Port, Port.subscription_id == Subscription.id)
    found = session.scalars(mine.where(*such(state, action)).limit(FEW + 1)).all()
    return set(found) if len(found) <= FEW else None


def those_with(
    session: Session, patches: Sequence[int], state: PortState | None, action: Action | None
) -> set[int]:
    """Those of these patches that have such a port."""
    mine = select(Subscription.patch_id).join(Port, Port.subscription_id == Subscription.id)
    fitting = such(state, action, by_index=False)
    return set(session.scalars(mine.where(Subscription.patch_id.in_(patches), *fitting).distinct()))
