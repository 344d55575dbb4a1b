"""Asking the Hub where bases stand, with as few requests as it takes. Nothing comes from a cache.

A listing is believed only where it says that nothing moved. A base that it shows elsewhere, or not
at all (renamed, private, deleted, or listed late), is looked up alone.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import datetime

from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from bot.hub.client import Hub
from bot.hub.errors import translated
from bot.hub.limiter import polling
from bot.watching.cadence import PRICE, Followed, Known, Looks
from porting.errors import PortllmError
from registry.following import Head
from registry.models import Rule

Outcome = tuple[Followed, list[Head] | PortllmError]
Ask = Callable[[Followed], list[Head]]

ANY_FILE = "README.md"  # whether it exists or not, the answer names the commit
COMMIT = re.compile("[0-9a-f]{40}")
MOST_HOPS = 3  # a renamed repo is one
PAGE = 1000  # repos, the most that the Hub puts on one
TIMEOUT = 30.0
RETRIES = 1  # the next look is a retry too
THREADS = 8


@dataclass
class Listing:
    """The commits of an author's repos, and how many requests tell all of them."""

    heads: dict[str, str] = field(default_factory=dict)
    price: int = 0


def heads_of_author(hub: Hub, author: str, most_pages: int) -> Listing:
    """The heads of all repos of `author` that the token may see, or of `most_pages` pages of them.

    Where there are more pages, the price says so. Raises HubError or Refused.
    """
    listing, url = Listing(), f"{hub.endpoint}/api/models"
    query: dict[str, str | int] | None = {"author": author, "expand": "sha", "limit": PAGE}
    with translated(f"the list of {author}'s models"):
        while url:
            listing.price += 1
            if listing.price > most_pages:
                break
            # Not the client's `list_models`: it hides the pages, and waits for ever.
            answer = http_backoff(
                "GET",
                url,
                params=query,
                headers=build_hf_headers(token=hub.token),
                timeout=TIMEOUT,
                max_retries=RETRIES,
            )
            hf_raise_for_status(answer)
            for row in answer.json():
                if isinstance(row, dict) and isinstance(row.get("sha"), str):
                    listing.heads[str(row.get("id"))] = row["sha"]
            following = answer.links.get("next", {}).get("url", "")
            url, query = following if following.startswith(f"{hub.endpoint}/") else "", None
    return listing


def head_by_resolver(hub: Hub, repo: str, ref: str) -> str | None:
    """The commit sha of `ref`, or None where the Hub does not name it there, as of a gated repo.

    Raises Refused if the repo or ref does not exist, HubError if the Hub fails.
    """
    url = hf_hub_url(repo, ANY_FILE, revision=ref, endpoint=hub.endpoint)
    with translated(f"{repo}@{ref}"):
        for _ in range(MOST_HOPS):
            answer = http_backoff(
                "HEAD",
                url,
                headers=build_hf_headers(token=hub.token),
                follow_redirects=False,  # to the file: this answer names the commit already
                timeout=TIMEOUT,
                max_retries=RETRIES,
            )
            sha = answer.headers.get("X-Repo-Commit", "")
            if COMMIT.fullmatch(sha):
                return sha
            following = str(answer.next_request.url) if answer.next_request else ""
            if not following.startswith(f"{hub.endpoint}/"):
                break
            url = following
        if answer.headers.get("X-Error-Code") != "GatedRepo":
            hf_raise_for_status(answer)
    return None


def look(hub: Hub, looks: Looks, known: Known, now: datetime, ask: Ask) -> Iterator[Outcome]:
    """Every base of `looks` once, with where it stands or why that can't be told.

    They come as they are found, from a few threads. `known` learns on the way. `ask` finds the
    heads of a base for which neither a listing nor a HEAD does.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [
            pool.submit(_listed, hub, author, bases, known, now, ask)
            for author, bases in looks.listed.items()
        ]
        futures += [
            pool.submit(_alone, hub, [base], known, ask) for base in looks.resolved + looks.asked
        ]
        for done in as_completed(futures):
            yield from done.result()


def _listed(
    hub: Hub, author: str, bases: list[Followed], known: Known, now: datetime, ask: Ask
) -> list[Outcome]:
    try:
        with polling():
            listing = heads_of_author(hub, author, len(bases) // PRICE)
    except PortllmError:
        listing = Listing(price=len(bases))  # each alone, then, until the price is forgotten
    known.prices[author] = (listing.price, now)
    moved = [base for base in bases if listing.heads.get(base.repo) != base.sha]
    same = [base for base in bases if listing.heads.get(base.repo) == base.sha]
    return [*((base, _heads(base, base.sha)) for base in same), *_alone(hub, moved, known, ask)]


def _alone(hub: Hub, bases: list[Followed], known: Known, ask: Ask) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for base in bases:
        try:
            with polling():
                outcomes.append((base, _found(hub, base, known, ask)))
        except PortllmError as error:
            outcomes.append((base, error))
    return outcomes


def _found(hub: Hub, base: Followed, known: Known, ask: Ask) -> list[Head]:
    if base.rule == Rule.REF and base.repo not in known.closed:
        sha = head_by_resolver(hub, base.repo, base.ref)
        if sha is not None:
            return _heads(base, sha)
        known.closed.add(base.repo)
    return ask(base)


def _heads(base: Followed, sha: str) -> list[Head]:
    return [Head(base.repo, base.ref, sha)]
