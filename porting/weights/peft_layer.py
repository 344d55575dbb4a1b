"""One layer with its adapter, built and computed by PEFT. The only module that imports PEFT."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import peft
import torch
from peft.tuners.boft import layer as boft
from torch import nn

from porting.errors import Refused
from porting.patch.kind_table import KINDS, LAYER
from porting.patch.kinds import layer_fields
from porting.patch.lora import REPEATABLE_INITS, is_safe_init
from porting.patch.updates import Operator

CONFIG = "adapter_config.json"
LARGEST = "largest"
ADAPTER = "default"
KEY = f"base_model.model.{LAYER}."

boft._FBD_CUDA = False  # type: ignore[assignment]  # else PEFT compiles an extension for a GPU


class PeftLayer:
    """A throw-away linear or embedding layer that carries one `Operator`.

    PEFT's own functions load the tensors and compute. The layer is in float64, but PEFT computes in
    float32 what needs an FFT (FourierFT, C3A) or a decomposition (OSF, DEFT, PiSSA, OLoRA). Every
    method builds the layer anew, so that nothing is kept between them but the tensors.

    Args:
        config: the patch's adapter_config.json.
        update: which module, and its tensors.
        tensors: the values of `update.tensors` by their names in the file.
        shapes: `(out, in)` of every module of the adapter, for kinds that share by the largest.

    Raises:
        Refused: the config contradicts the tensors, or the module is no matrix. The methods raise
            it where the tensors do not fit the layer, or some of them are not used.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        update: Operator,
        tensors: Mapping[str, torch.Tensor],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        kind = KINDS.get(config["peft_type"])
        alone = kind is None or not kind.by_largest
        sizes = {update.module: shapes[update.module]} if alone else shapes
        for module, shape in sizes.items():
            if len(shape) != 2:
                raise Refused(
                    f"{update.tensors[0].file}: {module!r} has a weight of shape {shape}, but only "
                    "matrices can be ported; train without it"
                )
        self._update, self._shape = update, shapes[update.module]
        self._largest = None if alone else [max(size) for size in zip(*sizes.values(), strict=True)]
        self._fields = _fields(config, update)
        self._names = {_renamed(name, update.module): name for name in tensors}
        self._tensors = {  # VB-LoRA scatters these into a float32 tensor
            new: tensors[old].float() if old.endswith("_topk_weights") else tensors[old]
            for new, old in self._names.items()
        }

    def delta(self) -> torch.Tensor:
        """`(out, in)` float64: what an additive kind (class A) adds; `(out,)` for a bias."""
        shape = self._shape if self._update.parameter == "weight" else self._shape[:1]
        return self.operated(torch.zeros(shape, dtype=torch.float64))

    def initial(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A0 `(rank, in)` and B0 `(out, rank)`, float64, that a class B init takes out of `weight`.

        PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775), computed in float32 by PEFT.
        """
        with _quiet(self._update):
            layer = self._model(weight).base_model.model[LAYER]
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        for part, made in (("lora_A", a), ("lora_B", b)):
            if made.shape != self._tensors[f"{KEY}{part}.weight"].shape:
                raise Refused(
                    f"{CONFIG}: r is {self._update.rank}, more than a weight of shape "
                    f"{self._shape} has; save the adapter again"
                )
        return self._finite(a), self._finite(b)

    def operated(self, value: torch.Tensor) -> torch.Tensor:
        """The weight (or, by `update.parameter`, the bias) that a class C kind makes of `value`."""
        with _quiet(self._update):
            model = self._model(value)
            self._load(model)
            layer = model.base_model.model[LAYER]
            layer.merge()
        return self._finite(getattr(layer.get_base_layer(), self._update.parameter))

    def _finite(self, made: torch.Tensor) -> torch.Tensor:
        if not made.isfinite().all():
            raise Refused(
                f"{self._update.tensors[0].file}: {self._update.target!r} becomes NaN or infinite; "
                "the training diverged, save an earlier checkpoint"
            )
        return made.detach().double()

    def _model(self, value: torch.Tensor) -> Any:
        """A PEFT model of one layer, whose weight or bias is `value`.

        Beside it lies, for kinds that share by the largest layer, one of that size and no memory.
        """
        start = self._fields.get("init_lora_weights", True)
        dtype = torch.float64 if isinstance(start, bool) else torch.float32
        value = value.to(dtype, copy=True)
        embedding = any("_embedding_" in name for name in self._tensors)
        layers: dict[str, nn.Module] = {}
        if self._update.parameter == "bias":
            layers[LAYER] = _linear(torch.zeros(len(value), 1, dtype=dtype), bias=value)
        else:
            layers[LAYER] = _embedding(value) if embedding else _linear(value)
        if self._largest:
            layers[LARGEST] = _linear(torch.zeros(1, 1, dtype=dtype).expand(self._largest))
        config = peft.get_peft_config(
            {"target_modules": [*layers], "inference_mode": True, **self._fields}
        )
        return peft.get_peft_model(nn.ModuleDict(layers), config).eval()

    def _load(self, model: Any) -> None:
        """Load the tensors, each of which must have its place, and each place its tensor."""
        file, module = self._update.tensors[0].file, self._update.module
        places = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        for name, tensor in self._tensors.items():
            shape = places[name].shape if name in places else None
            if shape != tensor.shape:
                raise Refused(
                    f"{file}: {self._names[name]!r} has shape {tuple(tensor.shape)}, not "
                    f"{shape and tuple(shape)}, which the config gives a layer of shape "
                    f"{self._shape}; save the adapter again"
                )
        given = {places[name].data_ptr() for name in self._tensors}
        for name, place in places.items():  # a place may have several names
            if place.data_ptr() not in given and f".{LARGEST}." not in name:
                missing = name.replace(KEY, f"base_model.model.{module}.", 1)
                raise Refused(f"{file}: {missing!r} is missing; save the adapter again")
        peft.set_peft_model_state_dict(model, self._tensors)


def _fields(config: Mapping[str, Any], update: Operator) -> dict[str, Any]:
    """The fields of the config that PEFT needs, vetted, with the one layer as their target."""
    kind = config["peft_type"]
    if kind in KINDS:
        return {"peft_type": kind, **layer_fields(config, update.module, update.tensors, CONFIG)}
    assert update.rank is not None
    init = config.get("init_lora_weights", True)
    if not is_safe_init(init) and (update.meaning != "initialised" or init not in REPEATABLE_INITS):
        raise Refused(
            f"{CONFIG}: init_lora_weights {init!r} can't be repeated from the base alone; convert "
            "the adapter with PEFT's path_initial_model_for_weight_conversion"
        )
    return {
        "peft_type": kind,
        "r": update.rank,
        "lora_alpha": update.scale * update.rank,
        "use_dora": bool(config.get("use_dora")),
        "init_lora_weights": True if is_safe_init(init) else init,
    }


def _renamed(name: str, module: str) -> str:
    """The name of a tensor in the model of one layer; what the adapter shares keeps its own."""
    prefix = f"base_model.model.{module}."
    return KEY + name.removeprefix(prefix) if name.startswith(prefix) else name


def _linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _embedding(weight: torch.Tensor) -> nn.Embedding:
    rows, columns = weight.shape
    layer = nn.Embedding(rows, columns, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


@contextmanager
def _quiet(update: Operator) -> Iterator[None]:
    """PEFT at work: without its warnings, always with the same seed, and with indices checked.

    Raises:
        Refused: PEFT does not accept the adapter.
    """
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        torch.sparse.check_sparse_tensor_invariants(),  # type: ignore[no-untyped-call]  # torch's own
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            yield
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            raise Refused(
                f"{update.tensors[0].file}: PEFT does not accept the adapter of "
                f"{update.module!r} ({error}); save the adapter again"
            ) from error
