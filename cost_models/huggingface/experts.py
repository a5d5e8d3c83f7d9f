"""Mixture-of-experts models with grouped-query attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cost_models.attention.gqa import GqaSpec
from cost_models.huggingface.fields import FULL, SLIDING, Config, common, gqa, one_value, only, sparse_layers, window, windowed
from cost_models.specs.model import DenseSpec, ModelSpec, MoeSpec

LLAMA4_FULL_PERIOD = 4
"""Every fourth layer of Llama 4 sees everything (transformers, Llama4TextConfig.no_rope_layer_interval)."""


def qwen3_moe(config: Config, name: str, source: str) -> ModelSpec:
    """No shared expert; norms of queries and keys."""
    moe = _moe(config, experts=config["num_experts"], intermediate=config["moe_intermediate_size"])
    return _model(config, name, source, windowed(config, gqa(config, qk_norm=True)), moe, sparse=sparse_layers(config))


def qwen2_moe(config: Config, name: str, source: str) -> ModelSpec:
    """One shared expert behind a gate of its own; biases of query, key and value."""
    moe = _moe(
        config,
        experts=config["num_experts"],
        intermediate=config["moe_intermediate_size"],
        shared_intermediate=config["shared_expert_intermediate_size"],
    )
    return _model(config, name, source, windowed(config, gqa(config, bias=True)), moe, sparse=sparse_layers(config))


def mellum(config: Config, name: str, source: str) -> ModelSpec:
    """Mellum 2: Qwen3's layers, windows in most of them; a draft module where the file counts one."""
    experts = config.get("num_experts") or config["num_local_experts"]
    moe = _moe(config, experts=experts, intermediate=config["moe_intermediate_size"])
    attention = windowed(config, gqa(config, bias=bool(config.get("attention_bias", False)), qk_norm=True))
    drafts = config.get("num_nextn_predict_layers") or config.get("num_mtp_layers") or 0
    return _model(config, name, source, attention, moe, sparse=sparse_layers(config), mtp_layers=drafts)


def laguna(config: Config, name: str, source: str) -> ModelSpec:
    """Laguna: gated attention, windowed layers with more query heads than full ones, dense layers first, one shared expert."""
    layers = config["num_hidden_layers"]
    heads = config.get("num_attention_heads_per_layer") or [config["num_attention_heads"]] * layers
    kinds = config.get("layer_types") or [FULL] * layers
    gates = config.get("gating_types") or [config.get("gating", True)] * layers
    if lengths := {len(given) for given in (heads, kinds, gates)} - {layers}:
        raise ValueError(
            "num_attention_heads_per_layer, layer_types and gating_types need an entry for each of "
            f"{layers} layers, found {', '.join(map(str, sorted(lengths)))}"
        )
    sinks = bool(config.get("swa_attention_sink_enabled", False))
    attention = [
        _laguna_attention({**config, "num_attention_heads": count}, str(kind), gate, sinks=sinks)
        for count, kind, gate in zip(heads, kinds, gates, strict=True)
    ]
    moe = _moe(
        config,
        experts=config["num_experts"],
        intermediate=config["moe_intermediate_size"],
        shared_intermediate=config.get("shared_expert_intermediate_size") or 0,
        correction_bias=True,
    )
    first = {} if config.get("mlp_only_layers") or config.get("mlp_layer_types") else {"first_k_dense_replace": 1}
    return _model(config, name, source, attention, moe, sparse=sparse_layers({**first, **config}))


HEAD_GATES = {True: True, "per-head": True, "per_head": True, "per-element": False, "per_element": False}
"""What Laguna calls the gate of an attention layer -> whether a head has one number (transformers, LagunaConfig.gating)."""


def _laguna_attention(config: Config, kind: str, gate: Any, *, sinks: bool) -> GqaSpec:
    if gate and gate not in HEAD_GATES:
        raise ValueError(f"gating '{gate}' is not modelled; known: per-head, per-element")
    full = gqa(
        config,
        bias=bool(config.get("attention_bias", False)),
        qk_norm=True,
        output_gate=bool(gate),
        head_gate=bool(gate) and HEAD_GATES[gate],
    )
    if kind not in (FULL, SLIDING):
        raise ValueError(f"layer_types: {kind} is not modelled here; known: {FULL}, {SLIDING}")
    return full.model_copy(update={"window_tokens": window(config), "sinks": sinks}) if kind == SLIDING else full


