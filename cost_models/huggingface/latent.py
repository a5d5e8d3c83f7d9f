"""Models with latent attention: DeepSeek-V2 to R1, Kimi-K2; sparse: DeepSeek-V3.2, GLM-5, dots3-note; compressed: DeepSeek-V4."""

from __future__ import annotations

from cost_models.attention.base import AttentionKind
from cost_models.attention.compressed import CompressedSpec
from cost_models.attention.dsa import DsaSpec
from cost_models.attention.mla import MlaSpec
from cost_models.attention.windowed_mla import WindowedMlaSpec
from cost_models.huggingface.fields import FULL, SLIDING, Config, common, latent_sizes, layer_kinds, only, sparse_layers, window
from cost_models.huggingface.saved import layer_changes
from cost_models.specs.model import DenseSpec, ModelSpec, MoeSpec

INDEXED_RATIO, WHOLE_RATIO = 4, 128
"""Tokens per entry of streams with an indexer and of those that are attended to whole."""


def deepseek_v3(config: Config, name: str, source: str) -> ModelSpec:
    """Sigmoid routing in groups with a correction bias; Kimi-K2 has one group."""
    return _deepseek(config, name, source, correction_bias=True)


def deepseek_v32(config: Config, name: str, source: str) -> ModelSpec:
    """DeepSeek sparse attention: DeepSeek-V3.2, and GLM-5, whose later versions reuse the index of an earlier layer."""
    dense = _deepseek(config, name, source, correction_bias=True)
    ((latent, _),) = dense.attentions.items()
    own = DsaSpec(
        **latent.model_dump(exclude={"kind"}),
        index_heads=config["index_n_heads"],
        index_dim=config["index_head_dim"],
        top_k=config["index_topk"],
    )
    only(config, "index_kv_pool_size", 1)
    types = config.get("indexer_types") or ["full"] * dense.layers
    if len(types) != dense.layers or set(types) - {"full", "shared"}:
        said = ", ".join(sorted(set(types)))
        raise ValueError(f"indexer_types has {len(types)} entries of {said}; {dense.layers} layers need full or shared")
    if types[0] != "full":
        raise ValueError("indexer_types: layer 0 shares an index that no layer before it computes")
    reused = own.model_copy(update={"computes_index": False})
    pattern = [(own if kind == "full" else reused, group.ffn) for kind, group in zip(types, dense.in_order(), strict=True)]
    document = dense.model_dump(exclude={"groups"})
    return ModelSpec.of_layers(pattern, **document)


def hy_v4(config: Config, name: str, source: str) -> ModelSpec:
    """Hy4: the layers of GLM-5 with a gate per element, several residual streams; its sinks add one logit per head."""
    sparse = deepseek_v32(config, name, source)
    gated = {kind: kind.model_copy(update={"output_gate": True}) for kind in sparse.attentions}
    pattern = [(gated[group.attention] if group.attention else None, group.ffn) for group in sparse.in_order()]
    flags = (*sparse.flags, "attention sinks add one logit per head; their time is not modelled")
    document = {**sparse.model_dump(exclude={"groups"}), "residual_streams": config.get("hc_mult") or 1, "flags": flags}
    return ModelSpec.of_layers(pattern, **document)


def deepseek_v4(config: Config, name: str, source: str) -> ModelSpec:
    """DeepSeek-V4: compressed streams of several ratios, experts in every layer, several residual streams."""
    layers, ratios = config["num_hidden_layers"], config["compress_ratios"]
    drafts = config.get("num_nextn_predict_layers") or 0
    if len(ratios) not in (layers, layers + drafts):
        raise ValueError(f"compress_ratios has {len(ratios)} entries; {layers} layers and {drafts} drafts need one each")
    if other := sorted(set(ratios) - {0, INDEXED_RATIO, WHOLE_RATIO}):
        said = ", ".join(map(str, other))
        raise ValueError(f"compress_ratios: {said} is not modelled; known: 0, {INDEXED_RATIO}, {WHOLE_RATIO}")
    indexer = {"index_heads": config["index_n_heads"], "index_dim": config["index_head_dim"], "top_k": config["index_topk"]}
    kinds = {
        ratio: CompressedSpec(
            heads=config["num_attention_heads"],
            head_dim=config["head_dim"],
            rope_dim=config["qk_rope_head_dim"],
            q_lora_rank=config["q_lora_rank"],
            o_lora_rank=config["o_lora_rank"],
            o_groups=config["o_groups"],
            window_tokens=window(config),
            ratio=ratio,
            **(indexer if ratio == INDEXED_RATIO else {}),
        )
        for ratio in set(ratios)
    }
    moe = MoeSpec(
        experts=config["n_routed_experts"],
        top_k=config["num_experts_per_tok"],
        intermediate=config["moe_intermediate_size"],
        shared_intermediate=config["n_shared_experts"] * config["moe_intermediate_size"],
        correction_bias=True,
    )
    hashed = config.get("num_hash_layers") or 0
    flags = (
        (f"{hashed} layers route by token, not by score; their load is taken to be like that of the others",) if hashed else ()
    )
    pattern = [(kinds[ratio], moe) for ratio in ratios[:layers]]
    document = {"mtp_layers": drafts, "residual_streams": config.get("hc_mult") or 1, "flags": flags}
    return ModelSpec.of_layers(pattern, **common(config, name, source), **document)


