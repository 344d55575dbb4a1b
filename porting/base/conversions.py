"""Names of parameters that Transformers gives when it loads a checkpoint, and where they lie.

Transformers' own tables say it (`transformers.conversion_mapping`). A parameter that is not made of
whole rows of the checkpoint's tensors has no place that an update could be written to, and is left
out.
"""

from typing import TYPE_CHECKING, Any

from porting.base.layout import Layout, TensorInfo
from porting.base.loaded import empty_model
from porting.base.parts import NotRowsError, Part, applied, parts_of, value_of

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter

LONGEST = 500  # characters; the expressions of the tables may take the square of that
Sources = dict[str | None, list[TensorInfo]]  # by the pattern of a converter that matched


class Loaded:
    """The parameters of the model that Transformers makes of a checkpoint.

    Attributes:
        parts: the parts of every parameter that has a place, by its name in the model; empty where
            Transformers does not know the model.
    """

    def __init__(self, layout: Layout, config: dict[str, Any]) -> None:
        self.parts: dict[str, tuple[Part, ...]] = {}
        self._table: _Table | None = None
        model = empty_model(config, len(layout.tensors))
        if model is not None:
            self._table = _Table(model)
            self.parts = self._table.parts(layout)

    def find(self, name: str) -> tuple[Part, ...] | None:
        """The parts of a parameter, by the name that this or an older Transformers gives it."""
        if name in self.parts or self._table is None or len(name) > LONGEST:
            return self.parts.get(name)
        return self.parts.get(self._table.renamed(name))


class _Table:
    """How Transformers renames and converts the tensors of one model.

    Follows `transformers.core_model_loading.convert_and_load_state_dict_in_model`.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        changes = get_model_conversion_mapping(model)
        self.model, self.held = model, model.state_dict()
        self.renamings = [change for change in changes if isinstance(change, WeightRenaming)]
        self.converters = [change for change in changes if isinstance(change, WeightConverter)]

    def renamed(self, name: str) -> str:
        """The model's name for a parameter that an older Transformers named `name`."""
        from transformers.core_model_loading import rename_source_key

        prefix = self.model.base_model_prefix
        return str(rename_source_key(name, self.renamings, [], prefix, self.held)[0])

    def parts(self, layout: Layout) -> dict[str, tuple[Part, ...]]:
        by_pattern = {pattern: made for made in self.converters for pattern in made.source_patterns}
        parts: dict[str, tuple[Part, ...]] = {}
        for target, sources in self._sources(layout).items():
            converter = by_pattern.get(next(iter(sources)) or "")
            if converter:
                parts |= self._converted(target, sources, converter)
            elif [len(tensors) for tensors in sources.values()] == [1]:
                [[tensor]] = sources.values()
                parts[target] = (Part(tensor, transposed=self._is_transposed(target)),)
        return parts

    def _sources(self, layout: Layout) -> dict[str, Sources]:
        """The tensors that become each parameter, by its name; the first of several results'."""
        from transformers.core_model_loading import dot_natural_key, rename_source_key

        prefix = self.model.base_model_prefix
        names = [name for name in layout.tensors if name.isascii() and len(name) <= LONGEST]
        found: dict[str, Sources] = {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(
                name, self.renamings, self.converters, prefix, self.held
            )
            if target not in self.held and name in self.held:
                target, pattern = rename_source_key(name, [], [], prefix, self.held)
            if target in self.held:
                sources = found.setdefault(target, {})
                sources.setdefault(pattern, []).append(layout.tensors[name])
        return found

    def _converted(
        self, target: str, sources: Sources, converter: "WeightConverter"
    ) -> dict[str, tuple[Part, ...]]:
        patterns = converter.target_patterns
        targets = [target.replace(patterns[0], pattern) for pattern in patterns]
        if len(set(targets) & self.held.keys()) != len(patterns):
            return {}
        if not sources.keys() <= {*converter.source_patterns}:
            return {}
        shapes = [tuple(self.held[name].shape) for name in targets]
        try:
            values = [
                [value_of(tensor) for tensor in sources[pattern]]
                for pattern in converter.source_patterns
                if pattern in sources
            ]
            for operation in converter.operations:
                values = applied(operation, values, shapes)
            if [len(group) for group in values] != [1] * len(targets):
                return {}
            return {
                name: tuple(parts_of(value, self._is_transposed(name)))
                for name, [value] in zip(targets, values, strict=True)
            }
        except NotRowsError:
            return {}

    def _is_transposed(self, name: str) -> bool:
        """Whether PEFT takes a stack for (experts, in, out): `ParamWrapper.update_layer`."""
        module = self.model.get_submodule(name.rpartition(".")[0])
        return bool(getattr(module, "is_transposed", False))
