"""Fields that config.json files of many architectures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from cost_models.attention.gqa import GqaSpec
from cost_models.huggingface.saved import first_published
from cost_models.specs.bounds import MOST_LAYERS, MOST_TOKENS, MOST_WIDTH

WHOLE = {
    "num_hidden_layers": MOST_LAYERS, "hidden_size": MOST_WIDTH, "num_attention_heads": MOST_WIDTH,
    "num_key_value_heads": MOST_WIDTH, "head_dim": MOST_WIDTH, "vocab_size": MOST_TOKENS, "max_position_embeddings": MOST_TOKENS,
}  # fmt: skip
"""Fields that readers compute with, and the most that is no slip of the pen."""
COUNTS = {
    "first_k_dense_replace": MOST_LAYERS, "num_nextn_predict_layers": MOST_LAYERS, "n_shared_experts": MOST_WIDTH,
    "n_routed_experts": MOST_WIDTH, "num_experts": MOST_WIDTH, "num_local_experts": MOST_WIDTH, "num_experts_per_tok": MOST_WIDTH,
    "intermediate_size": MOST_WIDTH, "moe_intermediate_size": MOST_WIDTH, "q_lora_rank": MOST_WIDTH, "kv_lora_rank": MOST_WIDTH,
    "qk_nope_head_dim": MOST_WIDTH, "qk_rope_head_dim": MOST_WIDTH, "v_head_dim": MOST_WIDTH, "index_topk": MOST_TOKENS,
    "sliding_window": MOST_TOKENS,
}  # fmt: skip
"""Fields that some architectures have, some of them as a list over layers."""
Config = Mapping[str, Any]
K = TypeVar("K")
FULL, SLIDING = "full_attention", "sliding_attention"

VISION = "images: the vision tower's memory and time are not modelled"
"""Flag of a model whose language part is read from `text_config`."""


def language_part(config: Config) -> Any:
    """The language model's own fields, where a file nests them: `text_config`, `llm_config` of NVIDIA's omni models."""
    return config.get("text_config") or config.get("llm_config")


def flat(config: Config) -> dict[str, Any]:
    """The language model's fields with the outer ones they leave out (architectures, tied embeddings); null is absent,
    but for `q_lora_rank`, whose null says that queries have no latent: 0.

    Raises ValueError naming a field whose number is written as text, and a depth that no model has.
    """
    text = language_part(config)
    both = dict(config)
    if isinstance(text, Mapping):
        both |= {key: value for key, value in text.items() if key not in ("architectures", "model_type")}
        if config.get("tie_word_embeddings") is not None:  # the outer model ties, or not, whatever its inner one would
            both["tie_word_embeddings"] = config["tie_word_embeddings"]
    fields = first_published({key: value for key, value in both.items() if value is not None})
    if "q_lora_rank" in both:
        fields.setdefault("q_lora_rank", 0)
    if fields.get("head_dim") == 0 and fields.get("kv_lora_rank"):
        del fields["head_dim"]  # latent attention has no head width of its own
    for key, value in fields.items():
        if isinstance(value, str) and value.strip().isdigit():
            raise ValueError(f"{key} must be a number, found the text '{value}'")
    for key, most in WHOLE.items():
        value = fields.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise ValueError(f"{key} must be a whole number from 1 to {most:,}, found {value!r:.40}")
    for key, most in COUNTS.items():
        value = fields.get(key, 0)
        if not isinstance(value, list) and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most):
            raise ValueError(f"{key} must be a whole number from 0 to {most:,}, found {value!r:.40}")
    dense, layers = fields.get("first_k_dense_replace", 0), fields.get("num_hidden_layers", MOST_LAYERS)
    if not isinstance(dense, list) and dense > layers:
        raise ValueError(f"first_k_dense_replace is {dense:,}, num_hidden_layers {layers:,}: more dense layers than layers")
    return fields


def common(config: Config, name: str, source: str) -> dict[str, Any]:
    """What every ModelSpec needs."""
    return {
        "name": name,
        "title": config.get("_title", name),
        "source": source,
        "hidden": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "vocab": config["vocab_size"],
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        "max_context_tokens": config["max_position_embeddings"],
    }


def gqa(config: Config, **changes: Any) -> GqaSpec:
    """Grouped-query attention over the whole context."""
    heads = config["num_attention_heads"]
    fields: dict[str, Any] = {
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
    }
    return GqaSpec(**{**fields, **changes})


def latent_sizes(config: Config) -> dict[str, Any]:
    """Heads, ranks and widths of latent attention, as DeepSeek's configs name them."""
    return {
        "heads": config["num_attention_heads"],
        "q_lora_rank": config["q_lora_rank"],
        "kv_lora_rank": config["kv_lora_rank"],
        "qk_nope_dim": config["qk_nope_head_dim"],
        "qk_rope_dim": config["qk_rope_head_dim"],
        "v_dim": config["v_head_dim"],
    }


