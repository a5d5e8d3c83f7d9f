"""Models whose layers differ from each other: MiniMax-M3, MiMo-V2-Flash, Gemma 4, Nemotron of the neural architecture search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cost_models.attention.base import AttentionKind
from cost_models.attention.block_sparse import BlockSparseSpec
from cost_models.attention.gqa import GqaSpec
from cost_models.huggingface.fields import (
    FULL,
    SLIDING,
    Config,
    common,
    gqa,
    layer_kinds,
    one_value,
    only,
    part_of,
    sparse_layers,
    window,
)
from cost_models.huggingface.saved import layer_changes
from cost_models.specs.model import DenseSpec, FeedForward, ModelSpec, MoeSpec

NAS_MULTIPLE = 256
"""Nemotron's feed-forward widths are rounded up to it (its configuration_decilm.py)."""


def minimax_m3(config: Config, name: str, source: str) -> ModelSpec:
    """Dense attention and networks first, then block-sparse attention and experts with a shared one."""
    if "mlp_layer_types" in config:  # as transformers 5 writes it, which leaves out what its class always has
        config = {"use_qk_norm": True, "use_routing_bias": True, "n_shared_experts": 1, **config}
    layers, sparse = config["num_hidden_layers"], part_of(config, "sparse_attention_config")
    only(config, "attention_output_gate", False)
    only(sparse, "sparse_init_block", 0)
    only(sparse, "sparse_local_block", 1)
    only(sparse, "sparse_score_type", "max")
    full = gqa(config, qk_norm=bool(config.get("use_qk_norm", False)))
    if sparse["sparse_num_index_heads"] != full.kv_heads:
        raise ValueError(
            f"sparse_num_index_heads {sparse['sparse_num_index_heads']} is not num_key_value_heads {full.kv_heads}: "
            "an index head for each KV head is what is modelled"
        )
    blocks = BlockSparseSpec(
        **full.model_dump(exclude={"kind", "window_tokens"}),
        block_tokens=sparse["sparse_block_size"],
        top_blocks=sparse["sparse_topk_blocks"],
        index_heads=sparse["sparse_num_index_heads"],
        index_dim=sparse["sparse_index_dim"],
    )
    moe = MoeSpec(
        experts=config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        intermediate=config["intermediate_size"],
        shared_intermediate=config["n_shared_experts"] * config["shared_intermediate_size"],
        correction_bias=bool(config.get("use_routing_bias", False)),
        router_fp32=True,
    )
    networks: dict[int, FeedForward] = {0: DenseSpec(intermediate=config["dense_intermediate_size"]), 1: moe}
    chosen = layer_kinds(layers, "sparse_attention_freq", sparse["sparse_attention_freq"], {0: full, 1: blocks})
    frequency = config.get("moe_layer_freq") or [int(experts) for experts in sparse_layers(config)]
    ffns = layer_kinds(layers, "moe_layer_freq", frequency, networks)
    pattern: list[tuple[AttentionKind, FeedForward]] = list(zip(chosen, ffns, strict=True))
    drafts = config.get("num_nextn_predict_layers") or (1 if config.get("num_mtp_modules") else 0)
    flags = (f"{modules} MTP modules are in the checkpoint; one is priced and kept",) if (
        modules := config.get("num_mtp_modules") or 0) > 1 else ()  # fmt: skip
    return ModelSpec.of_layers(pattern, **common(config, name, source), mtp_layers=drafts, flags=flags)


def mimo_v2(config: Config, name: str, source: str) -> ModelSpec:
    """MiMo-V2-Flash: windowed layers with other KV heads than full ones and with sinks; values narrower than keys."""
    layers = config["num_hidden_layers"]
    bias = bool(config.get("attention_bias", False))
    full = gqa(config, bias=bias, value_dim=config["v_head_dim"], sinks=bool(config.get("add_full_attention_sink_bias", False)))
    changed = next(iter(layer_changes(config).values()), {})
    own = {**config, **changed, **{key.removeprefix("swa_"): value for key, value in config.items() if key.startswith("swa_")}}
    near = GqaSpec(
        heads=own["num_attention_heads"],
        kv_heads=own["num_key_value_heads"],
        head_dim=own["head_dim"],
        value_dim=own["v_head_dim"],
        window_tokens=window(config),
        bias=bias,
        sinks=bool(config.get("add_swa_attention_sink_bias", False)),
    )
    if "hybrid_layer_pattern" in config or "layer_types" not in config:
        kinds = layer_kinds(layers, "hybrid_layer_pattern", config["hybrid_layer_pattern"], {0: full, 1: near})
    else:
        kinds = layer_kinds(layers, "layer_types", config["layer_types"], {FULL: full, SLIDING: near})
    moe = MoeSpec(
        experts=config["n_routed_experts"],
        top_k=config["num_experts_per_tok"],
        intermediate=config["moe_intermediate_size"],
        shared_intermediate=(config.get("n_shared_experts") or 0) * config["moe_intermediate_size"],
        router_fp32=config.get("moe_router_dtype", "float32") == "float32",
        groups=config.get("n_group") or 1,
        top_k_groups=config.get("topk_group") or 1,
        correction_bias=config.get("topk_method") == "noaux_tc",
    )
    networks: dict[int, FeedForward] = {0: DenseSpec(intermediate=config["intermediate_size"]), 1: moe}
    frequency = config.get("moe_layer_freq") or [int(experts) for experts in sparse_layers(config)]
    ffns = layer_kinds(layers, "moe_layer_freq", frequency, networks)
    flags = (
        "engines may pad values to the width of keys in the cache, which would take a sixth more of it",
        "the MTP modules of the checkpoint are not described by config.json and not priced",
    )
    return ModelSpec.of_layers(list(zip(kinds, ffns, strict=True)), **common(config, name, source), flags=flags)


