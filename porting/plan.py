"""The dry run: which tensor every LoRA pair touches, and which files travel. Headers only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from porting import adapter, files
from porting.adapter import Adapter, read_adapter
from porting.errors import Refused
from porting.layout import Layout, read_layout
from porting.mapping import Touch, check_mergeable, map_pairs
from porting.source import FileEntry, Source, read_json

Form = Literal["merged", "adapter"]


@dataclass(frozen=True)
class Plan:
    """What a port will do, made by `plan`.

    Attributes:
        as_: the form of what is written.
        touched: the tensors that change, or that a re-pointed adapter will change when loaded.
        layout: where the base's tensors lie.
        copied_files: files copied byte for byte.
        skipped_files: files left behind, each with the reason.
        bytes_out: size of everything written.
        summary: one sentence.
    """

    as_: Form
    touched: tuple[Touch, ...]
    layout: Layout
    copied_files: tuple[str, ...]
    skipped_files: tuple[tuple[str, str], ...]
    bytes_out: int
    summary: str

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values, for a person, a card or a log."""
        return {
            "as": self.as_,
            "summary": self.summary,
            "bytes_out": self.bytes_out,
            "touched": [
                {
                    "tensor": touch.tensor.name,
                    "file": touch.tensor.file,
                    "shape": list(touch.tensor.shape),
                    "dtype": touch.tensor.dtype,
                    "module": touch.pair.module,
                    "rank": touch.pair.rank,
                    "scale": touch.pair.scale,
                }
                for touch in self.touched
            ],
            "copied_files": list(self.copied_files),
            "skipped_files": [{"file": f, "reason": reason} for f, reason in self.skipped_files],
        }


def plan(base: Source, patch: Source, *, as_: Form) -> Plan:
    """Map every pair of `patch` to a tensor of `base`, and every file to its fate.

    `merged` writes the base with the updates added; `adapter` writes the patch, pointed at the
    new base, after the same checks. No weight is read.

    Raises:
        Refused: whatever `read_adapter`, `read_layout` or `map_pairs` refuses, or a base that
            can't be merged into.
    """
    found = read_adapter(patch)
    config = read_json(base, "config.json")
    layout = read_layout(base)
    quantised = bool(config.get("quantization_config"))
    touched = () if quantised else map_pairs(found.pairs, layout, config, base.name)
    if as_ == "adapter":
        present = patch.files()
        rewritten = {adapter.CONFIG}
        always = {adapter.CONFIG, adapter.WEIGHTS}
        skipped = []
    else:
        if quantised:
            raise Refused(
                f"config.json in {base.name}: quantization_config is set, and a quantised base "
                "can't be merged into; ask for an adapter, or follow the unquantised base"
            )
        check_mergeable(touched, config, base.name)
        present = base.files()
        rewritten = {touch.tensor.file for touch in touched}
        always = {"config.json", *layout.files} | ({layout.index} if layout.index else set())
        skipped = _left_in_patch(patch.files())
    written = [file for file in present if file in always or files.matches(file, files.TRAVEL)]
    left = [(file, files.why_skipped(file)) for file in present if file not in written]
    bytes_out = sum(present[file].size for file in written)
    return Plan(
        as_=as_,
        touched=touched,
        layout=layout,
        copied_files=tuple(file for file in written if file not in rewritten),
        skipped_files=tuple(left + skipped),
        bytes_out=bytes_out,
        summary=_summary(found, len(touched), len(layout.tensors), as_, bytes_out),
    )


def _left_in_patch(present: Mapping[str, FileEntry]) -> list[tuple[str, str]]:
    return [
        (f"{file} (patch)", "a merged model keeps the base's own")
        for file in present
        if files.matches(file, files.TRAVEL)
    ]


def _summary(found: Adapter, touched: int, tensors: int, as_: Form, size: int) -> str:
    what = f"{len(found.pairs)} {found.kind} updates"
    written = f"{size:,} bytes to write."
    if as_ == "merged":
        return f"Merge {what} into {touched} of {tensors} tensors: {written}"
    if not touched:
        return f"Re-point {what} at a quantised base, shapes not compared: {written}"
    return f"Re-point {what} that fit {touched} of {tensors} tensors: {written}"
