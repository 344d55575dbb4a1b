"""Who the token belongs to and what it may do, where it lies, and what time the Hub has."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import get_session, hf_raise_for_status

from bot.hub.client import Hub
from bot.hub.errors import translated

WRITERS = ("admin", "write", "contributor")  # roles, of a token and in an organisation


@dataclass(frozen=True)
class Account:
    """`scopes` are those of a fine-grained token: what may be written with it, by lower-case name.

    A scope is a namespace or one repo. `role` is None where the Hub does not say.
    """

    name: str
    role: str | None
    namespaces: frozenset[str]
    scopes: frozenset[str]

    def may_write(self, repo: str) -> bool:
        name = repo.lower()
        namespace = name.partition("/")[0]
        if self.role == "fineGrained":
            return not self.scopes.isdisjoint((name, namespace))
        return self.role != "read" and namespace in self.namespaces


def account(hub: Hub) -> Account:
    """Whose token it is. The Hub answers this few times an hour only."""
    with translated("the token"):
        return read_account(hub.api.whoami())


def read_account(said: Mapping[str, Any]) -> Account:
    """The account in an answer of `whoami`; anything the Hub leaves out is not there."""
    token = said.get("auth", {}).get("accessToken", {})
    orgs = said.get("orgs", [])
    # An organisation without a role is one that this Hub tells no roles of.
    own = [org["name"] for org in orgs if org.get("roleInOrg", "write") in WRITERS]
    scopes = [
        scope["entity"]["name"].lower()
        for scope in token.get("fineGrained", {}).get("scoped", [])
        if "repo.write" in scope["permissions"] and "name" in scope["entity"]
    ]
    return Account(
        name=said["name"],
        role=token.get("role"),
        namespaces=frozenset(name.lower() for name in (said["name"], *own)),
        scopes=frozenset(scopes),
    )


def hub_time(hub: Hub) -> datetime | None:
    """The time by the Hub's clock; None where it does not tell. Raises HubError out of reach."""
    with translated("a look at its clock"):
        response = get_session().get(f"{hub.endpoint}/api/models", params={"limit": 1})
        hf_raise_for_status(response)
        told = response.headers.get("Date")
        return parsedate_to_datetime(told) if told else None


def token_file() -> Path:
    """Where the client keeps the token of who is logged in."""
    return Path(constants.HF_TOKEN_PATH)
