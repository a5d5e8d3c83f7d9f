"""What a checkpoint's matrices are stored in: `quantization_config` of config.json, or ModelOpt's hf_quant_config.json beside it.

Each matrix family's dtype is what most of its layers have: the method's, or BF16 where the file leaves the module out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cost_models.errors import UnsupportedModelError
from cost_models.huggingface.fields import Config, language_part
from cost_models.huggingface.registry import entry_of
from cost_models.patterns import compiled, wildcard
from cost_models.specs.model import ModelSpec

RECIPES = {
    "bf16": "bf16",
    "fp8": "fp8-tensor",
    "fp8_block": "fp8-block",
    "int8": "int8",
    "int4_g32": "int4",
    "int4_g64": "int4",
    "int4_g128": "int4",
    "mxfp8": "mxfp8",
    "mxfp4": "mxfp4",
    "mxfp4_mxfp8": "mxfp4-mxfp8",
    "mxfp4_mxfp4": "mxfp4-mxfp4",
    "nvfp4": "nvfp4",
    "nvfp4_a16": "nvfp4-w4a16",
}
"""Dtype of the experts (of the feed-forward layers, of a dense model) -> the recipe that is named after it."""
MODELOPT = {
    "FP8": "fp8", "FP8_PER_CHANNEL_PER_TOKEN": "fp8", "FP8_PB_WO": "fp8_block", "FP8_PB_REAL": "fp8_block", "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4_a16",
    "MXFP8": "mxfp8", "W8A8_SQ_PER_CHANNEL": "int8",
}  # fmt: skip
"""ModelOpt's quant_algo -> dtype."""
ABSORBED = ("fp8_block", "int8")
"""Dtypes in which kv_b stays a GEMM of its own in prefill; decode absorbs a copy in BF16."""
PREFIXES = ("model.", "backbone.", "language_model.model.", "model.language_model.", "backbone.", "")
DESCRIBED = ("quantization_config", "compression_config")
"""Keys under which a config.json describes its quantisation; the second is compressed-tensors' first name for it."""
EXCLUDED = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules", "exclude")
"""Keys under which quantisation methods list what they leave out."""

DtypeOf = Callable[[Sequence[str]], str]
"""Dtype of a module, by the names that it may have."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a checkpoint is stored in."""

    recipe: str
    changed: Mapping[str, str]
    """Fields of the recipe that this checkpoint has otherwise."""
    remarks: tuple[str, ...] = ()
    """Layers that differ from the rest of their family."""


