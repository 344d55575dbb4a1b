"""What an adapter changes: its config and headers, read as PEFT 0.21 reads them.

Every kind has a class: A additive, B initialised from the base, C not additive, D not mergeable.
"""

from dataclasses import dataclass
from typing import Any, Literal

from porting.base.layout import Layout, read_layout
from porting.errors import Refused
from porting.patch.absolute import read_absolute
from porting.patch.kinds import KINDS, read_kind
from porting.patch.lora import REPEATABLE_INITS, is_safe_init, read_lora
from porting.patch.updates import Absolute, LoraPair, Update
from porting.source import MAX_CONFIG_BYTES, Source, read_json

CONFIG = "adapter_config.json"
DELTA_CONFIG = "portllm_delta.json"
WEIGHTS = "adapter_model.safetensors"
RETRAIN = "train it again as plain LoRA"
Portability = Literal["A", "B", "C", "D"]

# Fields of a LoRA that make it another thing; what can't be merged (class D) is still re-pointed.
NOT_MERGEABLE = {
    "alora_invocation_tokens": "aLoRA holds only after its invocation",
    "use_qalora": "QALoRA pools the inputs of a quantised base",
    "arrow_config": "Arrow routes between adapters",
}
REFUSED_FIELDS = {
    "layer_replication": "repeated layers share one base tensor",
    "kasa_config": "KaSA truncates the base it was trained on (class B), and can't be converted",
    "velora_config": "VeLoRA is not read",
    "monteclora_config": "MonteCLoRA is not read",
    "use_bdlora": "block-diagonal LoRA is not read",
}
KNOWN_FIELDS = (
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying "
    "eva_config exclude_modules fan_in_fan_out inference_mode init_lora_weights layers_pattern "
    "layers_to_transform loftq_config lora_alpha lora_bias lora_dropout lora_ga_config "
    "megatron_config megatron_core modules_to_save peft_type peft_version qalora_group_size r "
    "rank_pattern revision runtime_config target_modules target_parameters task_type "
    "trainable_token_indices use_dora use_rslora"
)


@dataclass(frozen=True)
class Adapter:
    """An adapter, and what it does to a base.

    Attributes:
        portability: the class of the module's first table, `reason` saying why in a clause.
        updates: everything the file holds; empty for class D, which is only ever copied.
    """

    config: dict[str, Any]
    kind: str
    portability: Portability
    reason: str
    base_repo: str | None
    base_revision: str | None
    layout: Layout
    updates: tuple[Update, ...]
    config_file: str = CONFIG

    @property
    def pairs(self) -> tuple[LoraPair, ...]:
        return tuple(update for update in self.updates if isinstance(update, LoraPair))

    @property
    def old_base_field(self) -> str | None:
        """The field that only the old base gives a meaning, or None where it isn't needed."""
        return "init_lora_weights" if self.portability == "B" else self.whole_field

    @property
    def whole_field(self) -> str | None:
        """The field that brought values which the patch holds whole, or None without any."""
        fields = (update.field for update in self.updates if isinstance(update, Absolute))
        return next(fields, None)


def read_adapter(source: Source) -> Adapter:
    """Read `adapter_config.json` and the header of `adapter_model.safetensors`.

    Where there is no such config, a full delta is looked for: see `porting.patch.full`.

    Raises:
        Refused: a kind that is not known, a key that belongs to nothing, or shapes and ranks that
            contradict each other. The sentence names the file, the field and the way out.
    """
    if CONFIG not in source.files() and DELTA_CONFIG in source.files():
        from porting.patch.full import read_full  # it makes an Adapter, and so imports this module

        return read_full(source)
    config = read_json(source, CONFIG, MAX_CONFIG_BYTES)
    where = f"{CONFIG} in {source.name}"
    _check_types(config, where)
    portability, kind, reason = _class(config, where)
    if WEIGHTS not in source.files():
        raise Refused(
            f"{WEIGHTS} is missing in {source.name}: only safetensors are read, never a pickle "
            "such as adapter_model.bin; save the adapter again with PEFT"
        )
    layout = read_layout(source, WEIGHTS)
    return Adapter(
        config=config,
        kind=kind,
        portability=portability,
        reason=reason,
        base_repo=config.get("base_model_name_or_path"),
        base_revision=config.get("revision"),
        layout=layout,
        updates=()
        if portability == "D"
        else _updates(config, layout, where, f"{WEIGHTS} in {source.name}"),
    )


