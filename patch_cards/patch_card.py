"""The card of a patch: what it is, how to have it on a newer base, and how its ports did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from patch_cards.card import FULL, compose, fill
from registry.history import Moment

TAG = "portllm"  # by which patches are found
CLASSES = {
    "A": "it is added to the base, so it can be added to another one",
    "B": "it started from the base's own weights, so what training changed since is carried over",
    "C": "it is not additive, so its operator works on the new base's weights, or what it did to "
    "the old ones is added, as whoever subscribes it says",
    "D": "it can't be merged, and is pointed at the new base as it is",
}


@dataclass(frozen=True)
class PatchFacts:
    """Everything a patch's card shows; `ports` are those that everybody may see, newest first."""

    repo: str
    kind: str
    portability: str
    base_repo: str
    base_sha: str
    task: str | None
    ports: Sequence[Moment]
    has_chart: bool

    @property
    def why(self) -> str:
        return CLASSES[self.portability]


def render(facts: PatchFacts, existing: str) -> str:
    """README.md, its owner's words and metadata kept, with the tags and the base that are missing.

    Raises:
        Refused: the card's metadata can't be kept, or its end marker is missing.
    """
    generated = fill("patch.md.j2", facts)
    return compose(existing, generated, lambda owners: _metadata(facts, owners))


def _metadata(facts: PatchFacts, owners: dict[str, Any]) -> dict[str, Any]:
    given = owners.get("tags")
    tags = given if isinstance(given, list) else [given] if isinstance(given, str) else []
    missing = {
        "base_model": facts.base_repo,
        "base_model_relation": "adapter",
        "library_name": TAG if facts.kind == FULL else "peft",
    }
    added = [tag for tag in (TAG, facts.kind) if tag not in tags]
    return missing | owners | {"tags": [*tags, *added]}
