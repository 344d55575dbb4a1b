"""What the bot wants to hear of, and what a repo that it heard of may concern."""

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from bot.watching.follow import version
from registry.following import bases_touched, followed_bases
from registry.models import Base, Port, PortState, Release, Rule


def followed_repos(session: Session) -> set[str]:
    """Repos whose commits may be releases, by name; for a pattern, the owner alone.

    New fine-tunes of a tree may come from anybody: no webhook tells of them.
    """
    names = set()
    for base in followed_bases(session):
        if base.rule == Rule.REPOS:
            names.add(base.repo.partition("/")[0])
        elif base.rule != Rule.TREE:
            names.add(base.repo)
    return {name for name in names if "/" not in name or name.partition("/")[0] not in names}


def asked_repos(session: Session) -> set[str]:
    """Repos on which a pull request of ours waits for an answer."""
    to = Port.job["to_repo"].as_string()
    return set(session.scalars(select(to).where(Port.state == PortState.ASKED).distinct()))


def touched(session: Session, repo: str) -> list[int]:
    """Ids of the followed bases that a commit to `repo` may be a release of."""
    return [base.id for base in bases_touched(session, repo) if _touches(session, base, repo)]


def _touches(session: Session, base: Base, repo: str) -> bool:
    if base.rule == Rule.REPOS and base.head_repo != repo:
        return version(base.repo, repo) is not None
    if base.rule == Rule.TREE:
        member = exists().where(Release.base_id == base.id, Release.repo == repo)
        return bool(session.scalar(select(member)))
    return True
