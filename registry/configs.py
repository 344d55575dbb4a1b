"""What is known of each `portllm.yaml`, and the subscriptions that it asks for."""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.models import Config, Patch, Subscription, now


def read(session: Session) -> dict[str, Config]:
    """Every repo that was looked at, the one longest ago first."""
    rows = session.scalars(select(Config).order_by(Config.read_at, Config.repo))
    return {row.repo: row for row in rows}


def note(session: Session, repo: str, sha: str, problem: str | None) -> None:
    """The repo was looked at, at this commit; and what was wrong there."""
    row = session.get(Config, repo) or Config(repo=repo)
    row.sha, row.problem, row.read_at = sha, problem, now()
    session.add(row)


def propose(session: Session, repo: str, sha: str, request: int) -> None:
    """The file was proposed to the repo; whatever became of it, it is not again."""
    row = session.get(Config, repo) or Config(repo=repo, sha=sha)
    row.request = request
    session.add(row)


def forget(session: Session, repo: str) -> None:
    """The repo asks no more; what was proposed to it is remembered all the same."""
    row = session.get(Config, repo)
    if row is not None and row.request is None:
        session.delete(row)
    elif row is not None:
        note(session, repo, row.sha, None)


def problems(session: Session, repos: Iterable[str]) -> dict[str, str]:
    """What is wrong with the files of these repos."""
    rows = session.execute(
        select(Config.repo, Config.sha, Config.problem).where(
            Config.repo.in_(repos), Config.problem.is_not(None)
        )
    )
    return {
        repo: f"Its portllm.yaml at {sha[:7]} can't be obeyed, so what it said before holds: "
        + "; ".join((said or "").splitlines())
        for repo, sha, said in rows
    }


def managed(session: Session, repo: str) -> list[Subscription]:
    """What the file in `repo` asked for, and still does."""
    mine = (
        select(Subscription)
        .join(Patch, Patch.id == Subscription.patch_id)
        .where(Patch.repo == repo, Subscription.managed, Subscription.ended_at.is_(None))
    )
    return list(session.scalars(mine.order_by(Subscription.id)))
