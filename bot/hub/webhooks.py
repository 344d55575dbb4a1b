"""The bot's own webhook on the Hub: made, and mended when it was deleted, disabled or changed.

Known by its address alone; whatever else the account has is left alone.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub import WebhookInfo, WebhookWatchedItem
from huggingface_hub.errors import HfHubHTTPError

from bot.hub.client import Hub
from bot.hub.errors import translated

DOMAINS: list[Literal["repo", "discussion"]] = ["repo", "discussion"]


@dataclass(frozen=True)
class Watched:
    """A model, or all that a user or an organisation has."""

    type: Literal["model", "user", "org"]
    name: str


def register(hub: Hub, url: str, secret: str, watched: Set[Watched]) -> str | None:
    """Let the Hub tell `url` of what is `watched`. Returns what had to be done, if anything.

    Raises HubError; Refused if the token may not, or the Hub takes no such webhook.
    """
    with translated(f"the webhook to {url}"):
        ours = [hook for hook in hub.api.list_webhooks() if hook.url == url]
        # Nothing to watch, or two that began at once.
        for hook in ours[1:] if watched else ours:
            hub.api.delete_webhook(hook.id)
        if not watched:
            return "deleted, for nothing is followed" if ours else None
        items: list[dict[Any, Any] | WebhookWatchedItem] = [
            {"type": item.type, "name": item.name}
            for item in sorted(watched, key=lambda item: (item.type, item.name))
        ]
        if not ours:
            hub.api.create_webhook(url=url, watched=items, domains=DOMAINS, secret=secret)
            return "made"
        (hook, *doubles), done = ours, []
        if doubles:
            done.append("doubles deleted")
        if wrong := _wrong(hook, secret, watched):
            hub.api.update_webhook(hook.id, watched=items, domains=DOMAINS, secret=secret)
            done.append(f"mended ({', '.join(wrong)})")
        if hook.disabled:
            hub.api.enable_webhook(hook.id)
            done.append("enabled again")
    return ", ".join(done) or None


def _wrong(hook: WebhookInfo, secret: str, watched: Set[Watched]) -> list[str]:
    """What of the webhook is not as it is to be. A Hub that shows no secret is told it anew."""
    watches = {(item.type, item.name.lower()) for item in hook.watched}
    right = {
        "watched": watches == {(item.type, item.name.lower()) for item in watched},
        "domains": set(hook.domains) == set(DOMAINS),
        "secret": hook.secret == secret,
    }
    return [name for name, is_right in right.items() if not is_right]


def is_organisation(hub: Hub, name: str) -> bool:
    """Whether `name` is an organisation's, not a user's."""
    with translated(name):
        try:
            hub.api.get_organization_overview(name)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
            return False
    return True
