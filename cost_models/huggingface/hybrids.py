"""Models that mix recurrent layers with attention: Qwen3-Next and 3.5, Kimi Linear and K3, Ling-3.0, GLM-5.3, Nemotron-H."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from cost_models.attention.base import AttentionKind
from cost_models.attention.dsa import DsaSpec
from cost_models.attention.gated_delta import GatedDeltaSpec
from cost_models.attention.kda import KdaSpec
from cost_models.attention.mamba2 import Mamba2Spec
from cost_models.attention.mla import MlaSpec
from cost_models.huggingface.fields import FULL, Config, common, gqa, latent_sizes, layer_kinds, only, part_of, sparse_layers
from cost_models.huggingface.saved import LINEAR
from cost_models.specs.model import DenseSpec, FeedForward, ModelSpec, MoeSpec

K = TypeVar("K")
SPARSE, INDEXED = "deepseek_sparse_attention", "indexed_attention"
PREFIXES = "a prefix is cached at block ends only in recurrent layers; hits are priced as if they were whole"
"""Flag of every model with recurrent layers."""
RESIDUALS = "attention over the residuals of earlier blocks is not modelled"


def qwen3_next(config: Config, name: str, source: str) -> ModelSpec:
    """Gated delta nets in three of four layers, gated attention in the fourth; experts, or a dense network, in all."""
    layers = config["num_hidden_layers"]
    period = config.get("full_attention_interval", 4)
    otherwise = [FULL if (layer + 1) % period == 0 else LINEAR for layer in range(layers)]
    kinds = by_type(config, {LINEAR: _gated_delta(config), FULL: gqa(config, qk_norm=True, output_gate=True)}, otherwise)
    if "full_attention_interval" in config and list(config.get("layer_types") or otherwise) != otherwise:
        raise ValueError(f"full_attention_interval {period} contradicts layer_types")
    sparse = sparse_layers(config) if config.get("num_experts") else [False] * layers
    dense = None if all(sparse) else DenseSpec(intermediate=config["intermediate_size"])
    moe = _qwen_experts(config) if any(sparse) else None
    pattern = [(kind, moe if experts else dense) for kind, experts in zip(kinds, sparse, strict=True)]
    drafts = config.get("mtp_num_hidden_layers") or config.get("num_nextn_predict_layers") or 0
    return _model(config, name, source, pattern, mtp_layers=drafts)


def _gated_delta(config: Config) -> GatedDeltaSpec:
    return GatedDeltaSpec(
        key_heads=config["linear_num_key_heads"],
        value_heads=config["linear_num_value_heads"],
        key_dim=config["linear_key_head_dim"],
        value_dim=config["linear_value_head_dim"],
        conv=config["linear_conv_kernel_dim"],
    )


def _qwen_experts(config: Config) -> MoeSpec:
    return MoeSpec(
        experts=config["num_experts"],
        top_k=config["num_experts_per_tok"],
        intermediate=config["moe_intermediate_size"],
        shared_intermediate=config["shared_expert_intermediate_size"],
        shared_gate=True,
    )


def kimi_linear(config: Config, name: str, source: str) -> ModelSpec:
    """Kimi delta attention in three of four layers, latent attention in the others; K3's experts work in a latent width."""
    linear = part_of(config, "linear_attn_config")
    delta = KdaSpec(
        heads=linear["num_heads"],
        head_dim=linear["head_dim"],
        conv=linear["short_conv_kernel_size"],
        full_rank_gate=bool(linear.get("use_full_rank_gate", False)),
    )
    latent = MlaSpec(
        **latent_sizes(config),
        output_gate=bool(config.get("mla_use_output_gate", False)),
    )
    layers = config["num_hidden_layers"]
    kinds = _by_lists(
        layers, {"kda_layers": (linear["kda_layers"], delta), "full_attn_layers": (linear["full_attn_layers"], latent)}
    )
    moe = MoeSpec(
        experts=config["num_experts"],
        top_k=config.get("num_experts_per_token") or config["num_experts_per_tok"],
        intermediate=config["moe_intermediate_size"],
        shared_intermediate=(config.get("num_shared_experts") or 0) * config["moe_intermediate_size"],
        groups=config.get("num_expert_group") or 1,
        top_k_groups=config.get("topk_group") or 1,
        correction_bias=True,
        latent=config.get("routed_expert_hidden_size"),
    )
    only(config, "moe_layer_freq", 1)
    dense = DenseSpec(intermediate=config["intermediate_size"])
    first = config["first_k_dense_replace"]
    pattern: list[tuple[AttentionKind, FeedForward]] = [(kind, dense if i < first else moe) for i, kind in enumerate(kinds)]
    flags = (RESIDUALS,) if config.get("attn_res_block_size") else ()
    return _model(config, name, source, pattern, flags=flags, mtp_layers=config.get("num_nextn_predict_layers") or 0)


