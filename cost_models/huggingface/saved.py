"""Fields as transformers 5 writes them, under the names that readers know from the published files.

A checkpoint that was read and saved again (quantised by a user, say) has `num_local_experts` for `num_experts`, kinds of layers
as lists, and sizes of single layers in `per_layer_config`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

FULL, LINEAR = "full_attention", "linear_attention"
SAME = (
    ("num_experts", "num_local_experts", "n_routed_experts"),
    ("num_experts_per_tok", "num_experts_per_token"),
    ("n_group", "num_expert_group"),
    ("max_position_embeddings", "model_max_length"),
    ("num_nextn_predict_layers", "num_mtp_layers"),
    ("n_shared_experts", "num_shared_experts"),
)
"""Names of one field; a file has one of them."""


def first_published(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with those that they say under another name; what a file says itself is never changed."""
    found = dict(fields)
    for names in SAME:
        if value := next((fields[name] for name in names if fields.get(name) is not None), None):
            found |= {name: value for name in names if found.get(name) is None}
    for name, derived in DERIVED.items():
        if found.get(name) is None and (value := derived(found)) is not None:
            found[name] = value
    return found


def layer_changes(fields: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """What single layers have otherwise: `per_layer_config` by the layer's number. Raises ValueError for what is no such map."""
    given = fields.get("per_layer_config") or {}
    if not isinstance(given, Mapping) or not all(
        str(key).isdigit() and isinstance(value, Mapping) for key, value in given.items()
    ):
        raise ValueError("per_layer_config must be an object of objects by layer number")
    return {int(key): value for key, value in given.items()}


def _first_dense(fields: Mapping[str, Any]) -> int | None:
    """Dense layers ahead of all layers with experts; none where the kinds alternate, or are not named."""
    kinds = fields.get("mlp_layer_types")
    if not isinstance(kinds, list) or set(kinds) - {"dense", "sparse"}:
        return None
    dense = kinds.index("sparse") if "sparse" in kinds else len(kinds)
    return dense if "dense" not in kinds[dense:] else None


def _linear_attention(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of Kimi delta attention: heads and, where the others attend to everything, which layers have it (counted from 1)."""
    kinds = fields.get("layer_types")
    if "linear_num_heads" not in fields or not isinstance(kinds, list) or LINEAR not in kinds:
        return None
    sizes = {"linear_num_heads": "num_heads", "linear_head_dim": "head_dim", "linear_conv_kernel_dim": "short_conv_kernel_size"}
    found: dict[str, Any] = {own: fields[name] for name, own in sizes.items() if name in fields}
    if set(kinds) == {LINEAR, FULL}:
        found["kda_layers"] = [layer for layer, kind in enumerate(kinds, 1) if kind == LINEAR]
        found["full_attn_layers"] = [layer for layer, kind in enumerate(kinds, 1) if kind == FULL]
    return found


def _ratios(fields: Mapping[str, Any]) -> list[int] | None:
    """Tokens per compressed entry of each layer of DeepSeek-V4; 0 for a window alone."""
    rates, kinds = fields.get("compress_rates"), fields.get("layer_types")
    if not isinstance(rates, Mapping) or not isinstance(kinds, list):
        return None
    known = {"sliding_attention": 0, **rates}
    if other := sorted({str(kind) for kind in kinds if kind not in known}):
        raise ValueError(f"layer_types: {', '.join(other)} has no entry in compress_rates")
    return [known[kind] for kind in kinds]


def _hashed(fields: Mapping[str, Any]) -> int | None:
    kinds = fields.get("mlp_layer_types")
    return kinds.count("hash_moe") if isinstance(kinds, list) and "hash_moe" in kinds else None


def _sparse_blocks(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of MiniMax-M3: which layers attend to chosen blocks, and their index."""
    kinds = fields.get("layer_types")
    if "index_block_size" not in fields or not isinstance(kinds, list):
        return None
    names = {
        "index_n_heads": "sparse_num_index_heads", "index_head_dim": "sparse_index_dim", "index_block_size": "sparse_block_size",
        "index_topk_blocks": "sparse_topk_blocks", "index_local_blocks": "sparse_local_block",
    }  # fmt: skip
    sizes = {own: fields[name] for name, own in names.items() if name in fields}
    return {**sizes, "sparse_attention_freq": [int(kind != FULL) for kind in kinds]}


DERIVED: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "first_k_dense_replace": _first_dense,
    "linear_attn_config": _linear_attention,
    "compress_ratios": _ratios,
    "num_hash_layers": _hashed,
    "sparse_attention_config": _sparse_blocks,
}
"""Field -> what other fields say of it."""
