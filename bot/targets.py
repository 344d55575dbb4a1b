"""Which ports go to a repo: those of the subscription to it, or of a tree's that names it."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from bot.context import NAME
from registry.models import Base, Port, PortState, Rule, Subscription


def ports_to(session: Session, repo: str, *states: PortState) -> list[Port]:
    """The ports to `repo` in one of these states, the last published first."""
    ids = list(session.scalars(select(Subscription.id).where(Subscription.to_repo == repo)))
    ids = ids or _trees(session, repo)
    if not ids:  # SQLite would read all that are in these states
        return []
    rows = session.scalars(
        select(Port).where(Port.subscription_id.in_(ids), Port.state.in_(states))
    )
    mine = [port for port in rows if port.job["to_repo"] == repo]
    return sorted(mine, key=lambda port: port.published_at or port.created_at, reverse=True)


def _trees(session: Session, repo: str) -> list[int]:
    owner = repo.partition("/")[0]
    of_owner = (Subscription.to_repo >= f"{owner}/", Subscription.to_repo < f"{owner}0")
    rows = session.execute(
        select(Subscription.id, Subscription.to_repo)
        .join(Base, Base.id == Subscription.base_id)
        .where(Base.rule == Rule.TREE, *of_owner)
    )
    found = []
    for id, to_repo in rows:
        start, _, end = to_repo.partition(NAME)
        if repo.startswith(start) and repo.endswith(end):
            found.append(id)
    return found
