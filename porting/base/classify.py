"""What changed between two releases of a base, told without downloading a weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from porting.base.layout import WEIGHTS, Layout, read_layout
from porting.base.vocabulary import TOKENIZER as TOKENIZER_JSON
from porting.base.vocabulary import compare_vocabularies
from porting.files import PROCESSOR, PROMPT, TOKENIZER, matches
from porting.source import Source, read_json

Kind = Literal[
    "nothing", "metadata", "weights", "vocabulary", "tokenizer", "shapes", "architecture"
]

# Keys of config.json that say who wrote it, not what the model computes.
HARMLESS = {"transformers_version", "_name_or_path", "transformers.js_config"}
# What lists tokens beside tokenizer.json, and may grow with it.
TOKEN_LISTS = {"added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"}
SPECIAL_TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"}


@dataclass(frozen=True)
class Change:
    """The gravest kind of change, why in one sentence, and every file that differs."""

    kind: Kind
    reason: str
    files: tuple[str, ...]


def classify(old: Source, new: Source) -> Change:
    """Compare two releases by file identities, `config.json`, tokenizer and safetensors headers.

    The gravest kind wins: architecture, shapes, tokenizer, vocabulary, weights, metadata, nothing.
    `vocabulary` means that tokens, and rows for them, were appended and nothing else about the
    tokens changed. From `vocabulary` on a patch keeps its meaning, so whatever is in doubt counts
    as graver.

    Raises:
        Refused: one of the two has no readable config or safetensors where they changed.
    """
    before, after = old.files(), new.files()
    changed = tuple(
        sorted(
            file
            for file in before.keys() | after.keys()
            if file not in before
            or file not in after
            or before[file].size != after[file].size
            or before[file].digest != after[file].digest
        )
    )
    if not changed:
        return Change("nothing", "No file differs.", ())
    keys = _changed_keys(old, new) if "config.json" in changed else []
    if reason := _grown(old, new, changed, keys):
        return Change("vocabulary", reason, changed)
    if reason := _architecture(changed, keys):
        return Change("architecture", reason, changed)
    weights = _weights(changed, old, new)
    if weights and (reason := _shapes(*weights)):
        return Change("shapes", reason, changed)
    also = ", and so did the weights" if weights else ""
    prompt = [file for file in changed if matches(file, TOKENIZER + PROMPT + PROCESSOR)]
    if prompt or keys:
        return Change("tokenizer", f"{_name(prompt or keys)} changed{also}.", changed)
    if weights:
        return Change("weights", _describe(*weights), changed)
    return Change("metadata", f"Only {_name(changed)} changed.", changed)


def _grown(old: Source, new: Source, changed: tuple[str, ...], keys: list[str]) -> str | None:
    """Why this is nothing but new tokens and new rows; None if it is anything else."""
    prompt = [file for file in changed if matches(file, TOKENIZER + PROMPT + PROCESSOR)]
    if TOKENIZER_JSON not in changed or any(key != "vocab_size" for key in keys):
        return None
    if any(file.endswith(".py") for file in changed):
        return None
    for file in prompt:
        if file != TOKENIZER_JSON and not _same_but_lists(old, new, file):
            return None
    grown, reason = compare_vocabularies(old, new)
    if grown != "grown":
        return None
    before, after = read_layout(old).tensors, read_layout(new).tensors
    sizes = [_config(source).get("vocab_size") for source in (old, new)]
    if before.keys() != after.keys():
        return None
    for name, tensor in before.items():
        other = after[name]
        same = tensor.dtype == other.dtype and tensor.shape[1:] == other.shape[1:]
        rows = [tensor.shape[:1], other.shape[:1]]
        if not same or (rows[0] != rows[1] and rows != [(size,) for size in sizes]):
            return None
    return f"{reason[:-1]}, and rows for them; the old tokens keep their numbers."


def _same_but_lists(old: Source, new: Source, file: str) -> bool:
    """Whether a small JSON file of the tokenizer differs only in its lists of tokens."""
    if file not in old.files() or file not in new.files() or not file.endswith(".json"):
        return False
    if file == "added_tokens.json":
        return True  # listed in tokenizer.json again, which is compared token by token
    before, after = read_json(old, file), read_json(new, file)
    keys = (before.keys() | after.keys()) - TOKEN_LISTS
    return all(before.get(key) == after.get(key) for key in keys)


def _name(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def _changed_keys(old: Source, new: Source) -> list[str]:
    """The keys of config.json that differ in more than who wrote them or how dtype is spelt."""
    before, after = _config(old), _config(new)
    missing = object()
    return sorted(
        key
        for key in before.keys() | after.keys()
        if key not in HARMLESS and before.get(key, missing) != after.get(key, missing)
    )


def _config(source: Source) -> dict[str, Any]:
    config = read_json(source, "config.json")
    if "torch_dtype" in config:
        config.setdefault("dtype", config.pop("torch_dtype"))
    return config


def _architecture(changed: tuple[str, ...], keys: list[str]) -> str | None:
    if grave := [key for key in keys if key not in SPECIAL_TOKENS]:
        return f"config.json changed in {_name(grave)}."
    if code := [file for file in changed if file.endswith(".py")]:
        return f"The model's own code changed: {_name(code)}."
    return None


def _weights(
    changed: tuple[str, ...], old: Source, new: Source
) -> tuple[Layout, Layout, list[str]] | None:
    """Both layouts, and which of the files that hold the weights differ; `None` if none does."""
    if not any(file.endswith((".safetensors", f"{WEIGHTS}.index.json")) for file in changed):
        return None
    before, after = read_layout(old), read_layout(new)
    loaded = {*before.files, *after.files}
    differing = [file for file in changed if file in loaded]
    return (before, after, differing) if differing or before != after else None


def _shapes(before: Layout, after: Layout, _: list[str]) -> str | None:
    gone = before.tensors.keys() - after.tensors.keys()
    come = after.tensors.keys() - before.tensors.keys()
    if gone or come:
        first = min(gone | come)
        return f"{len(come)} tensors were added and {len(gone)} removed, {first} among them."
    for name, tensor in before.tensors.items():
        other = after.tensors[name]
        if (tensor.dtype, tensor.shape) != (other.dtype, other.shape):
            return (
                f"{name} was {tensor.dtype} {list(tensor.shape)} and is now {other.dtype} "
                f"{list(other.shape)}."
            )
    return None


def _describe(before: Layout, after: Layout, differing: list[str]) -> str:
    if before.files != after.files:
        return "The same tensors are in other files, with values that may or may not differ."
    return f"Same shapes, other values in {len(differing)} of {len(after.files)} weight files."