INDEXED = "indexed_attention"
DOTS3_WINDOW = 512
"""Window of dots3-note where its file names none (transformers, Dots3NoteTextConfig)."""


def dots3_note(config: Config, name: str, source: str) -> ModelSpec:
    """dots3-note: sparse latent attention in the first two layers and every fourth, latent attention over a window between.

    Its files call sparse layers `full_attention`, as they do full ones where use_dsa is false; windowed layers have heads and
    widths of their own (swa_...).
    """
    layers = config["num_hidden_layers"]
    gated = {"output_gate": True, "head_gate": True}
    indexer = {"index_heads": config["index_n_heads"], "index_dim": config["index_head_dim"], "top_k": config["index_topk"]}
    sparse = DsaSpec(**latent_sizes(config), **gated, **indexer)
    changed = next(iter(layer_changes(config).values()), {})
    own = {**config, **{key.removeprefix("swa_"): value for key, value in config.items() if key.startswith("swa_")}, **changed}
    if "swa_qk_rope_head_dim" not in config and "swa_head_dim" in config:
        own["qk_rope_head_dim"] = own["head_dim"] - own["qk_nope_head_dim"]
    if any(other != changed for other in layer_changes(config).values()):
        raise ValueError("per_layer_config: windowed layers that differ from each other are not modelled")
    reach = config.get("sliding_window") or config.get("sliding_window_size") or DOTS3_WINDOW
    near = WindowedMlaSpec(**latent_sizes(own), **gated, window_tokens=window({**config, "sliding_window": reach}))
    whole: MlaSpec | DsaSpec = MlaSpec(**latent_sizes(config), **gated) if config.get("use_dsa") is False else sparse
    usual = [FULL if layer < 2 or layer % 4 == 1 else SLIDING for layer in range(layers)]
    named = config.get("layer_types") or usual
    kinds: list[AttentionKind] = layer_kinds(layers, "layer_types", named, {INDEXED: sparse, FULL: whole, SLIDING: near})
    shared = config.get("moe_shared_expert_intermediate_size") or config.get("shared_experts_intermediate_size")
    width = config["moe_intermediate_size"]
    moe = MoeSpec(
        experts=config["n_routed_experts"],
        top_k=config["num_experts_per_tok"],
        intermediate=width,
        shared_intermediate=config["n_shared_experts"] * (shared or width),
        groups=config.get("n_group") or 1,
        top_k_groups=config.get("topk_group") or 1,
        correction_bias=True,
    )
    dense = DenseSpec(intermediate=config["intermediate_size"])
    pattern = [(kind, moe if experts else dense) for kind, experts in zip(kinds, sparse_layers(config), strict=True)]
    drafts = config.get("num_nextn_predict_layers") or 0
    flags = (f"latent attention over a window ({near.kv_lora_rank:,} wide) is priced by kernels timed over whole contexts",)
    return ModelSpec.of_layers(pattern, **common(config, name, source), mtp_layers=drafts, flags=flags)


def youtu(config: Config, name: str, source: str) -> ModelSpec:
    """Youtu-LLM: latent attention and dense networks."""
    ffn = DenseSpec(intermediate=config["intermediate_size"])
    attention = MlaSpec(**latent_sizes(config))
    tied = {"tie_word_embeddings": True, **config}
    return ModelSpec.of_layers([(attention, ffn)] * config["num_hidden_layers"], **common(tied, name, source))


def axk1(config: Config, name: str, source: str) -> ModelSpec:
    """A.X-K1: DeepSeek-V3's layers; a third norm of each is not counted."""
    return _deepseek(config, name, source, correction_bias=True)


def deepseek_v2(config: Config, name: str, source: str) -> ModelSpec:
    """Softmax routing in groups."""
    return _deepseek(config, name, source, correction_bias=False)


def _deepseek(config: Config, name: str, source: str, *, correction_bias: bool) -> ModelSpec:
    only(config, "moe_layer_freq", 1)
    attention = MlaSpec(**latent_sizes(config))
    moe = MoeSpec(
        experts=config["n_routed_experts"],
        top_k=config["num_experts_per_tok"],
        intermediate=config["moe_intermediate_size"],
        shared_intermediate=config["n_shared_experts"] * config["moe_intermediate_size"],
        groups=config.get("n_group") or 1,
        top_k_groups=config.get("topk_group") or 1,
        correction_bias=correction_bias,
    )
    return ModelSpec.uniform(
        **common(config, name, source),
        dense_layers=config["first_k_dense_replace"],
        dense_intermediate=config["intermediate_size"],
        attention=attention,
        moe=moe,
        mtp_layers=config.get("num_nextn_predict_layers") or 0,
    )
