"""What was measured, as the Hub's `model-index`: read by its widget, its search and leaderboards.

Accuracy is a share there, as in the Hub's `evaluate`; an owner's own entries are left alone.
"""

from typing import TYPE_CHECKING, Any

from patch_cards import lock

if TYPE_CHECKING:
    from patch_cards.card import CardFacts

FIELD, SOURCE = "model-index", "PortLLM"
DIGITS = 6


def model_index(facts: "CardFacts") -> list[dict[str, Any]]:
    """The entry for the port: what it reached on its own task and on the guard set, if measured."""
    if facts.findings is None:
        return []
    repo, revision = facts.dataset or (facts.findings["own"]["task"], facts.patch_sha)
    found = [(facts.findings["own"], {"type": repo, "revision": revision})]
    found += [(guard, {"type": guard["task"]}) for guard in facts.findings["guard"]]
    results = [_result(facts, each, dataset) for each, dataset in found]
    return [{"name": facts.name, "results": results}]


def _result(facts: "CardFacts", found: dict[str, Any], dataset: dict[str, str]) -> dict[str, Any]:
    port = {name: round(value, DIGITS) for name, value in found["arms"]["port"].items()}
    interval = f"{port['low']:g} to {port['high']:g}"
    metric = {
        "type": found["metric"].replace(" ", "_"),
        "name": f"{found['metric']} on {found['items']} items, interval {interval}",
        "value": port["mean"],
    }
    lock_url = f"{facts.home}/{facts.repo}/blob/{facts.tag}/{lock.NAME}"
    return {
        "task": {"type": facts.pipeline_tag or "text-generation"},
        "dataset": {"name": found["task"], **dataset},
        "metrics": [metric],
        "source": {"name": SOURCE, "url": lock_url},
    }


def with_index(metadata: dict[str, Any], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """`metadata` with this in the place of what earlier ports left there."""
    _, others = divided(metadata)
    rest = {name: value for name, value in metadata.items() if name != FIELD}
    return rest | ({FIELD: [*ours, *others]} if ours or others else {})


def divided(metadata: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The entries that ports wrote, and the owner's."""
    entries = metadata.get(FIELD)
    entries = entries if isinstance(entries, list) else [entries] if entries else []
    ours = [entry for entry in entries if _is_ours(entry)]
    return ours, [entry for entry in entries if entry not in ours]


def _is_ours(entry: Any) -> bool:
    results = entry.get("results") if isinstance(entry, dict) else None
    sources = [each.get("source") for each in results or [] if isinstance(each, dict)]
    return bool(sources) and all(
        isinstance(source, dict) and source.get("name") == SOURCE for source in sources
    )
