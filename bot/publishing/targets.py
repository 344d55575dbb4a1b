"""Which ports go to a repo, and in which order: a late one never replaces a newer release's."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from bot.context import NAME, Context, Job
from bot.hub import HubRepo
from bot.running.stops import Overtaken
from patch_cards import lock
from registry.models import Base, Port, PortState, Rule, Subscription


def ports_to(session: Session, repo: str, *states: PortState) -> list[Port]:
    """The ports to `repo` in one of these states, the last published first.

    They are those of the subscription to it, or of a tree's that names it.
    """
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


def check_order(context: Context, job: Job, there: HubRepo) -> None:
    """Raises Overtaken where the same subscription's port to a newer release stands `there`.

    Read from the Hub, not from the records: whoever put it there may not have recorded it yet.
    """
    if lock.NAME not in there.files():
        return
    with context.database.session() as session:
        standing = newer(session, job, lock.read(there).key)
        if standing is not None:
            raise Overtaken(f"{standing.key}, to {standing.release.name}, was there before it.")


def newer(session: Session, job: Job, key: str | None) -> Port | None:
    """The port `key`, if it is the same subscription's as the job, to a newer release."""
    port, ours = session.get(Port, key or ""), session.get(Port, job.key)
    if port is None or ours is None or port.subscription_id != ours.subscription_id:
        return None
    return port if port.release_id > ours.release_id else None