def gemma4(config: Config, name: str, source: str) -> ModelSpec:
    """Gemma 4: full layers with wider and fewer heads, whose keys serve as values; a dense network beside the experts."""
    if config.get("hidden_size_per_layer_input"):
        raise ValueError("hidden_size_per_layer_input: embeddings of every layer are not modelled")
    only(config, "num_kv_shared_layers", 0)
    only(config, "use_double_wide_mlp", False)
    near = gqa(config, qk_norm=True, window_tokens=window(config))
    changed = [value for _, value in sorted(layer_changes(config).items())]
    if any(set(value) - {"head_dim", "num_key_value_heads"} or value != changed[0] for value in changed):
        raise ValueError("per_layer_config: layers that differ in more than the heads of full attention are not modelled")
    own = {"global_head_dim": "head_dim", "num_global_key_value_heads": "num_key_value_heads"}
    config = {**config, **{name: changed[0][key] for name, key in own.items() if changed and key in changed[0]}}
    wide = {"head_dim": config.get("global_head_dim") or near.head_dim}
    if config.get("attention_k_eq_v"):
        wide |= {"keys_are_values": True, "kv_heads": config.get("num_global_key_value_heads") or near.kv_heads}
    full = gqa(config, qk_norm=True, **wide)
    kinds = layer_kinds(config["num_hidden_layers"], "layer_types", config["layer_types"], {SLIDING: near, FULL: full})
    ffn: FeedForward = DenseSpec(intermediate=config["intermediate_size"])
    flags = ["of the norms of a layer two are counted"]
    if config.get("enable_moe_block"):
        ffn = MoeSpec(
            experts=config["num_experts"],
            top_k=config.get("top_k_experts") or config["num_experts_per_tok"],
            intermediate=config["moe_intermediate_size"],
            shared_intermediate=config["intermediate_size"],
        )
        flags.append("the dense network beside the experts is priced as a shared expert")
    if config.get("attention_k_eq_v"):
        flags.append("engines may hold the key projection of full layers twice, as keys and as values")
    tied = {"tie_word_embeddings": True, **config}
    return ModelSpec.of_layers([(kind, ffn) for kind in kinds], **common(tied, name, source), flags=tuple(flags))


def nemotron_nas(config: Config, name: str, source: str) -> ModelSpec:
    """Llama-Nemotron: some layers without attention, feed-forward widths of their own."""
    only(config, "mlp_bias", False)
    blocks = config["block_configs"]
    if not isinstance(blocks, Sequence) or len(blocks) != config["num_hidden_layers"]:
        raise ValueError(f"block_configs must describe each of the {config['num_hidden_layers']} layers")
    pattern = [(_nas_attention(config, block["attention"]), _nas_ffn(config, block["ffn"])) for block in blocks]
    return ModelSpec.of_layers(pattern, **common(config, name, source))


def _nas_attention(config: Config, block: Mapping[str, Any]) -> GqaSpec | None:
    if block.get("no_op"):
        return None
    for key in ("replace_with_linear", "sparsify", "window_length", "num_sink_tokens"):
        only(block, key, False)
    heads = one_value(config, "num_attention_heads")
    return gqa({**config, "num_key_value_heads": heads // block["n_heads_in_group"]})


def _nas_ffn(config: Config, block: Mapping[str, Any]) -> DenseSpec | None:
    if block.get("no_op"):
        return None
    for key in ("replace_with_linear", "sparsify"):
        only(block, key, False)
    width = int(2 * block["ffn_mult"] * config["hidden_size"] / 3)
    return DenseSpec(intermediate=-(-width // NAS_MULTIPLE) * NAS_MULTIPLE)
