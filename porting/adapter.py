"""What a LoRA adapter changes: its config and headers, read as PEFT 0.21 reads them.

Only plain LoRA and rsLoRA are read. Every other kind is refused with the way out, because a
value that PEFT reads from the file in any other way would be moved wrongly, and silently.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from porting.errors import Refused
from porting.layout import Layout, TensorInfo, read_layout
from porting.patterns import Patterns
from porting.source import Source, read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
FLOATS = ("F32", "F16", "BF16")

# A: additive, B: initialised from the base, C: not additive, D: not mergeable.
CLASSES = {
    "A": "ADALORA LOHA LOKR VERA RANDLORA FOURIERFT SHIRA C3A",
    "C": "HIRA IA3 OFT BOFT HRA ROAD MISS LN_TUNING",
    "D": "XLORA POLY PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING "
    "ADAPTION_PROMPT CPT CARTRIDGE",
}
CLASS_REASONS = {
    "A": "additive (class A), but its file is not read yet",
    "C": "not additive (class C), so adding it to another base changes its meaning",
    "D": "not mergeable (class D)",
}
SAFE_INITS = ("gaussian", "eva", "orthogonal")  # they leave the base's weights as they are
RETRAIN = "train it again as plain LoRA"

# Fields that must be empty, and why.
REFUSED_FIELDS = {
    "use_dora": f"DoRA is not additive (class C): {RETRAIN}",
    "modules_to_save": "full copies of base modules would undo the upgrade: save without them",
    "trainable_token_indices": "token rows are absolute values and would undo the upgrade: "
    "save without them",
    "lora_bias": f"biases are not moved yet: {RETRAIN}",
    "layer_replication": f"repeated layers share one base tensor: {RETRAIN}",
    "target_parameters": "parameters of expert layers are not moved yet: target linear modules",
    "alora_invocation_tokens": "aLoRA holds only after its invocation (class D): serve it as it is",
    "use_qalora": "QALoRA pools the inputs of a quantised base (class D): serve it as it is",
    "arrow_config": "Arrow routes between adapters (class D): move each of them by itself",
    "kasa_config": f"KaSA truncates the base it was trained on (class B): {RETRAIN}",
    "velora_config": f"VeLoRA is not read yet: {RETRAIN}",
    "monteclora_config": f"MonteCLoRA is not read yet: {RETRAIN}",
    "use_bdlora": f"block-diagonal LoRA is not read yet: {RETRAIN}",
    "ensure_weight_tying": "tied adapters are not moved yet: save with it off",
}
KNOWN_FIELDS = (
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config eva_config "
    "exclude_modules fan_in_fan_out inference_mode init_lora_weights layers_pattern "
    "layers_to_transform loftq_config lora_alpha lora_dropout lora_ga_config megatron_config "
    "megatron_core peft_type peft_version qalora_group_size r rank_pattern revision runtime_config "
    "target_modules task_type use_rslora"
)


@dataclass(frozen=True)
class LoraPair:
    """The update of one linear layer: `scale * B @ A`, A `(rank, in)` and B `(out, rank)`.

    `fan_in_fan_out` is what the config says for the whole adapter; the plan decides by the shape.
    """

    module: str
    a: TensorInfo
    b: TensorInfo
    rank: int
    scale: float
    fan_in_fan_out: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter that can be moved. `portability` is the class of the module's first table."""

    config: dict[str, Any]
    kind: Literal["lora", "rslora"]
    portability: Literal["A"]
    base_repo: str | None
    base_revision: str | None
    layout: Layout
    pairs: tuple[LoraPair, ...]


def read_adapter(source: Source) -> Adapter:
    """Read `adapter_config.json` and the header of `adapter_model.safetensors`.

    Raises:
        Refused: another kind of adapter, a key that is not half of a pair, or shapes and ranks
            that contradict each other. The sentence names the file, the field and the way out.
    """
    config = read_json(source, CONFIG)
    where = f"{CONFIG} in {source.name}"
    _check_kind(config, where)
    _check_types(config, where)
    if WEIGHTS not in source.files():
        raise Refused(
            f"{WEIGHTS} is missing in {source.name}: only safetensors are read, never a pickle "
            "such as adapter_model.bin; save the adapter again with PEFT"
        )
    layout = read_layout(source, WEIGHTS)
    return Adapter(
        config=config,
        kind="rslora" if config.get("use_rslora") else "lora",
        portability="A",
        base_repo=config.get("base_model_name_or_path"),
        base_revision=config.get("revision"),
        layout=layout,
        pairs=_pairs(config, layout, where, f"{WEIGHTS} in {source.name}"),
    )