def bailing_v3(config: Config, name: str, source: str) -> ModelSpec:
    """Ling-3.0: Kimi delta attention, and latent attention gated by head at the end of every group of layers."""
    layers, period = config["num_hidden_layers"], config["layer_group_size"]
    if config.get("no_kda_lora") is False:
        raise ValueError("no_kda_lora false: decay and gate through a bottleneck are not modelled here")
    delta = KdaSpec(
        heads=config.get("linear_num_heads") or config["num_attention_heads"],
        head_dim=config.get("linear_head_dim") or config["head_dim"],  # transformers 5 keeps the width of rope in head_dim
        conv=config.get("short_conv_kernel_size") or 4,
        full_rank_gate=True,
        full_rank_decay=True,
    )
    gate = config.get("gated_attention_proj_granularity_type", "head_wise")
    if gate not in ("head_wise", "element_wise"):
        raise ValueError(f"gated_attention_proj_granularity_type '{gate}' is not modelled; known: head_wise, element_wise")
    latent = MlaSpec(**latent_sizes(config), output_gate=True, head_gate=gate == "head_wise")
    whole = layers // period * period
    usual = [FULL if (layer + 1) % period == 0 or layer >= whole else LINEAR for layer in range(layers)]
    kinds: list[AttentionKind] = by_type(config, {LINEAR: delta, FULL: latent}, usual)
    width = config["moe_intermediate_size"]
    shared = config.get("moe_shared_expert_intermediate_size") or width
    moe = MoeSpec(
        experts=config.get("num_experts") or config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        intermediate=width,
        shared_intermediate=(config.get("num_shared_experts") or 1) * shared,
        groups=config.get("n_group") or 1,
        top_k_groups=config.get("topk_group") or 1,
        correction_bias=True,
    )
    dense = DenseSpec(intermediate=config["intermediate_size"])
    pattern = [(kind, moe if experts else dense) for kind, experts in zip(kinds, sparse_layers(config), strict=True)]
    drafts = config.get("num_nextn_predict_layers") or config.get("num_mtp_layers") or 0
    return _model(config, name, source, pattern, mtp_layers=drafts)


def glm5_next(config: Config, name: str, source: str) -> ModelSpec:
    """GLM-5.3-Flash: Kimi delta attention in three of four layers, sparse latent attention without rope in the others."""
    linear, layers = part_of(config, "linear_attn_config"), config["num_hidden_layers"]
    delta = KdaSpec(heads=linear["num_heads"], head_dim=linear["head_dim"], conv=linear["short_conv_kernel_size"])
    latent = DsaSpec(
        **latent_sizes(config),
        index_heads=config["index_n_heads"],
        index_dim=config["index_head_dim"],
        top_k=config["index_topk"],
        key_pool=config.get("index_kpool") or 1,
    )
    only(config, "indexer_types", ["full"] * layers)
    kinds: list[AttentionKind] = by_type(config, {LINEAR: delta, SPARSE: latent, INDEXED: latent})
    if said := [layer for layer in linear.get("kda_layers", ()) if not 0 <= layer < layers or kinds[layer] is not delta]:
        raise ValueError(f"linear_attn_config.kda_layers: layer {said[0]} is not linear_attention in layer_types")
    width, dense = config["moe_intermediate_size"], DenseSpec(intermediate=config["intermediate_size"])
    moe = MoeSpec(
        experts=config["n_routed_experts"],
        top_k=config["num_experts_per_tok"],
        intermediate=width,
        shared_intermediate=config["n_shared_experts"] * width,
        groups=config.get("n_group") or 1,
        top_k_groups=config.get("topk_group") or 1,
        correction_bias=True,
    )
    first = config["first_k_dense_replace"]
    pattern = [(kind, dense if layer < first else moe) for layer, kind in enumerate(kinds)]
    streams = (config.get("hc_mult") or 1) if config.get("mhc", True) else 1
    drafts = config.get("num_nextn_predict_layers") or 0
    return _model(config, name, source, pattern, mtp_layers=drafts, residual_streams=streams)


def granite_hybrid(config: Config, name: str, source: str) -> ModelSpec:
    """Granite 4: Mamba-2 or attention in every layer, and after it experts with a shared one, or a dense network."""
    state = Mamba2Spec(
        heads=config["mamba_n_heads"],
        head_dim=config["mamba_d_head"],
        state_dim=config["mamba_d_state"],
        groups=config["mamba_n_groups"],
        conv=config["mamba_d_conv"],
    )
    only(config, "mamba_proj_bias", False)
    full = gqa(config, bias=bool(config.get("attention_bias", False)))
    named = config.get("layer_types") or config["layers_block_type"]
    kinds: list[AttentionKind] = layer_kinds(
        config["num_hidden_layers"], "layer_types", named, {"mamba": state, LINEAR: state, "attention": full, FULL: full}
    )
    shared = config.get("shared_intermediate_size") or 0
    ffn: FeedForward = DenseSpec(intermediate=shared or config["intermediate_size"])
    if config.get("num_local_experts"):
        ffn = MoeSpec(
            experts=config["num_local_experts"],
            top_k=config["num_experts_per_tok"],
            intermediate=config["intermediate_size"],
            shared_intermediate=shared,
        )
    return _model({"tie_word_embeddings": True, **config}, name, source, [(kind, ffn) for kind in kinds])


