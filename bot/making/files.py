"""Which files of a base and of a patch are fetched: what loads, what is judged, nothing else."""

from collections.abc import Iterable

from judging.task import LARGEST, SPEC
from porting import FileEntry, Layout, Source, read_adapter, read_layout
from porting.base.vocabulary import TOKENIZER
from porting.files import TRAVEL, matches


def base_files(base: Source) -> dict[str, FileEntry]:
    """The weights that load, their index, the config, the tokenizer; no pickle, no code."""
    weights = {"config.json", *_weights(read_layout(base))}
    return {
        name: entry
        for name, entry in base.files().items()
        if name in weights or matches(name, TRAVEL)
    }


def files_with(base: Source, shards: Iterable[str]) -> dict[str, FileEntry]:
    """What two bases are compared by: of the weights only `shards`, or the one file there is."""
    layout = read_layout(base)
    weights = [layout.index] if layout.index else layout.files
    wanted = {"config.json", TOKENIZER, *shards, *weights}
    return {name: entry for name, entry in base.files().items() if name in wanted}


def patch_files(patch: Source) -> dict[str, FileEntry]:
    """What is read of a patch, its tokenizer if it has one, and its evaluation."""
    found = read_adapter(patch)
    wanted = {found.config_file, *_weights(found.layout), SPEC}
    return {
        name: entry
        for name, entry in patch.files().items()
        if name in wanted
        or matches(name, TRAVEL)
        or (name.startswith("eval/") and name.endswith(".jsonl") and entry.size <= LARGEST)
    }


def _weights(layout: Layout) -> set[str]:
    return {*layout.files, *([layout.index] if layout.index else [])}