def _class(config: dict[str, Any], where: str) -> tuple[Portability, str, str]:
    """The portability class, the kind's name, and the reason."""
    peft_type = config["peft_type"]
    if peft_type != "LORA":
        if peft_type not in KINDS:
            raise Refused(f"{where}: peft_type {peft_type!r} is not known here; {RETRAIN}")
        found = KINDS[peft_type]
        return found.portability, peft_type.lower(), found.reason
    for field, value in config.items():
        if value and field in NOT_MERGEABLE:
            return "D", field, NOT_MERGEABLE[field]
        if value and field in REFUSED_FIELDS:
            raise Refused(f"{where}: {field} is set; {REFUSED_FIELDS[field]}: {RETRAIN}")
        if value and field not in KNOWN_FIELDS.split():
            raise Refused(
                f"{where}: {field!r} is set and not known here, so it may change what the weights "
                f"mean; save the adapter with a PEFT of 0.21 or before, or {RETRAIN}"
            )
    init = config.get("init_lora_weights", True)
    if config.get("use_dora"):
        if not is_safe_init(init):
            raise Refused(
                f"{where}: use_dora with init_lora_weights {init!r} is of class B and of class C, "
                f"and no file says how they combine; {RETRAIN}"
            )
        return "C", "dora", "it scales the base's weights by their norms"
    if is_safe_init(init):
        return "A", "rslora" if config.get("use_rslora") else "lora", "it is added to the base"
    if init not in REPEATABLE_INITS:
        raise Refused(
            f"{where}: init_lora_weights {init!r} starts from the base's own weights (class B) and "
            "from data or a seed that the file does not hold; convert it to plain LoRA with PEFT's "
            "path_initial_model_for_weight_conversion and push that"
        )
    return "B", init.partition("_")[0], "it starts from the base's own weights"


def _check_types(config: dict[str, Any], where: str) -> None:
    expected: dict[str, tuple[type, ...]] = {
        "peft_type": (str,),
        "use_rslora": (bool, type(None)),
        "use_dora": (bool, type(None)),
        "lora_bias": (bool, type(None)),
        "fan_in_fan_out": (bool, type(None)),
        "bias": (str, type(None)),
        "base_model_name_or_path": (str, type(None)),
        "revision": (str, type(None)),
        "rank_pattern": (dict, type(None)),
        "alpha_pattern": (dict, type(None)),
        "target_modules": (list, str, type(None)),
        "exclude_modules": (list, str, type(None)),
        "layers_to_transform": (list, int, type(None)),
        "target_parameters": (list, type(None)),
        "modules_to_save": (list, type(None)),
        "trainable_token_indices": (list, dict, type(None)),
    }
    for field, types in expected.items():
        if not isinstance(config.get(field), types):
            raise Refused(f"{where}: {field} must not be {config.get(field)!r}; save it with PEFT")
    for field in ("target_modules", "exclude_modules", "target_parameters", "modules_to_save"):
        values = config.get(field)
        if isinstance(values, list) and not all(isinstance(value, str) for value in values):
            raise Refused(f"{where}: {field} must be a list of names; save it with PEFT")
    layers = config.get("layers_to_transform")
    if isinstance(layers, list) and not all(type(layer) is int for layer in layers):
        raise Refused(f"{where}: layers_to_transform must be a list of numbers; save it with PEFT")


def _updates(config: dict[str, Any], layout: Layout, where: str, file: str) -> tuple[Update, ...]:
    read = read_lora if config["peft_type"] == "LORA" else read_kind
    updates, claimed = read(config, layout, where, file)
    updates += [
        read_absolute(name, tensor, config, where, file)
        for name, tensor in layout.tensors.items()
        if name not in claimed
    ]
    if not updates:
        raise Refused(f"{file} holds no tensor; save the adapter again")
    return tuple(updates)
