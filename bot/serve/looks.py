"""What a hint leads to: looks at the bases, or at the pull requests, that it may be about."""

from collections.abc import Callable
from functools import partial

from sqlalchemy.orm import Session

from bot.context import Context
from bot.hub.limiter import polling
from bot.publishing.targets import ports_to
from bot.serve.hints import Hint, Look, Topic
from bot.serve.interest import touched
from bot.watching.watch import look
from registry.models import Base, PortState

FollowUp = Callable[[Context, str], object]  # of the pull requests of ours on a repo


def _asked(session: Session, repo: str) -> set[str]:
    """Keys of the ports about which a pull request on `repo` asks."""
    return {port.key for port in ports_to(session, repo, PortState.ASKED)}


class Looks:
    def __init__(self, context: Context, follow_up: FollowUp) -> None:
        self._context, self._follow_up = context, follow_up

    def __call__(self, hint: Hint) -> list[Look]:
        """None where nobody follows it. So our own pushes lead to nothing."""
        with self._context.database.session() as session:
            if hint.topic == Topic.DISCUSSION:
                return [partial(self._answers, hint.repo)] if _asked(session, hint.repo) else []
            return [partial(self._base, base_id) for base_id in touched(session, hint.repo)]

    def _base(self, base_id: int) -> bool:
        before = self._changed_at(base_id)
        with polling():
            look(self._context, base_id)
        return self._changed_at(base_id) != before

    def _answers(self, repo: str) -> bool:
        with self._context.database.session() as session:
            before = _asked(session, repo)
        with polling():
            self._follow_up(self._context, repo)
        with self._context.database.session() as session:
            return _asked(session, repo) != before

    def _changed_at(self, base_id: int) -> object:
        with self._context.database.session() as session:
            return session.get_one(Base, base_id).changed_at