def olmo_hybrid(config: Config, name: str, source: str) -> ModelSpec:
    """OLMo Hybrid: gated delta nets in three of four layers, attention in the fourth, dense networks."""
    layers = config["num_hidden_layers"]
    usual = [FULL if (layer + 1) % 4 == 0 else LINEAR for layer in range(layers)]
    kinds: list[AttentionKind] = by_type(config, {LINEAR: _gated_delta(config), FULL: gqa(config, qk_norm=True)}, usual)
    ffn = DenseSpec(intermediate=config["intermediate_size"])
    return _model(config, name, source, [(kind, ffn) for kind in kinds])


def nemotron_h(config: Config, name: str, source: str) -> ModelSpec:
    """Blocks of one mixer each: M a Mamba-2 layer, * attention, E experts, - a dense network; squared ReLU without a gate."""
    state = Mamba2Spec(
        heads=config["mamba_num_heads"],
        head_dim=config["mamba_head_dim"],
        state_dim=config["ssm_state_size"],
        groups=config["n_groups"],
        conv=config["conv_kernel"],
    )
    only(config, "mlp_hidden_act", "relu2")
    width = config["intermediate_size"]
    blocks: dict[str, tuple[AttentionKind | None, FeedForward | None]] = {"M": (state, None), "*": (gqa(config), None)}
    pattern = config.get("hybrid_override_pattern") or _pattern_of(config["layers_block_type"])
    if "E" in pattern:
        blocks["E"] = (None, _nemotron_experts(config))
    if "-" in pattern:
        blocks["-"] = (None, DenseSpec(intermediate=width, gated=False))
    layers = config.get("num_hidden_layers") or len(pattern)
    if len(pattern) != layers or set(pattern) - set(blocks):
        raise ValueError(
            f"hybrid_override_pattern names {len(pattern)} blocks of {', '.join(sorted(set(pattern)))}; "
            f"num_hidden_layers is {layers}, known blocks are {', '.join(blocks)}"
        )
    drafts = config.get("num_nextn_predict_layers") or 0
    return _model({**config, "num_hidden_layers": layers}, name, source, [blocks[block] for block in pattern], mtp_layers=drafts)


BLOCKS = {"mamba": "M", "attention": "*", "moe": "E", "mlp": "-", LINEAR: "M", FULL: "*"}


def _pattern_of(names: Sequence[str]) -> str:
    """The pattern that a list of block names spells; raises ValueError for a name that is not known."""
    if other := sorted(set(names) - set(BLOCKS)):
        raise ValueError(f"layers_block_type: {', '.join(other)} is not modelled; known: {', '.join(BLOCKS)}")
    return "".join(BLOCKS[name] for name in names)


def _nemotron_experts(config: Config) -> MoeSpec:
    shared = config.get("moe_shared_expert_intermediate_size") or config["moe_intermediate_size"]
    return MoeSpec(
        experts=config["n_routed_experts"],
        top_k=config["num_experts_per_tok"],
        intermediate=config["moe_intermediate_size"],
        shared_intermediate=(config.get("n_shared_experts") or 0) * shared,
        groups=config.get("n_group") or 1,
        top_k_groups=config.get("topk_group") or 1,
        correction_bias=True,
        latent=config.get("moe_latent_size"),
        gated=False,
    )


def by_type(config: Config, kinds: Mapping[str, K], otherwise: Sequence[str] = ()) -> list[K]:
    """What `layer_types` says of each layer; raises ValueError for another length and for types that are not known."""
    return layer_kinds(config["num_hidden_layers"], "layer_types", config.get("layer_types") or otherwise, kinds)


def _by_lists(layers: int, named: Mapping[str, tuple[Sequence[int], K]]) -> list[K]:
    """The kind of each layer from lists that count from 1; raises ValueError for layers in none of them, or in two."""
    placed: dict[int, K] = {}
    for key, (numbers, kind) in named.items():
        for number in numbers:
            if number in placed or not 1 <= number <= layers:
                reason = "is named twice" if number in placed else f"is not one of {layers}"
                raise ValueError(f"linear_attn_config.{key}: layer {number} {reason}")
            placed[number] = kind
    if len(placed) != layers:
        missing = next(number for number in range(1, layers + 1) if number not in placed)
        raise ValueError(f"linear_attn_config: layer {missing} is in neither {' nor '.join(named)}")
    return [placed[number] for number in range(1, layers + 1)]


def _model(
    config: Config,
    name: str,
    source: str,
    pattern: Sequence[tuple[AttentionKind | None, FeedForward | None]],
    *,
    flags: tuple[str, ...] = (),
    **document: int,
) -> ModelSpec:
    return ModelSpec.of_layers(pattern, **common(config, name, source), flags=(PREFIXES, *flags), **document)
