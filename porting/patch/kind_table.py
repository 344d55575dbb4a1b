"""Every kind of adapter beside LoRA that can be ported, as PEFT 0.21 stores and reads it.

Left out, and so refused: FROD, ADAMSS and PSOFT. They keep a change in coordinates that PEFT finds
anew in the weights of the base; these are not unique, so that the same file means something else
beside another base.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from porting.errors import Refused

Shapes = Mapping[str, tuple[int, ...]]
Form = dict[str, int]
ADDED = "it is added to the base"
LAYER = "layer"  # what the throw-away model of `PeftLayer` calls its layer


@dataclass(frozen=True)
class Site:
    """One module of an adapter: the shapes of its tensors by the ends of their names."""

    config: Mapping[str, Any]
    module: str
    shapes: Shapes
    where: str


@dataclass(frozen=True)
class Kind:
    """One `peft_type`: its portability class, why, and what its tensors are called.

    Attributes:
        forms: the tensors of one module and their numbers of dimensions, one of these sets; `#`
            stands for a number. Empty where `absolute` reads the file, and for class D.
        shared: tensors of the whole adapter, left out where `save_projection` is off.
        fields: what PEFT must be told, and its type.
        sizes: what follows from shapes, and the config must not contradict.
        derived: what replaces that which the config says.
        patterns: fields that give another field by module.
        unused: fields that mean nothing after training.
        parameters: what merging changes.
        by_largest: whether the shared tensors fit the largest module of the adapter.
    """

    portability: Literal["A", "C", "D"]
    reason: str
    forms: tuple[Form, ...] = ()
    shared: Form = field(default_factory=dict)
    fields: Mapping[str, type] = field(default_factory=dict)
    sizes: Mapping[str, Callable[[Shapes], Any]] = field(default_factory=dict)
    derived: Callable[[Site], dict[str, Any]] = lambda site: {}
    patterns: Mapping[str, str] = field(default_factory=dict)
    unused: str = ""
    parameters: tuple[str, ...] = ("weight",)
    by_largest: bool = False


def _form(dimensions: int, names: str) -> Form:
    return dict.fromkeys(names.split(), dimensions)


def _adalora(site: Site) -> dict[str, Any]:
    """The rank it began with, which scales, and which of its singular values are left."""
    rank = site.shapes["lora_E"][0]
    masks = site.config.get("rank_pattern") or {}
    key = f"{site.module}.lora_E"
    mask = next((m for name, m in masks.items() if f"{name}.".startswith(f"{key}.")), None)
    if mask is None:
        return {"total_step": 1, "init_r": rank}
    if not isinstance(mask, list) or {*map(type, mask)} != {bool} or sum(mask) != rank:
        raise Refused(
            f"{site.where}: rank_pattern does not choose the {rank} singular values that {key!r} "
            "holds; save the adapter again"
        )
    return {"total_step": 1, "init_r": len(mask), "rank_pattern": {f"{LAYER}.lora_E": mask}}


def _ia3(site: Site) -> dict[str, Any]:
    feedforward = site.shapes["ia3_l"][0] == 1
    names = site.config.get("feedforward_modules")
    if isinstance(names, list) and feedforward != site.module.endswith(tuple(map(str, names))):
        raise Refused(
            f"{site.where}: feedforward_modules contradicts the shape of ia3_l of "
            f"{site.module!r}; save the adapter again"
        )
    return {"feedforward_modules": [LAYER] if feedforward else []}


def _oft(site: Site) -> dict[str, Any]:
    """A block of size b rotates by b (b - 1) / 2 angles."""
    [(_, angles)] = site.shapes.values()
    return {"r": 0, "oft_block_size": (1 + math.isqrt(1 + 8 * angles)) // 2}


def _miss(site: Site) -> dict[str, Any]:
    """`init_weights` is the variant: `bat`, `mini`, or else blocks of rank r."""
    init, shape = site.config.get("init_weights"), site.shapes["miss_block"]
    variant = {"init_weights": init} if init in ("bat", "mini") else {}
    return {"r": shape[-1] if init == "bat" else shape[0], "mini_r": shape[-1]} | variant


def _osf(site: Site) -> dict[str, Any]:
    """The singular values that were not trained."""
    rows, trained = site.shapes["osf_svd_params.U_low"]
    columns = site.shapes["osf_svd_params.V_low"][1]
    return {"effective_rank": min(rows, columns) - trained}


def _glora(site: Site) -> dict[str, Any]:
    """Without the paths C, D and E, which only a layer with a bias has."""
    shapes = site.shapes
    paths = {"config_C": "none", "config_D_E": "none"}
    if "glora_A.Xd" in shapes:
        return paths | {"config_A_B": "lora", "r": shapes["glora_A.Xd"][1]}
    return paths | {"config_A_B": "vector" if len(shapes["glora_A.X"]) == 2 else "constant"}


def _random_matrices(
    name: str,
    rank: Callable[[Shapes], int],
    form: Form,
    dimensions: int = 2,
    unused: str = "d_initial",
    **fields: type,
) -> Kind:
    """VeRA and its like: vectors that scale random matrices, which all modules share."""
    return Kind(
        "A",
        ADDED,
        (form, form | _form(3, f"{name}_A {name}_B")),  # RandLoRA repeats them in every module
        shared=_form(dimensions, f"base_model.{name}_A base_model.{name}_B"),
        fields={"projection_prng_key": int, **fields},
        sizes={"r": rank, "save_projection": lambda s: f"base_model.{name}_A" in s},
        unused=f"{name}_dropout {unused}",
        by_largest=True,
    )


SCALED = "it scales the weights of the base"
TURNED = "it turns the weights of the base"
PROMPT = Kind("D", "it puts learned vectors before the input")
ORDER = "its tensors follow the order of modules in the model's code"

_GLORA = "glora_A.Xd glora_A.Xu glora_B.Xd glora_B.Xu"
_GLORA_BIASLESS = {"glora_C.zeros": 2, "glora_D.zeros": 1, "glora_E.zeros": 1}
_GRALORA = _form(3, "gralora_A gralora_B")
_PEANUT = _form(2, "peanut_A.weight peanut_B.weight")
_SUPERTUNING = _form(1, "supertuning_values supertuning_indices")
_LORA = "supertuning_lora_A.weight supertuning_lora_B.weight"
_TOPK = "vblora_logits_{0}_topk_indices vblora_logits_{0}_topk_weights"

KINDS: dict[str, Kind] = {
    "ADALORA": Kind(
        "A",
        ADDED,
        (_form(2, "lora_A lora_B lora_E"),),
        fields={"lora_alpha": float},
        derived=_adalora,
        unused="alpha_pattern beta1 beta2 deltaT init_lora_weights init_r lora_dropout "
        "megatron_core orth_reg_weight qalora_group_size r rank_pattern runtime_config target_r "
        "tfinal tinit total_step trainable_token_indices use_rslora",
    ),
    "BEFT": Kind("A", "it is added to biases", (_form(2, "beft_bias"),), parameters=("bias",)),
    "C3A": Kind(
        "A",
        ADDED,
        (_form(3, "c3a_kernel"),),
        sizes={"block_size": lambda s: s["c3a_kernel"][2]},
        patterns={"block_size_pattern": "block_size"},
    ),
    "DELORA": Kind(
        "A",
        "it is added to the base, whose norms it has stored",
        (_form(2, "delora_A delora_B") | _form(1, "delora_lambda delora_w_norm"),),
        sizes={"r": lambda s: s["delora_A"][0]},
        patterns={"rank_pattern": "r"},
        unused="delora_lambda lambda_pattern module_dropout",
    ),
    "FOURIERFT": Kind(
        "A",
        ADDED,
        (_form(1, "fourierft_spectrum"),),
        fields={"scaling": float, "random_loc_seed": int},
        sizes={"n_frequency": lambda s: s["fourierft_spectrum"][0]},
        patterns={"n_frequency_pattern": "n_frequency"},
    ),
    "GRALORA": Kind(
        "A",
        ADDED,
        (_GRALORA, _GRALORA | _form(2, "gralora_A_general.weight gralora_B_general.weight")),
        fields={"alpha": float},
        sizes={
            "r": lambda s: s["gralora_A"][2],
            "gralora_k": lambda s: s["gralora_A"][0],
            "hybrid_r": lambda s: s.get("gralora_A_general.weight", (0,))[0],
        },
        unused="gralora_dropout",
    ),
    "LN_TUNING": Kind("A", "it holds new values of normalisation layers"),
    "LOHA": Kind(
        "A",
        ADDED,
        (_form(2, "hada_w1_a hada_w1_b hada_w2_a hada_w2_b"),),
        fields={"alpha": float},
        sizes={"r": lambda s: s["hada_w1_b"][0]},
        patterns={"rank_pattern": "r", "alpha_pattern": "alpha"},
        unused="module_dropout rank_dropout use_effective_conv2d",
    ),
    "LOKR": Kind(
        "A",
        ADDED,
        (
            _form(2, "lokr_w1 lokr_w2"),
            _form(2, "lokr_w1 lokr_w2_a lokr_w2_b"),
            _form(2, "lokr_w1_a lokr_w1_b lokr_w2"),
            _form(2, "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b"),
        ),
        fields={"r": int, "alpha": float, "decompose_both": bool, "decompose_factor": int},
        patterns={"rank_pattern": "r", "alpha_pattern": "alpha"},
        unused="module_dropout rank_dropout rank_dropout_scale use_effective_conv2d",
    ),
    "PVERA": _random_matrices(
        "pvera",
        lambda s: s["pvera_lambda_d"][0] // 2,
        _form(1, "pvera_lambda_b pvera_lambda_d"),
        unused="d_initial generator_seed",
    ),
    "RANDLORA": _random_matrices(
        "randlora",
        lambda s: s["randlora_lambda"][0],
        _form(2, "randlora_lambda randlora_gamma"),
        dimensions=3,
        unused="",
        randlora_alpha=float,
        sparse=bool,
        very_sparse=bool,
    ),
    "SHIRA": Kind(
        "A",
        ADDED,
        ({"shira_weight": 1, "shira_indices": 2},),
        fields={"r": int},
        unused="mask_type random_seed",
    ),
    "SUPERTUNING": Kind(
        "A",
        ADDED,
        (_SUPERTUNING, _SUPERTUNING | _form(2, _LORA)),
        fields={"lora_alpha": float, "sparsity": float},
        sizes={
            "save_precomputed_indices": lambda s: "supertuning_indices" in s,
            "r": lambda s: s.get("supertuning_lora_A.weight", (None,))[0],
        },
        unused="lora_dropout select_top",
    ),
    "TRAINABLE_TOKENS": Kind("A", "it holds new rows of the embedding", unused="token_indices"),
    "VBLORA": Kind(
        "A",
        ADDED,
        (
            _form(3, "vblora_logits_A vblora_logits_B"),
            _form(3, _TOPK.format("A")) | _form(3, _TOPK.format("B")),
        ),
        shared=_form(2, "base_model.vblora_vector_bank"),
        fields={"topk": int},
        sizes={
            "r": lambda s: s.get("vblora_logits_A", s.get("vblora_logits_A_topk_indices", ()))[0],
            "topk": lambda s: s.get("vblora_logits_A_topk_indices", (None,))[-1],
            "num_vectors": lambda s: s["base_model.vblora_vector_bank"][0],
            "vector_length": lambda s: s["base_model.vblora_vector_bank"][1],
            "save_only_topk_weights": lambda s: "vblora_logits_A" not in s,
        },
        unused="init_logits_std init_vector_bank_bound vblora_dropout",
    ),
    "VERA": _random_matrices(
        "vera", lambda s: s["vera_lambda_d"][0], _form(1, "vera_lambda_b vera_lambda_d")
    ),
    "WAVEFT": Kind(
        "A",
        ADDED,
        (_form(1, "waveft_spectrum"),),
        fields={"scaling": float, "random_loc_seed": int, "use_idwt": bool, "wavelet_family": str},
        derived=lambda site: {"n_frequency": site.shapes["waveft_spectrum"][0]},
        unused="n_frequency n_frequency_pattern proportional_parameters",
    ),
    "BOFT": Kind(
        "C",
        TURNED,
        ({"boft_R": 4, "boft_s": 2},),
        derived=lambda site: {
            "boft_block_size": site.shapes["boft_R"][2],
            "boft_block_num": 0,
            "boft_n_butterfly_factor": site.shapes["boft_R"][0],
        },
        unused="boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor",
    ),
    "DEFT": Kind(
        "C",
        "it takes a subspace out of the weights of the base",
        (_form(2, "deft_P deft_R"), _form(2, "deft_P")),
        fields={"alpha": float, "decomposition_method": str},
        sizes={"r": lambda s: s["deft_P"][1], "para": lambda s: "deft_R" not in s},
        unused="deft_dropout init_scale",
    ),
    "GLORA": Kind(
        "C",
        SCALED,
        tuple(
            form | _GLORA_BIASLESS
            for form in (_form(2, _GLORA), *(_form(n, "glora_A.X glora_B.X") for n in (1, 2)))
        ),
        derived=_glora,
        unused="config_A_B config_C config_D_E r",
    ),
    "HIRA": Kind(
        "C",
        SCALED,
        (_form(2, "hira_A hira_B"), _form(2, "hira_embedding_A hira_embedding_B")),
        sizes={"r": lambda s: s["hira_A" if "hira_A" in s else "hira_embedding_A"][0]},
        patterns={"rank_pattern": "r"},
        unused="hira_dropout",
    ),
    "HRA": Kind(
        "C",
        "it reflects the weights of the base",
        (_form(2, "hra_u"),),
        fields={"apply_GS": bool},
        sizes={"r": lambda s: s["hra_u"][1]},
    ),
    "IA3": Kind(
        "C",
        SCALED,
        (_form(2, "ia3_l"),),
        derived=_ia3,
        unused="feedforward_modules init_ia3_weights",
        parameters=("weight", "bias"),
    ),
    "MISS": Kind(
        "C",
        "one of its variants multiplies the weights of the base",
        (_form(2, "miss_block"), _form(3, "miss_block")),
        derived=_miss,
        unused="miss_dropout mini_r r",
    ),
    "OFT": Kind(
        "C",
        TURNED,
        (_form(2, "oft_R.weight"), _form(2, "oft_embedding_R.weight")),
        fields={
            "block_share": bool,
            "coft": bool,
            "eps": float,
            "num_cayley_neumann_terms": int,
            "use_cayley_neumann": bool,
        },
        derived=_oft,
        unused="module_dropout oft_block_size r",
    ),
    "OSF": Kind(
        "C",
        "it replaces the smallest singular values of the base",
        (_form(2, "osf_svd_params.U_low osf_svd_params.V_low") | {"osf_svd_params.S_low": 1},),
        derived=_osf,
        unused="effective_rank rank_pattern target_svd_config",
    ),
    "PEANUT": Kind(
        "C",
        "it is a network that reads the weights of the base",
        (_PEANUT, _PEANUT | _form(2, "peanut_encoders.#.weight peanut_decoders.#.weight")),
        fields={"act_fn": str, "scaling": float},
        sizes={
            "r": lambda s: s["peanut_A.weight"][0],
            "depth": lambda s: sum(name.startswith("peanut_encoders.") for name in s),
        },
    ),
    "ROAD": Kind(
        "C",
        "it turns the outputs of the base's layers",
        (_form(1, "road_theta road_alpha"),),
        fields={"group_size": int, "variant": str},
        parameters=("weight", "bias"),
    ),
    "ADAPTION_PROMPT": Kind("D", "it adds attention to learned vectors"),
    "CARTRIDGE": Kind("D", "it is a cache of keys and values of the old base"),
    "CPT": PROMPT,
    "LILY": Kind("D", "a router weighs its matrices by the input"),
    "MULTITASK_PROMPT_TUNING": PROMPT,
    "POLY": Kind("D", "it chooses its matrices by the task"),
    "PREFIX_TUNING": Kind("D", "it puts learned vectors before keys and values"),
    "PROMPT_TUNING": PROMPT,
    "P_TUNING": PROMPT,
    "SHADOW": Kind("D", "it is a second network beside the base"),
    "TINYLORA": Kind("D", ORDER),
    "UNILORA": Kind("D", ORDER),
    "XLORA": Kind("D", "it weighs other adapters by the input"),
}
