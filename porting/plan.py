"""The dry run: which tensor every update changes, and which files travel. Headers only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from porting import files
from porting.base.layout import Layout, TensorInfo, read_layout
from porting.base.quantised import is_quantised
from porting.base.vocabulary import compare_vocabularies
from porting.errors import Refused
from porting.mapping import Parameters, Touch, check_mergeable, map_updates
from porting.patch.adapter import Adapter, read_adapter
from porting.patch.updates import Absolute, LoraPair, Operator, Update
from porting.source import FileEntry, Source, read_json
from porting.tying import untied_head

Form = Literal["merged", "adapter"]
Policy = Literal["reapply", "freeze"]


@dataclass(frozen=True)
class Plan:
    """What a port will do, made by `plan`.

    Attributes:
        as_: the form of what is written.
        policy: what a patch of class C means on the new base; None for the other classes.
        touched: the tensors that change, or that a re-pointed adapter will change when loaded.
        layout: where the base's tensors lie.
        head: the output layer that gets a tensor of its own because the patch tells it apart from
            the embedding it is tied to; its start and end are the embedding's.
        copied_files: files copied byte for byte.
        skipped_files: files left behind, each with the reason.
        bytes_out: size of everything written, of a converted adapter about.
        summary: one sentence.
    """

    as_: Form
    policy: Policy | None
    touched: tuple[Touch, ...]
    layout: Layout
    head: TensorInfo | None
    copied_files: tuple[str, ...]
    skipped_files: tuple[tuple[str, str], ...]
    bytes_out: int
    summary: str

    def touches_of(self, file: str) -> tuple[Touch, ...]:
        return tuple(touch for touch in self.touched if touch.tensor.file == file)

    @property
    def appended(self) -> TensorInfo | None:
        """The untied head, where the base has no tensor for it."""
        return self.head if self.head and self.head.name not in self.layout.tensors else None

    @property
    def rewrites(self) -> bool:
        """Whether an adapter's tensors change on their way: see `porting.rebase`."""
        return self.as_ == "adapter" and any(
            isinstance(touch.update, Absolute)
            or (isinstance(touch.update, Operator) and touch.update.meaning == "initialised")
            or self.appended_rows(touch) > 0
            for touch in self.touched
        )

    def appended_rows(self, touch: Touch) -> int:
        """How many rows the new base has behind those that `touch` changes."""
        whole = self.layout.tensors.get(touch.tensor.name)
        views = touch.expert is not None or touch.first_row or whole is None
        return 0 if views or whole is None else whole.shape[0] - touch.tensor.shape[0]

    @property
    def written_files(self) -> tuple[str, ...]:
        """Every file of a merged model, in the order in which they are written."""
        changed = {touch.tensor.file for touch in self.touched}
        if self.head:
            changed |= {"config.json"}
        if self.appended:
            changed |= {self.appended.file, *_index(self.layout)}
        return tuple(sorted({*self.copied_files, *changed}))

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values, for a person, a card or a log."""
        return {
            "as": self.as_,
            "policy": self.policy,
            "summary": self.summary,
            "bytes_out": self.bytes_out,
            "untied_head": self.head.name if self.head else None,
            "touched": [_touch_dict(touch) for touch in self.touched],
            "copied_files": list(self.copied_files),
            "skipped_files": [{"file": f, "reason": reason} for f, reason in self.skipped_files],
        }


def _touch_dict(touch: Touch) -> dict[str, Any]:
    pair = touch.update if isinstance(touch.update, LoraPair) else None
    return {
        "tensor": touch.tensor.name,
        "file": touch.tensor.file,
        "shape": list(touch.tensor.shape),
        "dtype": touch.tensor.dtype,
        "module": touch.update.target.rpartition(".")[0],
        "update": type(touch.update).__name__,
        "rank": pair.rank if pair else None,
        "scale": pair.scale if pair else None,
        "expert": touch.expert,
    }


def plan(
    base: Source,
    patch: Source,
    *,
    as_: Form,
    old_base: Source | None = None,
    policy: Policy | None = None,
    whole: bool = True,
) -> Plan:
    """Map every update of `patch` to a tensor of `base`, and every file to its fate.

    `merged` writes the base with the updates added; `adapter` writes the patch, pointed at the
    new base, after the same checks. No weight is read.

    Args:
        old_base: the base the patch was trained on; asked for where the patch holds values that
            only it gives a meaning.
        policy: for a patch of class C: `reapply` its operator to the new base, or `freeze` the
            change it made to the old base and add that.
        whole: whether all of the base must be there, or just what the patch touches.

    Raises:
        Refused: whatever `read_adapter`, `read_layout` or `map_updates` refuses, or a base that
            can't be merged into.
    """
    found = read_adapter(patch)
    config = read_json(base, "config.json")
    layout = read_layout(base, whole=whole and as_ == "merged")
    quantised = is_quantised(base, config, layout)
    policy = _policy(found, as_, policy, patch.name)
    _check_old_base(found, policy, old_base, patch.name)
    _check_form(found, as_, quantised, base.name, patch.name)
    if old_base:
        _check_tokens(old_base, base)
    new = Parameters(layout, config, base.name)
    touched: tuple[Touch, ...] = ()
    if not quantised:
        old = _parameters(old_base) if old_base and _needs_old(found, policy) else None
        updates = found.updates if as_ == "merged" else _known(found.updates, new, old)
        touched = map_updates(updates, new, old)
    head = untied_head(touched, new) if as_ == "merged" else None
    appended = head if head and head.name not in layout.tensors else None
    places = {*layout.tensors, *([appended.name] if appended else [])}
    if as_ == "merged" and (lost := [t for t in touched if t.tensor.name not in places]):
        raise Refused(
            f"config.json in {base.name}: {lost[0].tensor.name!r} shares a tensor that can't be "
            "told apart in one port; ask for an adapter"
        )
    if as_ == "adapter":
        present = patch.files()
        rewritten = {found.config_file}
        always = {found.config_file, *found.layout.files, *_index(found.layout)}
        skipped = []
    else:
        check_mergeable(touched, base.name)
        present = base.files()
        rewritten = {touch.tensor.file for touch in touched}
        if head:
            rewritten |= {"config.json"}
        if appended:
            rewritten |= {appended.file, *_index(layout)}
        always = {"config.json", *layout.files, *_index(layout)}
        skipped = _left_in_patch(patch.files())
    written = [file for file in present if file in always or files.matches(file, files.TRAVEL)]
    left = [(file, files.why_skipped(file)) for file in present if file not in written]
    bytes_out = sum(present[file].size for file in written)
    bytes_out += appended.end - appended.start if appended else 0
    made = Plan(
        as_=as_,
        policy=policy,
        touched=touched,
        layout=layout,
        head=head,
        copied_files=tuple(file for file in written if file not in rewritten),
        skipped_files=tuple(left + skipped),
        bytes_out=bytes_out,
        summary="",
    )
    if made.rewrites:
        kept = tuple(file for file in made.copied_files if file not in found.layout.files)
        made = replace(made, copied_files=kept)
    return replace(made, summary=_summary(found, made))


def _parameters(base: Source) -> Parameters:
    return Parameters(read_layout(base, whole=False), read_json(base, "config.json"), base.name)


def _index(layout: Layout) -> set[str]:
    return {layout.index} if layout.index else set()


def _policy(found: Adapter, as_: Form, policy: Policy | None, name: str) -> Policy | None:
    if found.portability != "C":
        return None
    if as_ == "adapter":
        if policy == "freeze":
            raise Refused(
                f"{found.config_file} in {name}: an adapter of kind {found.kind} applies itself to "
                "the new base, so it can't be frozen; ask for a merged model"
            )
        return "reapply"
    if policy is None:
        raise Refused(
            f"{found.config_file} in {name}: kind {found.kind} is not additive (class C): "
            f"{found.reason}. Say which meaning is wanted: policy reapply (the operator on the new "
            "base) or freeze (the change it made to the old base)"
        )
    return policy


def _needs_old(found: Adapter, policy: Policy | None) -> bool:
    return found.old_base_field is not None or policy == "freeze"


def _check_old_base(
    found: Adapter, policy: Policy | None, old_base: Source | None, name: str
) -> None:
    if old_base is None and _needs_old(found, policy):
        what = found.old_base_field or "policy freeze"
        raise Refused(
            f"{found.config_file} in {name}: {what} has a meaning only beside the base that the "
            "patch was trained on; give that base too (at the commit it was trained on)"
        )


def _check_form(found: Adapter, as_: Form, quantised: bool, base: str, name: str) -> None:
    if as_ == "merged" and found.portability == "D":
        raise Refused(
            f"{found.config_file} in {name}: kind {found.kind} can't be merged (class D): "
            f"{found.reason}; ask for an adapter"
        )
    if as_ == "merged" and quantised:
        raise Refused(
            f"config.json in {base}: the base is quantised (quantization_config), so it can't be "
            "merged into; ask for an adapter, or follow the unquantised base"
        )
    if quantised and found.old_base_field:
        raise Refused(
            f"{found.config_file} in {name}: {found.old_base_field} holds the old base's values, "
            f"which can't be compared with the quantised {base}; follow the unquantised base"
        )


def _check_tokens(old_base: Source, base: Source) -> None:
    vocabulary, reason = compare_vocabularies(old_base, base)
    if vocabulary == "changed":
        raise Refused(
            f"tokenizer.json in {base.name}: its tokens are not those of {old_base.name}, which "
            f"the patch was trained on, so rows mean other words: {reason} Train the patch again"
        )


def _known(
    updates: tuple[Update, ...], new: Parameters, old: Parameters | None
) -> tuple[Update, ...]:
    """Without the layers that neither base has, such as a classifier that the patch brought."""
    return tuple(
        update
        for update in updates
        if not isinstance(update, Absolute) or new.has(update) or (old and old.has(update))
    )


def _left_in_patch(present: Mapping[str, FileEntry]) -> list[tuple[str, str]]:
    return [
        (f"{file} (patch)", "a merged model keeps the base's own")
        for file in present
        if files.matches(file, files.TRAVEL)
    ]


def _summary(found: Adapter, made: Plan) -> str:
    changed = len({touch.tensor.name for touch in made.touched})
    what = f"{len(found.updates)} {found.kind} updates"
    written = f"{made.bytes_out:,} bytes to write."
    if made.as_ == "merged":
        return f"Merge {what} into {changed} of {len(made.layout.tensors)} tensors: {written}"
    if found.portability == "D":
        return f"Re-point a {found.kind} adapter as it is, shapes not compared: {written}"
    if not made.touched:
        return f"Re-point {what} at a quantised base, shapes not compared: {written}"
    verb = "Convert" if made.rewrites else "Re-point"
    return f"{verb} {what} that fit {changed} of {len(made.layout.tensors)} tensors: {written}"
