"""Telling others what became of a port: by a webhook, or in a discussion on the Hub.

Whoever knows the address of a webhook may write there, so it is shown to nobody but by its host.
Nothing that a receiver does, or does not do, changes what becomes of the port.
"""

import contextlib
import hashlib
import hmac
import html
import ipaddress
import json
import logging
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.exceptions import LocationValueError

from bot.context import Context
from bot.logs import hide, redact
from bot.settings import Settings
from porting.errors import HubError, PortllmError, Refused, UsageError
from registry.models import Port, PortState, Subscription, now
from registry.ports import note

log = logging.getLogger("portllm")

TOLD = (
    PortState.PUBLISHED,
    PortState.ASKED,
    PortState.REJECTED,
    PortState.REFUSED,
    PortState.FAILED,
)
AGAIN = (10.0, 120.0, 600.0, 3600.0, 21600.0)  # seconds until a receiver that failed is told again
TIMEOUT = (5.0, 10.0)  # seconds, to connect and between two bytes
DEADLINE = 30.0  # seconds for all of it
LONGEST = 1500  # characters of a reason; Discord takes 2,000 in all
DISCUSSION = "discussion"
HOSTS = {"hooks.slack.com": "slack", "discord.com": "discord", "discordapp.com": "discord"}
HERE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Receiver:
    """Who is told: `slack`, `discord` or `json` at an address, or a `discussion`."""

    kind: str
    url: str = ""

    @property
    def text(self) -> str:
        """What `parse` makes it of."""
        return f"{self.kind}:{self.url}" if self.url else self.kind

    def __str__(self) -> str:
        return f"{self.kind} ({urlsplit(self.url).hostname})" if self.url else self.kind