def afmoe(config: Config, name: str, source: str) -> ModelSpec:
    """Trinity: gated attention, windows but in every fourth layer; of the four norms of a layer two are counted."""
    layers, period = config["num_hidden_layers"], config.get("global_attn_every_n_layers") or 4
    usual = [FULL if (layer + 1) % period == 0 else SLIDING for layer in range(layers)]
    moe = _grouped_experts(config, correction_bias=True)
    attention = gqa(config, bias=bool(config.get("attention_bias", False)), qk_norm=True, output_gate=True)
    return _model(config, name, source, windowed(config, attention, usual), moe, dense=config["num_dense_layers"])


def gpt_oss(config: Config, name: str, source: str) -> ModelSpec:
    """Windows in every other layer, sinks, biases everywhere."""
    moe = _moe(config, experts=config["num_local_experts"], intermediate=config["intermediate_size"], bias=True)
    alternating = [SLIDING, FULL] * (config["num_hidden_layers"] // 2)
    attention = windowed(config, gqa(config, bias=True, sinks=True), alternating)
    flags = ("attention sinks add one logit per head; their time is not modelled",)
    return _model(config, name, source, attention, moe, flags=flags, attention_output_bias=True)


def mixtral(config: Config, name: str, source: str) -> ModelSpec:
    """Few wide experts."""
    only(config, "sliding_window", None)
    moe = _moe(config, experts=config["num_local_experts"], intermediate=config["intermediate_size"])
    return _model(config, name, source, gqa(config), moe)


def minimax_m2(config: Config, name: str, source: str) -> ModelSpec:
    """Sigmoid routing with a correction bias; norms over all heads of queries and keys."""
    only(config, "shared_intermediate_size", 0)
    if set(config.get("attn_type_list") or [1]) != {1}:
        raise ValueError("attn_type_list: lightning attention is not modelled")
    moe = _moe(
        config,
        experts=config["num_local_experts"],
        intermediate=config["intermediate_size"],
        correction_bias=bool(config.get("use_routing_bias", False)),
        router_fp32=True,
    )
    flags = ("the MTP modules that the config names are not in the checkpoint",) if config.get("use_mtp") else ()
    across = config.get("qk_norm_type", "per_layer") == "per_layer"
    attention = gqa(config, qk_norm=bool(config.get("use_qk_norm")), qk_norm_across_heads=across)
    return _model(config, name, source, attention, moe, flags=flags)


def glm4_moe(config: Config, name: str, source: str) -> ModelSpec:
    """GLM-4.5 to 4.7: dense layers first, one shared expert, a draft module."""
    width = config["moe_intermediate_size"]
    moe = _moe(
        config,
        experts=config["n_routed_experts"],
        intermediate=width,
        shared_intermediate=config["n_shared_experts"] * width,
        groups=config.get("n_group") or 1,
        top_k_groups=config.get("topk_group") or 1,
        correction_bias=True,
    )
    attention = gqa(config, bias=bool(config.get("attention_bias", False)), qk_norm=bool(config.get("use_qk_norm", False)))
    drafts = config.get("num_nextn_predict_layers") or 0
    return _model(config, name, source, attention, moe, dense=config["first_k_dense_replace"], mtp_layers=drafts)


def solar_open(config: Config, name: str, source: str) -> ModelSpec:
    """Solar Open has GLM's fields, and experts in all layers unless the file says otherwise."""
    return glm4_moe({"first_k_dense_replace": 0, **config}, name, source)


def exaone_moe(config: Config, name: str, source: str) -> ModelSpec:
    """K-EXAONE: windows in three of four layers, norms of queries and keys, dense layers first, a draft module."""
    period = config.get("sliding_window_pattern") or 4
    local = period if isinstance(period, str) else "L" * (period - 1) + "G"
    usual = [SLIDING if local[layer % len(local)] == "L" else FULL for layer in range(config["num_hidden_layers"])]
    moe = _grouped_experts(config, correction_bias=True)
    attention = windowed(config, gqa(config, qk_norm=True), usual if config.get("sliding_window") else ())
    drafts = config.get("num_nextn_predict_layers") or 0
    return _model(config, name, source, attention, moe, sparse=sparse_layers(config), mtp_layers=drafts)


def olmoe(config: Config, name: str, source: str) -> ModelSpec:
    """OLMoE: norms of queries and keys over all heads."""
    moe = _moe(config, experts=config["num_experts"], intermediate=config["intermediate_size"])
    return _model(config, name, source, gqa(config, qk_norm=True, qk_norm_across_heads=True), moe)


def granite_moe(config: Config, name: str, source: str) -> ModelSpec:
    """Granite 3 with experts in all layers, and a shared one where the file has its width."""
    moe = _moe(
        config,
        experts=config["num_local_experts"],
        intermediate=config["intermediate_size"],
        shared_intermediate=config.get("shared_intermediate_size") or 0,
    )
    attention = windowed(config, gqa(config, bias=bool(config.get("attention_bias", False))))
    return _model({"tie_word_embeddings": True, **config}, name, source, attention, moe)


def cohere2_moe(config: Config, name: str, source: str) -> ModelSpec:
    """Command A with experts: windows in three of four layers, attention beside the experts, which are priced after it."""
    width, period = config.get("moe_intermediate_size") or config["intermediate_size"], config.get("sliding_window_pattern") or 4
    usual = [SLIDING if (layer + 1) % period else FULL for layer in range(config["num_hidden_layers"])]
    moe = _moe(
        config,
        experts=config["num_experts"],
        intermediate=width,
        shared_intermediate=(config.get("num_shared_experts") or 0) * width,
    )
    attention = windowed(config, gqa(config, bias=bool(config.get("attention_bias", False))), usual)
    flags = ("attention and feed-forward of a layer run side by side; they are priced one after the other",)
    tied = {"tie_word_embeddings": True, **config}
    return _model(tied, name, source, attention, moe, sparse=sparse_layers(config), flags=flags)


def dots1(config: Config, name: str, source: str) -> ModelSpec:
    """Dots.llm1 has the same fields, and norms of queries and keys always."""
    return glm4_moe({**config, "use_qk_norm": True}, name, source)


def bailing_moe(config: Config, name: str, source: str) -> ModelSpec:
    """Ling and Ring of the second generation."""
    moe = _grouped_experts(config, correction_bias=bool(config.get("moe_router_enable_expert_bias", False)))
    attention = gqa(config, bias=bool(config.get("use_qkv_bias", False)), qk_norm=bool(config.get("use_qk_norm", False)))
    drafts = config.get("num_nextn_predict_layers") or 0
    return _model(config, name, source, attention, moe, dense=config["first_k_dense_replace"], mtp_layers=drafts)


def ernie45_moe(config: Config, name: str, source: str) -> ModelSpec:
    """ERNIE 4.5: experts from moe_layer_start_index on."""
    only(config, "moe_layer_interval", 1)
    last = config.get("moe_layer_end_index", -1)
    if last not in (None, -1, config["num_hidden_layers"] - 1):
        raise ValueError(f"moe_layer_end_index {last}: dense layers after the experts are not modelled")
    width = one_value(config, "moe_intermediate_size")
    moe = _moe(
        config,
        experts=one_value(config, "moe_num_experts"),
        top_k=config["moe_k"],
        intermediate=width,
        shared_intermediate=(config.get("moe_num_shared_experts") or 0) * width,
        correction_bias=True,
    )
    start = config.get("moe_layer_start_index", 1)
    return _model({"tie_word_embeddings": True, **config}, name, source, gqa(config), moe, dense=one_value({"s": start}, "s"))


def hunyuan_moe(config: Config, name: str, source: str) -> ModelSpec:
    """Hunyuan-A13B: one shared expert, fields given per layer."""
    only(config, "use_cla", False)
    width = one_value(config, "moe_intermediate_size")
    moe = _moe(
        config,
        experts=one_value(config, "num_experts"),
        top_k=one_value(config, "moe_topk"),
        intermediate=width,
        shared_intermediate=one_value(config, "num_shared_expert") * width,
    )
    attention = gqa(config, bias=bool(config.get("attention_bias", False)), qk_norm=bool(config.get("use_qk_norm", False)))
    return _model(config, name, source, attention, moe)


def hy_v3(config: Config, name: str, source: str) -> ModelSpec:
    """Hy3: dense layers first; sigmoid routing, one shared expert."""
    width = one_value(config, "moe_intermediate_size")
    moe = _moe(
        config,
        experts=one_value(config, "num_experts"),
        intermediate=width,
        shared_intermediate=(config.get("num_shared_experts") or 0) * width,
        correction_bias=True,
    )
    attention = gqa(config, bias=bool(config.get("attention_bias", False)), qk_norm=True)
    drafts = config.get("num_nextn_predict_layers") or 0
    return _model(config, name, source, attention, moe, sparse=sparse_layers(config), mtp_layers=drafts)


def step3p5(config: Config, name: str, source: str) -> ModelSpec:
    """Step-3.5 and 3.7 Flash: windows of 512 tokens in three of four layers; experts after the dense layers."""
    if config.get("attention_other_setting"):
        raise ValueError("attention_other_setting: windowed layers with other heads than full ones are not modelled")
    experts = config.get("num_experts") or config["moe_num_experts"]
    moe = _moe(
        config,
        experts=experts,
        top_k=config.get("num_experts_per_tok") or config["moe_top_k"],
        intermediate=config["moe_intermediate_size"],
        shared_intermediate=config.get("share_expert_dim") or 0,
        correction_bias=bool(config.get("use_moe_router_bias", False)),
        router_fp32=True,
    )
    dense = config["first_k_dense_replace"]
    return _model(config, name, source, windowed(config, gqa(config, qk_norm=True)), moe, dense=dense)


def llama4(config: Config, name: str, source: str) -> ModelSpec:
    """Llama 4: experts in every `interleave_moe_layer_step`-th layer; attention in chunks in three of four.

    A chunk is priced as a window of its length, which reads at least as much: a query sees what of its chunk lies before it.
    """
    layers, step = config["num_hidden_layers"], config["interleave_moe_layer_step"]
    full = gqa(config)
    chunked = full.model_copy(update={"window_tokens": window(config, "attention_chunk_size")})
    width = config["intermediate_size"]
    moe = _moe(config, experts=config["num_local_experts"], intermediate=width, shared_intermediate=width)
    dense = DenseSpec(intermediate=config["intermediate_size_mlp"])
    pattern = [
        (chunked if layer % LLAMA4_FULL_PERIOD else full, dense if layer % step else moe) for layer in range(1, layers + 1)
    ]
    flags = (f"attention in chunks of {chunked.window_tokens:,} tokens is priced as a window of that length",)
    return ModelSpec.of_layers(pattern, **common(config, name, source), flags=flags)


def _moe(config: Config, **fields: Any) -> MoeSpec:
    top_k = fields.pop("top_k", None) or config["num_experts_per_tok"]
    return MoeSpec(top_k=top_k, **fields)


def _grouped_experts(config: Config, *, correction_bias: bool) -> MoeSpec:
    """Experts that are chosen among those of chosen groups, beside shared ones of the same width."""
    width = config["moe_intermediate_size"]
    return _moe(
        config,
        experts=config["num_experts"],
        intermediate=width,
        shared_intermediate=(config.get("num_shared_experts") or 0) * width,
        groups=config.get("n_group") or 1,
        top_k_groups=config.get("topk_group") or 1,
        correction_bias=correction_bias,
    )


def _model(
    config: Config,
    name: str,
    source: str,
    attention: GqaSpec | Sequence[GqaSpec],
    moe: MoeSpec,
    *,
    dense: int = 0,
    sparse: Sequence[bool] = (),
    **document: Any,
) -> ModelSpec:
    """A model of experts after `dense` dense layers, or in the layers that `sparse` says."""
    layers = config["num_hidden_layers"]
    kinds = [attention] * layers if isinstance(attention, GqaSpec) else attention
    has_experts = sparse or [layer >= dense for layer in range(layers)]
    ffn = None if all(has_experts) else DenseSpec(intermediate=config["intermediate_size"])
    pattern = [(kind, moe if experts else ffn) for kind, experts in zip(kinds, has_experts, strict=True)]
    return ModelSpec.of_layers(pattern, **common(config, name, source), **document)
