"""Sees to it that the Hub tells us of what is followed, again and again: people delete webhooks."""

import logging

from bot.context import Context
from bot.hub.limiter import polling
from bot.hub.webhooks import Watched, is_organisation, register
from bot.serve.interest import asked_repos, followed_repos
from porting.errors import PortllmError

log = logging.getLogger("portllm")


class Registration:
    def __init__(self, context: Context, url: str, secret: str) -> None:
        self._context, self._url, self._secret = context, url, secret
        self._organisations: dict[str, bool] = {}

    def keep(self) -> None:
        """Make or mend the webhook. A failure is said; the next time is soon."""
        with self._context.database.session() as session:
            names = followed_repos(session) | asked_repos(session)
        try:
            with polling():
                watched = {self._watched(name) for name in names}
                done = register(self._context.hub, self._url, self._secret, watched)
        except PortllmError as error:
            log.warning("Events may be missed, the poll finds what they told: %s", error)
            return
        if done is not None:
            log.info("The Hub's webhook to %s: %s. It watches: %d.", self._url, done, len(watched))

    def _watched(self, name: str) -> Watched:
        if "/" in name:
            return Watched("model", name)
        if name not in self._organisations:
            self._organisations[name] = is_organisation(self._context.hub, name)
        return Watched("org" if self._organisations[name] else "user", name)
