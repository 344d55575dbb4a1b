"""Which files of a base and of a patch are fetched: what loads, what is judged, nothing else."""

from bot.evaluation import LARGEST, SPEC
from porting import FileEntry, Source, read_layout
from porting.files import TRAVEL, matches


def base_files(base: Source) -> dict[str, FileEntry]:
    """The weights that load, their index, the config, the tokenizer; no pickle, no code."""
    layout = read_layout(base)
    weights = {"config.json", *layout.files, *([layout.index] if layout.index else [])}
    return {
        name: entry
        for name, entry in base.files().items()
        if name in weights or matches(name, TRAVEL)
    }


def patch_files(patch: Source) -> dict[str, FileEntry]:
    """The adapter, its tokenizer if it has one, and its evaluation."""
    adapter = ("adapter_config.json", "adapter_model.safetensors", SPEC)
    return {
        name: entry
        for name, entry in patch.files().items()
        if name in adapter
        or matches(name, TRAVEL)
        or (name.startswith("eval/") and name.endswith(".jsonl") and entry.size <= LARGEST)
    }