def windowed(config: Config, full: GqaSpec, otherwise: Sequence[str] = ()) -> list[GqaSpec]:
    """The attention of each layer: the given one, over the sliding window where `layer_types` (or `otherwise`) says so.

    Raises ValueError for a list of another length than the layers, and for kinds that are neither.
    """
    layers = config["num_hidden_layers"]
    kinds = config.get("layer_types") or otherwise
    if not kinds:
        if not config.get("use_sliding_window"):
            return [full] * layers
        kinds = [SLIDING if layer >= config["max_window_layers"] else FULL for layer in range(layers)]  # Qwen2 and Qwen3
    if len(kinds) != layers:
        raise ValueError(f"layer_types has {len(kinds)} entries, num_hidden_layers is {layers}")
    if other := sorted({str(kind) for kind in kinds} - {FULL, SLIDING}):
        raise ValueError(f"layer_types: {', '.join(other)} is not modelled here; known: {FULL}, {SLIDING}")
    if SLIDING not in kinds:
        return [full] * layers
    near = full.model_copy(update={"window_tokens": window(config)})
    return [near if kind == SLIDING else full for kind in kinds]


def layer_kinds(layers: int, key: str, names: Sequence[Any], kinds: Mapping[Any, K]) -> list[K]:
    """What a list names for each layer; raises ValueError for another length and for names that are not known."""
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != layers:
        count = len(names) if isinstance(names, Sequence) and not isinstance(names, str) else "no list of"
        raise ValueError(f"{key} has {count} entries, num_hidden_layers is {layers}")
    if other := sorted({str(name) for name in names if name not in kinds}):
        raise ValueError(f"{key}: {', '.join(other)} is not modelled here; known: {', '.join(map(str, kinds))}")
    return [kinds[name] for name in names]


def window(config: Config, key: str = "sliding_window") -> int:
    """A window's length; raises ValueError for one that is none or longer than the context."""
    value, longest = config[key], config["max_position_embeddings"]
    if not isinstance(value, int) or not 0 < value <= longest:
        raise ValueError(f"{key} {value} does not lie within the {longest}-token context (max_position_embeddings)")
    return value


def sparse_layers(config: Config) -> list[bool]:
    """Which layers have experts: what `mlp_layer_types` says; else all but the first dense ones (`first_k_dense_replace`), those
    of `mlp_only_layers`, and those between every `decoder_sparse_step`-th.

    Raises ValueError where the first contradicts one of the others.
    """
    layers, step = config["num_hidden_layers"], config.get("decoder_sparse_step") or 1
    first, listed = config.get("first_k_dense_replace") or 0, list(config.get("mlp_only_layers") or ())
    dense = {*range(first), *listed}
    counted = [layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]
    if not config.get("mlp_layer_types"):
        return counted
    said = layer_kinds(layers, "mlp_layer_types", config["mlp_layer_types"], {"dense": False, "sparse": True})
    if said != counted and (first or listed or step > 1):
        given = {"first_k_dense_replace": first, "mlp_only_layers": listed, "decoder_sparse_step": step}
        other = next(f"{key} {value}" for key, value in given.items() if value)
        raise ValueError(f"{other} contradicts mlp_layer_types ({said.count(False)} dense layers)")
    return said


def part_of(config: Config, key: str) -> Config:
    """A field that is an object of its own; raises KeyError where it is absent and ValueError where it is something else."""
    part = config[key]
    if not isinstance(part, Mapping):
        raise ValueError(f"{key} must be an object, found {part!r:.40}")
    return part


def one_value(config: Config, key: str) -> Any:
    """A field that some configs give as a list with one value per layer; raises ValueError where the layers differ."""
    value = config[key]
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"{key}: layers that differ ({', '.join(map(str, sorted(set(value))))}) are not modelled")
    return value[0]


def only(config: Config, key: str, usual: Any) -> None:
    """Raises ValueError where a field has another value than the one that is modelled."""
    if config.get(key, usual) not in (usual, None):
        raise ValueError(f"{key} other than {usual} is not modelled")
