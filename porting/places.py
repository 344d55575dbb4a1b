"""Where an adapter can hold the change of each tensor: in a pair, in a saved module, or nowhere."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from porting.base.conversions import Loaded
from porting.base.layout import FLOATS, Layout, TensorInfo
from porting.base.loaded import empty_model
from porting.errors import Refused

WAY_OUT = "extract the full delta (--full)"


@dataclass(frozen=True)
class Place:
    """The module, by its name in the model, that a tensor belongs to.

    `kind` is `linear` for a weight (out, in), `conv1d` for one (in, out), `bias` for the bias of
    either, and `whole` for whatever any other module without children has.
    """

    module: str
    kind: Literal["linear", "conv1d", "bias", "whole"]


class Places:
    """The modules that Transformers makes of a base, and the tensors of its files that fill them.

    Raises:
        Refused: Transformers knows no such model.
    """

    def __init__(self, layout: Layout, config: dict[str, Any], base: str) -> None:
        model = empty_model(config, len(layout.tensors))
        if model is None:
            raise Refused(
                f"config.json in {base}: architectures {config.get('architectures')!r} is no model "
                f"that Transformers itself can build, so nothing tells its layers apart; {WAY_OUT}"
            )
        self._model, self._base = model, base
        self._tensors = {
            parameter: parts[0].tensor
            for parameter, parts in Loaded(layout, config).parts.items()
            if len(parts) == 1 and parts[0].tensor == layout.tensors[parts[0].tensor.name]
        }
        self._parameters = {tensor.name: name for name, tensor in self._tensors.items()}
        self._tied: dict[str, set[str]] = {}
        for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
            self._tied.setdefault(source, {source}).add(name)

    @property
    def task_type(self) -> str | None:
        """What PEFT's AutoPeftModel classes go by."""
        causal = type(self._model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
        return "CAUSAL_LM" if causal else None

    def of(self, tensor: str) -> Place:
        """The place of a tensor, by its name in the files.

        Raises:
            Refused: it is not the whole parameter of one module that PEFT can adapt or save.
        """
        parameter = self._parameters.get(tensor, "")
        path, _, name = parameter.rpartition(".")
        module = self._model.get_submodule(path)
        unheld = any(module.children()) or isinstance(module, NonDynamicallyQuantizableLinear)
        if unheld or len(self._aliases(parameter)) > 2:
            raise Refused(
                f"{tensor!r} of {self._base} changed, which no adapter can hold: in "
                f"{type(self._model).__name__} it is no parameter of one layer alone; {WAY_OUT}"
            )
        turned = type(module).__name__ == "Conv1D"  # Transformers' own, of GPT-2
        if len(self._aliases(parameter)) > 1 or not (turned or isinstance(module, nn.Linear)):
            return Place(path, "whole")
        if name == "bias":
            return Place(path, "bias")
        return Place(path, "conv1d" if turned else "linear")

    def whole(self, module: str) -> dict[str, TensorInfo]:
        """What is saved with a module: its parameters by name, and those of one tied to it.

        Raises:
            Refused: the files do not have them all, or have them twice.
        """
        own = [f"{module}.{key}" for key in self._model.get_submodule(module).state_dict()]
        modules = {alias.rpartition(".")[0] for name in own for alias in self._aliases(name)}
        return {
            f"{path}.{key}": self.tensor(f"{path}.{key}")
            for path in sorted(modules)
            for key in self._model.get_submodule(path).state_dict()
        }

    def ending(self, names: Iterable[str]) -> list[str]:
        """What PEFT takes `modules_to_save` for: modules whose paths end with one of `names`."""
        ends = tuple(names)
        return [path for path, _ in self._model.named_modules() if path.endswith(ends)]

    def tensor(self, parameter: str) -> TensorInfo:
        """The one tensor that fills a parameter; raises Refused as `whole` does."""
        aliases = self._aliases(parameter)
        found = [self._tensors[name] for name in sorted(aliases) if name in self._tensors]
        if len(found) != 1 or found[0].dtype not in FLOATS:
            raise Refused(
                f"{self._base} has {len(found)} tensors for {parameter!r}, which would be saved "
                f"whole: one of {', '.join(FLOATS)} is needed; {WAY_OUT}"
            )
        return found[0]

    def _aliases(self, parameter: str) -> set[str]:
        """Its names in the model: several, where modules share it."""
        return next((names for names in self._tied.values() if parameter in names), {parameter})
