"""The one package that talks to the Hub."""

from bot.hub.cache import sweep_downloads
from bot.hub.client import Facts, Gated, Hub, PullRequest
from bot.hub.errors import Forgotten, Missing, NoRepo, NotCopied, StaleParent
from bot.hub.publisher import MAIN, PULL_REQUEST, HubPublisher, Published, Publisher
from bot.hub.repo import HubRepo, Nothing

__all__ = [
    "MAIN",
    "PULL_REQUEST",
    "Facts",
    "Forgotten",
    "Gated",
    "Hub",
    "HubPublisher",
    "HubRepo",
    "Missing",
    "NoRepo",
    "NotCopied",
    "Nothing",
    "Published",
    "Publisher",
    "PullRequest",
    "StaleParent",
    "sweep_downloads",
]
