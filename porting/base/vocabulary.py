"""Whether a new base's tokens are the old ones: only then do its rows mean the same words."""

from collections.abc import Mapping
from typing import Any, Literal

from porting.source import Source, read_json

TOKENIZER = "tokenizer.json"
MAX_BYTES = 100_000_000  # the largest in use have 35 MB
Vocabulary = Literal["same", "grown", "changed"]


def compare_vocabularies(old: Source, new: Source) -> tuple[Vocabulary, str]:
    """What became of the vocabulary, and why it is said.

    `grown` means that every old token keeps its number and all rules of splitting and merging
    stay; new tokens have numbers that no old one had. Only `tokenizer.json` is understood: a base
    that describes its tokens in another file counts as changed if any file of its differs.
    """
    if TOKENIZER not in old.files() or TOKENIZER not in new.files():
        if (TOKENIZER in old.files()) == (TOKENIZER in new.files()):
            return "same", "Neither base has a tokenizer.json."
        return "changed", "Only one of the two bases has a tokenizer.json."
    if old.files()[TOKENIZER].digest == new.files()[TOKENIZER].digest:
        return "same", "tokenizer.json is the same."
    before, after = (read_json(source, TOKENIZER, MAX_BYTES) for source in (old, new))
    for key in sorted(before.keys() | after.keys()):
        if key not in ("model", "added_tokens") and before.get(key) != after.get(key):
            return "changed", f"tokenizer.json changed in {key!r}."
    model, other = dict(_object(before, "model")), dict(_object(after, "model"))
    tokens, others = _tokens(model.pop("vocab", {})), _tokens(other.pop("vocab", {}))
    merges, more = model.pop("merges", []), other.pop("merges", [])
    if model != other or merges != more:
        return "changed", "tokenizer.json changed in how text is split into tokens."
    tokens |= _added(before)
    others |= _added(after)
    if moved := [token for token, number in tokens.items() if others.get(token) != number]:
        return "changed", f"tokenizer.json gives {moved[0]!r} another number, or none."
    numbers = set(tokens.values())
    if reused := [t for t, n in others.items() if t not in tokens and n in numbers]:
        return "changed", f"tokenizer.json gives {reused[0]!r} the number of another token."
    count = len(others.keys() - tokens.keys())
    return (
        ("grown", f"{count} tokens were added.") if count else ("same", "The tokens are the same.")
    )


def _object(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {"": found}


def _tokens(vocab: Any) -> dict[str, int]:
    """Numbers by token: BPE and WordPiece keep an object, Unigram a list of [token, score]."""
    if isinstance(vocab, dict):
        return {str(token): number for token, number in vocab.items()}
    if isinstance(vocab, list):
        return {repr(entry): number for number, entry in enumerate(vocab)}
    return {}


def _added(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    added = tokenizer.get("added_tokens")
    entries = added if isinstance(added, list) else []
    return {
        e["content"]: e["id"]
        for e in entries
        if isinstance(e, dict) and {"content", "id"} <= e.keys()
    }