def parse(text: str, is_secret: bool = True) -> Receiver:
    """What `--notify` says. Raises UsageError, without the address, where that is none.

    Args:
        is_secret: hide the address in what is said; in a public portllm.yaml it is no secret, and
            who writes there has no say in what others are shown.
    """
    if text == DISCUSSION:
        return Receiver(DISCUSSION)
    kind, _, url = text.partition(":")
    if kind not in ("slack", "discord", "json"):
        kind, url = "", text
    if is_secret:
        hide(url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("https", "http"):
        raise UsageError(
            "--notify is discussion, or an address: https://..., slack:https://..., "
            "discord:https://..., json:https://..."
        )
    if parts.scheme == "http" and host not in HERE:
        raise UsageError(f"--notify to {host}: its address has to begin with https://")
    if is_secret:  # errors show it so
        hide(f"{parts.path}?{parts.query}" if parts.query else parts.path)
    return Receiver(kind or HOSTS.get(host, "json"), url)


def receivers(subscription: Subscription) -> list[Receiver]:
    told = (subscription.notify or {}).get("receivers", [])
    return [parse(text, is_secret=not subscription.managed) for text in told]


def announcement(context: Context, key: str, attempt: int) -> tuple[dict[str, Any], int]:
    """What there is to be told of the port after this attempt, and to how many."""
    with context.database.session() as session:
        port = session.get_one(Port, key)
        if port.attempt != attempt or port.state not in TOLD or _is_secret(port):
            return {}, 0
        said = {
            "id": f"{key}.{attempt}.{port.state}",
            "event": str(port.state),
            "port": key,
            "patch": port.job["patch_repo"],
            "base": port.job["new_repo"],
            "release": port.job["new_sha"],
            "to": port.job["to_repo"],
            "verdict": port.action,
            "reason": redact(port.reason)[:LONGEST],
            "url": port.url if port.state in (PortState.PUBLISHED, PortState.ASKED) else None,
            "at": now().isoformat(timespec="seconds"),
        }
        return said, len(receivers(port.subscription))


def _is_secret(port: Port) -> bool:
    """Whether a stranger's portllm.yaml, by a pattern, came to a private base: not to be told."""
    owners = {port.release.repo.partition("/")[0], port.subscription.patch.owner}
    return port.subscription.managed and port.release.base.private and len(owners) > 1


def deliver(context: Context, said: dict[str, Any], number: int, times: int) -> float | None:
    """Tell receiver `number` what is `said`, for the (`times` + 1)th time.

    Returns:
        How many seconds later that is to be done again; None if not at all.
    """
    with context.database.session() as session:
        subscription = session.get_one(Port, said["port"]).subscription
        known, title = receivers(subscription), f"PortLLM: ports to {subscription.to_repo}"
        is_ours = not subscription.managed
    if number >= len(known):
        return None  # it was taken off the list meanwhile
    receiver, later = known[number], None
    try:
        if receiver.kind == DISCUSSION:
            context.publisher.discuss(said["patch"], title, _text(said, "**{}**"))
        else:
            _post(context.settings, receiver, said, is_ours)
        done = f"Told {receiver} that it is {said['event']}."
    except PortllmError as error:
        if isinstance(error, HubError) and times < len(AGAIN):
            later = AGAIN[times]
        next_time = f"It is tried again in {later:g} s." if later else "It is not tried again."
        done = f"{receiver} could not be told that it is {said['event']}: {error} {next_time}"
    with context.database.session() as session:
        note(session, said["port"], redact(done))
    log.info("%s: %s", said["port"], done)
    return later


def _text(said: dict[str, Any], headline: str = "{}") -> str:
    """For people: what, why, where."""
    first = f"{said['event'].capitalize()}: {said['patch']} on {said['base']}@{said['release'][:7]}"
    return "\n\n".join(filter(None, (headline.format(first), said["reason"], said["url"])))


def _body(kind: str, said: dict[str, Any]) -> dict[str, Any]:
    if kind == "slack":
        return {"text": html.escape(_text(said), quote=False)}
    if kind == "discord":  # and nobody is called by name
        return {"content": _text(said), "allowed_mentions": {"parse": []}}
    return said


def _post(settings: Settings, receiver: Receiver, said: dict[str, Any], is_ours: bool) -> None:
    """Raises HubError where trying again may help, Refused where it won't.

    A receiver that is not ours, but named by a patch's portllm.yaml, has no way inside, and none
    of our signatures, which it could show to others.
    """
    may_be_private = is_ours and settings.notify_private
    if receiver.url.startswith("http:") and not may_be_private:
        raise Refused(PRIVATE)
    body, stamp = json.dumps(_body(receiver.kind, said)).encode(), str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "portllm",
        "X-PortLLM-Id": said["id"],
        "X-PortLLM-Timestamp": stamp,
    }
    if settings.notify_secret is not None and receiver.kind == "json" and is_ours:
        key = settings.notify_secret.get_secret_value().encode()
        digest = hmac.new(key, f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        headers["X-PortLLM-Signature"] = f"sha256={digest}"
    with requests.Session() as session:
        session.trust_env = False  # no password of ours from a .netrc, no proxy
        if not may_be_private:
            session.mount("https://", _Public())
        try:
            answer = session.post(
                receiver.url,
                data=body,
                headers=headers,
                timeout=TIMEOUT,
                allow_redirects=False,
                stream=True,  # what it has to say is not read
            )
        except (requests.RequestException, LocationValueError) as error:  # they hold the address
            raise HubError(f"it can't be reached ({type(error).__name__}).") from None
    status = answer.status_code
    if status in (408, 429) or status >= 500:
        raise HubError(f"it answered with HTTP {status}.")
    if not 200 <= status < 300:
        raise Refused(f"it answered with HTTP {status}.")


PRIVATE = (
    "its address is a private one. If that is meant, set PORTLLM_NOTIFY_PRIVATE=1 for the bot."
)


class _PublicConnection(HTTPSConnection):
    """Says nothing to a private address, whatever a name stands for at this moment.

    And it ends: who answers byte by byte would keep others waiting.
    """

    def _new_conn(self) -> Any:
        connection = super()._new_conn()
        if not _is_public(connection.getpeername()[0]):
            connection.close()
            raise Refused(PRIVATE)
        end = threading.Timer(DEADLINE, _cut, [connection.dup()])
        end.daemon = True
        end.start()
        return connection


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_global


def _cut(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):  # it may be over already
        connection.shutdown(socket.SHUT_RDWR)


class _PublicPool(HTTPSConnectionPool):
    ConnectionCls = _PublicConnection


class _Public(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"https": _PublicPool}