def _check_kind(config: dict[str, Any], where: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        letter = next((c for c, kinds in CLASSES.items() if kind in kinds.split()), None)
        reason = CLASS_REASONS[letter] if letter else "a kind that is not known"
        raise Refused(f"{where}: peft_type {kind!r} is {reason}; {RETRAIN}")
    init = config.get("init_lora_weights", True)
    if not (init is None or isinstance(init, bool) or init in SAFE_INITS):
        raise Refused(
            f"{where}: init_lora_weights {init!r} starts from the base's own weights (class B), so "
            "only the old base gives it its meaning; convert it to plain LoRA with PEFT's "
            "path_initial_model_for_weight_conversion and push that"
        )
    if config.get("bias", "none") != "none":
        raise Refused(
            f"{where}: bias {config['bias']!r} saves the base's biases, which would undo the "
            "upgrade; train with bias none"
        )
    for field, value in config.items():
        if value and field in REFUSED_FIELDS:
            raise Refused(f"{where}: {field} is set; {REFUSED_FIELDS[field]}")
        if value and field not in KNOWN_FIELDS.split():
            raise Refused(
                f"{where}: {field!r} is set and not known here, so it may change what the weights "
                f"mean; save the adapter with a PEFT of 0.21 or before, or {RETRAIN}"
            )


def _check_types(config: dict[str, Any], where: str) -> None:
    expected: dict[str, tuple[type, ...]] = {
        "use_rslora": (bool, type(None)),
        "fan_in_fan_out": (bool, type(None)),
        "base_model_name_or_path": (str, type(None)),
        "revision": (str, type(None)),
        "rank_pattern": (dict, type(None)),
        "alpha_pattern": (dict, type(None)),
        "target_modules": (list, str, type(None)),
    }
    for field, types in expected.items():
        if not isinstance(config.get(field), types):
            raise Refused(f"{where}: {field} must not be {config[field]!r}; save it with PEFT")


def _pairs(config: dict[str, Any], layout: Layout, where: str, file: str) -> tuple[LoraPair, ...]:
    halves: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in layout.tensors.items():
        match = KEY.fullmatch(name)
        if not match and ".lora_" not in name:
            raise Refused(
                f"{file}: {name!r} is a copy of the base's own values and would undo the upgrade; "
                "save the adapter again with bias none and save_embedding_layers=False"
            )
        if not match or ".base_layer" in name or ".experts." in name:
            raise Refused(
                f"{file}: {name!r} is not the A or B of a LoRA on a linear layer (embeddings, "
                f"biases and expert layers are not moved yet); {RETRAIN}"
            )
        halves.setdefault(match["module"], {})[match["side"]] = tensor
    if not halves:
        raise Refused(f"{file} holds no tensor; save the adapter again")
    ranks = Patterns(config.get("rank_pattern") or {}, f"{where}: rank_pattern")
    alphas = Patterns(config.get("alpha_pattern") or {}, f"{where}: alpha_pattern")
    pairs = []
    for module, half in sorted(halves.items()):
        _check_half(module, half, file)
        if not _targets(config.get("target_modules"), module):
            raise Refused(
                f"{where}: target_modules leaves out {module!r}, so PEFT would ignore its tensors "
                f"in {WEIGHTS}; add it or save the adapter again"
            )
        rank = ranks.get(module, config.get("r", 8))
        alpha = alphas.get(module, config.get("lora_alpha", 8))
        pairs.append(
            LoraPair(
                module=module,
                a=half["A"],
                b=half["B"],
                rank=_check_rank(rank, half, f"{where}: r or rank_pattern"),
                scale=_scale(rank, alpha, bool(config.get("use_rslora")), where),
                fan_in_fan_out=bool(config.get("fan_in_fan_out")),
            )
        )
    return tuple(pairs)


def _check_half(module: str, half: dict[str, TensorInfo], file: str) -> None:
    if len(half) != 2:
        missing = ({"A", "B"} - half.keys()).pop()
        raise Refused(f"{file}: {module!r} has no lora_{missing}.weight; save the adapter again")
    for tensor in half.values():
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise Refused(f"{file}: {tensor.name!r} has shape {tensor.shape}, not that of a matrix")
        if tensor.dtype not in FLOATS:
            raise Refused(f"{file}: {tensor.name!r} has dtype {tensor.dtype}, not one of {FLOATS}")


def _check_rank(rank: Any, half: dict[str, TensorInfo], field: str) -> int:
    a, b = half["A"].shape, half["B"].shape
    if type(rank) is not int or not a[0] == b[1] == rank:
        raise Refused(
            f"{field} gives {rank!r} for {half['A'].name!r}, but A has shape {a} and B has shape "
            f"{b}; save the adapter again"
        )
    return rank


def _scale(rank: int, alpha: Any, rslora: bool, where: str) -> float:
    """`alpha / r` (arXiv 2106.09685, 4.1), or `alpha / sqrt(r)` (arXiv 2312.03732)."""
    if type(alpha) not in (int, float) or not abs(alpha) <= 1e9:
        raise Refused(f"{where}: lora_alpha or alpha_pattern gives {alpha!r}, which is no scale")
    return float(alpha / (math.sqrt(rank) if rslora else rank))


def _targets(targets: list[str] | str | None, module: str) -> bool:
    """Whether a list of targets takes `module`. A single expression is not evaluated."""
    if not isinstance(targets, list):
        return True
    return any(module == name or module.endswith(f".{name}") for name in targets)