def stored_precision(
    config: Config,
    model: ModelSpec,
    *,
    source: str,
    beside: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Stored:
    """What the checkpoint of a configuration is stored in.

    beside : hf_quant_config.json, where there is one; base : fields of the recipes by name, whose differences are told (their
    dtypes alone matter). Raises UnsupportedModelError for a method, or a combination of dtypes, that no recipe describes.
    """
    text = language_part(config) or {}
    inside = text if isinstance(text, Mapping) else {}
    quantisation = next((part[key] for part in (config, inside) for key in DESCRIBED if part.get(key)), None)
    if quantisation is not None and not isinstance(quantisation, Mapping):
        raise UnsupportedModelError(f"{source}: quantization_config must be an object, found {type(quantisation).__name__}")
    described = _modelopt_of(beside) if beside is not None and not quantisation else dict(quantisation or {})
    _check_agreement(dict(quantisation or {}), beside, source)
    if not described and config.get("quantize"):  # vLLM-Ascend: quant_model_description.json says which layers
        described = {"quant_method": str(config["quantize"])}
    try:
        dtype_of, listed = _dtypes(described)
    except (KeyError, TypeError, ValueError) as error:
        detail = f"needs the key {error}" if isinstance(error, KeyError) else str(error)
        raise UnsupportedModelError(f"{source}: quantization_config: {detail}") from error
    families, remarks = _families(model, entry_of(config, source)[1].modules_of(config), dtype_of)
    main = families["experts" if model.moe else "dense_ffn"]
    changed = dict(families) if listed else {}
    if "kv_b" in changed:
        expanded = changed["kv_b"]
        changed |= {"kv_b": "bf16", "kv_b_expand": expanded if expanded in ABSORBED else "bf16"}
    if config.get("expert_dtype") == "fp4" and main == "fp8_block":  # DeepSeek-V4: MXFP4 experts in a checkpoint that says FP8
        main = changed["experts"] = "mxfp4_mxfp8"
    cache = _kv_cache(described)
    if cache is None and beside is not None:
        cache = _kv_cache(_modelopt_of(beside))
    if cache is not None:
        changed |= {"kv_cache": cache} | ({"attention_compute": "bf16"} if cache == "bf16" else {})
    recipe = RECIPES[main]
    usual = dict((base or {}).get(recipe, {}))
    usual["kv_b_expand"] = usual.get("kv_b_expand") or usual.get("kv_b")
    return Stored(recipe, {name: dtype for name, dtype in changed.items() if usual.get(name) != dtype}, tuple(remarks))


def _modelopt_of(document: Mapping[str, Any]) -> dict[str, Any]:
    inner = document.get("quantization", document)
    return {"quant_method": "modelopt", **(inner if isinstance(inner, Mapping) else {})}


def _check_agreement(quantisation: Mapping[str, Any], beside: Mapping[str, Any] | None, source: str) -> None:
    """config.json and hf_quant_config.json that name different algorithms are no checkpoint."""
    if not quantisation or beside is None:
        return
    here, there = quantisation.get("quant_algo"), _modelopt_of(beside).get("quant_algo")
    method = str(quantisation.get("quant_method", "modelopt")).lower()
    same_kind = method.startswith("modelopt") or here is not None
    if there and ((here and here != there) or not same_kind):
        raise UnsupportedModelError(
            f"{source}: config.json says {here or method}, hf_quant_config.json beside it {there}: one of the two is wrong"
        )


def _dtypes(q: Mapping[str, Any]) -> tuple[DtypeOf, bool]:
    """Dtype of each module, and whether the file says which modules it leaves out."""
    method, algorithm = str(q.get("quant_method", "")).lower(), str(q.get("quant_algo") or "").upper()
    if not q:
        return (lambda _: "bf16"), True
    excluded = [str(name) for key in EXCLUDED for name in q.get(key) or ()]
    if method == "fp8" and (experts := _experts_apart(q)):
        dense = _fp8(q)
        return _except(excluded, lambda names: experts if any(".experts" in name for name in names) else dense), True
    if algorithm == "MIXED_PRECISION":
        return _by_layer(q), True
    if method == "quark":
        return _except(excluded, _by_quark(q)), True
    excluded += _left_whole(q.get("extra_config") or {})
    excluded += [name.removeprefix("-:") for name in q.get("dynamic") or {} if str(name).startswith("-:")]
    listed = any(key in q for key in EXCLUDED) or method in (
        "awq",
        "gptq",
        "fp8",
        "fbgemm_fp8",
        "auto-round",
        "compressed-tensors",
        "mxfp8",
    )
    if method == "compressed-tensors" and not algorithm:
        return _except(excluded, _by_group(q)), listed
    if method == "mxfp4":  # Hugging Face's MXFP4 converts expert modules only
        return (lambda names: "mxfp4" if any(".experts" in name for name in names) else "bf16"), True
    dtype = _modelopt(algorithm, q) if algorithm else _method(method, q)
    return _except(excluded, lambda _: dtype), listed


def _left_whole(parts: Any) -> list[str]:
    """Modules that AutoRound leaves in 16 bits."""
    if not isinstance(parts, Mapping) or not all(isinstance(part, Mapping) for part in parts.values()):
        raise ValueError("extra_config must be an object of objects by module")
    return [str(name) for name, part in parts.items() if part.get("bits", 4) >= 16]


def _experts_apart(q: Mapping[str, Any]) -> str | None:
    """Dtype of the experts of a checkpoint that calls itself FP8, where one of four fields says another; none where none does."""
    if q.get("moe_quant_algo"):  # ModelOpt quantised them again
        return _modelopt(str(q["moe_quant_algo"]).upper(), q)
    said = [str(q[key]).lower() for key in ("expert_dtype", "routed_experts_quant_method", "store_dtype") if q.get(key)]
    if not said or said[0].startswith("fp8"):
        return None
    if said[0] in ("fp4", "mxfp4"):
        return "mxfp4_mxfp8"
    raise ValueError(f"experts in {said[0]} have no precision recipe")


def _method(method: str, q: Mapping[str, Any]) -> str:
    """Dtype of a method that quantises all matrices alike."""
    if method == "fp8":
        return _fp8(q)
    if method == "fbgemm_fp8":
        return "fp8"
    if method == "mxfp8":
        return "mxfp8"
    if method in ("awq", "gptq", "awq_marlin", "gptq_marlin", "auto-round"):
        bits = q.get("bits", q.get("w_bit"))
        if bits != 4:
            raise ValueError(f"{method} with {bits} bits has no precision recipe")
        return _int4(q.get("group_size", q.get("q_group_size", 128)))
    if method in ("w8a8_dynamic", "w8a8"):
        return "int8"
    raise ValueError(f"quant_method '{method}' has no precision recipe")


def _fp8(q: Mapping[str, Any]) -> str:
    block = q.get("weight_block_size")
    if block is None:
        return "fp8"
    if list(block) == [128, 128]:
        return "fp8_block"
    if list(block) in ([1, 32], [32]):
        return "mxfp8"
    raise ValueError(f"weight_block_size {list(block)} has no precision recipe (128 x 128 and 1 x 32 have)")


def _int4(group: Any) -> str:
    if group in (32, 64, 128):
        return f"int4_g{group}"
    if group in (-1, None):  # one scale per column: fewer scale bytes than any group, within 3 % of groups of 128
        return "int4_g128"
    raise ValueError(f"group_size {group} of 4-bit weights has no precision recipe (32, 64 and 128 have)")


def _modelopt(algorithm: str, q: Mapping[str, Any]) -> str:
    if algorithm in MODELOPT:
        return MODELOPT[algorithm]
    if algorithm == "W4A16_AWQ":
        return _int4(q.get("group_size", 128))
    raise ValueError(f"quant_algo '{algorithm}' has no precision recipe")


def _by_layer(q: Mapping[str, Any]) -> DtypeOf:
    """ModelOpt's MIXED_PRECISION: an algorithm per module, BF16 for those that are not named."""
    named = q["quantized_layers"]
    if not isinstance(named, Mapping) or not named:
        raise ValueError("quantized_layers must name the modules of MIXED_PRECISION")
    algorithms = {name: _modelopt(str(entry["quant_algo"]).upper(), entry) for name, entry in named.items()}

    def dtype_of(names: Sequence[str]) -> str:
        for name in names:
            parts = name.split(".")
            for end in range(len(parts), 0, -1):
                if found := algorithms.get(".".join(parts[:end])):
                    return found
        return "bf16"

    return dtype_of


def _by_group(q: Mapping[str, Any]) -> DtypeOf:
    """compressed-tensors: the first group whose targets name the module's class or match its name."""
    groups = q["config_groups"]
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError("config_groups must hold at least one group")
    rules = [(group.get("targets") or ["Linear"], _group_dtype(group)) for group in groups.values()]

    def dtype_of(names: Sequence[str]) -> str:
        for targets, dtype in rules:
            if "Linear" in targets or _matcher([str(target) for target in targets])(names):
                return dtype
        return "bf16"

    return dtype_of


def _by_quark(q: Mapping[str, Any]) -> DtypeOf:
    """AMD Quark: what the global configuration says, or the first layer pattern that matches a module's name."""
    usual = q.get("global_quant_config") or {}
    rules = [(_matcher([str(pattern)]), _quark_dtype(part)) for pattern, part in (q.get("layer_quant_config") or {}).items()]
    dtype = _quark_dtype(usual) if usual else "bf16"

    def dtype_of(names: Sequence[str]) -> str:
        return next((found for matches, found in rules if matches(names)), dtype)

    return dtype_of


def _quark_dtype(part: Mapping[str, Any]) -> str:
    """Dtype of one of Quark's configurations: of weights and input tensors together."""
    weight, inputs = part.get("weight"), part.get("input_tensors")
    if not weight:
        return "bf16"
    if not isinstance(weight, Mapping):
        raise ValueError("weights that Quark quantises twice (FP8, then INT4) have no precision recipe")
    kind, scheme, size = str(weight["dtype"]), str(weight.get("qscheme")), weight.get("group_size")
    taken = str(inputs["dtype"]) if inputs else None
    if kind == "fp4" and size == 32 and taken in (None, "fp4"):
        return "mxfp4_mxfp4" if taken else "mxfp4"
    if kind == "fp8_e4m3" and taken == kind and scheme in ("per_tensor", "per_channel"):
        return "fp8"
    if kind == "int8" and taken == kind and scheme == "per_channel":
        return "int8"
    raise ValueError(
        f"Quark's {kind} weights ({scheme}, group {size}) with {taken or 'unquantised'} inputs have no precision recipe"
    )


def _group_dtype(group: Mapping[str, Any]) -> str:
    """Dtype of one group of compressed-tensors."""
    weights, inputs = group["weights"], group.get("input_activations")
    kind, bits, size = weights.get("type", "int"), weights["num_bits"], weights.get("group_size")
    strategy = weights.get("strategy")
    with_inputs = f"{'with' if inputs else 'without'} quantised activations"
    if (kind, bits) == ("int", 4) and not inputs:
        return _int4(size)
    if (kind, bits) == ("int", 8) and inputs:
        return "int8"
    if (kind, bits) == ("float", 8) and inputs:
        block = weights.get("block_structure")
        return _fp8({"weight_block_size": block or [128, 128]}) if strategy == "block" else "mxfp8" if size == 32 else "fp8"
    if (kind, bits, size) == ("float", 4, 16) and inputs:
        return "nvfp4"
    if (kind, bits, size) == ("float", 4, 16):
        return "nvfp4_a16"
    if (kind, bits, size) == ("float", 4, 32) and not inputs:
        return "mxfp4"
    raise ValueError(f"config_groups: {bits}-bit {kind} weights (group {size}) {with_inputs} have no precision recipe")


def _except(patterns: Sequence[str], dtype_of: DtypeOf) -> DtypeOf:
    left_out = _matcher(patterns)
    return lambda names: "bf16" if left_out(names) else dtype_of(names)


def _matcher(patterns: Sequence[str]) -> Callable[[Sequence[str]], bool]:
    """Whether one of a module's names is listed: by itself or by a module around it, as wildcard, or as `re:` expression."""
    listed = {pattern for pattern in patterns if not _is_expression(pattern)}
    expressions = "|".join(f"(?:{_expression(pattern)})" for pattern in patterns if _is_expression(pattern))
    any_of = compiled(expressions) if expressions else None
    return lambda names: any(not listed.isdisjoint(_parts(name)) or (any_of is not None and any_of.match(name)) for name in names)


def _parts(name: str) -> Iterator[str]:
    """Every run of a dotted name's words."""
    words = name.split(".")
    return (".".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1))


def _is_expression(pattern: str) -> bool:
    return pattern.startswith("re:") or any(sign in pattern for sign in "*?[")


def _expression(pattern: str) -> str:
    return pattern[3:] if pattern.startswith("re:") else rf"(?:.*\.)?{wildcard(pattern)}(?:\..*)?\z"


def _families(model: ModelSpec, modules: Mapping[str, str], dtype_of: DtypeOf) -> tuple[dict[str, str], list[str]]:
    """Dtype of each matrix family that the model has: what most of its layers have, with a remark where some differ."""
    found: dict[str, str] = {}
    remarks = []
    for family, layers in _layers_of(model, modules):
        names = {layer: modules.get(f"{kind}:{family}", modules[family]) for layer, kind in layers.items()}
        counts = Counter(dtype_of([f"{prefix}layers.{layer}.{name}" for prefix in PREFIXES]) for layer, name in names.items())
        (dtype, _), *others = counts.most_common()
        found[family] = dtype
        for other, number in others:
            remarks.append(f"{number} of {len(layers)} layers store {family} in {other}; all are priced in {dtype}")
    return found, remarks


def _layers_of(model: ModelSpec, modules: Mapping[str, str]) -> Iterator[tuple[str, dict[int, str]]]:
    """Matrix families that the model has, with the layers that have them and the kind of what has it there."""
    for family in modules:
        layers = {
            position: str(part.kind)
            for group in model.groups
            for part in (group.attention, group.ffn)
            if part is not None and any(matrix.family == family for matrix in part.matrices(model.hidden, 1))
            for position in group.positions
        }
        if layers:
            yield family, layers


def _kv_cache(q: Mapping[str, Any]) -> str | None:
    """Dtype that the checkpoint asks for its KV cache; none where it says nothing. BF16 is what it says by null."""
    if q.get("quant_method") == "quark":
        return "fp8" if "fp8" in str(q.get("kv_cache_quant_config") or "") else None
    keys = [key for key in ("kv_cache_quant_algo", "kv_cache_scheme") if key in q]
    if not keys:
        return None
    value = next((q[key] for key in keys if q[key]), None)
    if value is None:
        return "bf16"
    eight_bit = isinstance(value, Mapping) and (value.get("num_bits"), value.get("type")) == (8, "float")
    if eight_bit or str(value).upper() == "FP8":
        return "fp8"
    raise UnsupportedModelError(f"quantization_config: a KV cache in {value} is not modelled (FP8 and BF16 are)")
