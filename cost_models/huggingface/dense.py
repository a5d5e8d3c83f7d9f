"""Dense models with grouped-query attention: Llama and what is like it, Mistral, Qwen, MiMo-7B, EXAONE 4, OLMo 3, Gemma."""

from __future__ import annotations

from collections.abc import Sequence

from cost_models.attention.gqa import GqaSpec
from cost_models.huggingface.fields import FULL, SLIDING, Config, common, gqa, only, windowed
from cost_models.specs.model import DenseSpec, ModelSpec

GEMMA3_PERIOD = 6
"""Every sixth layer of Gemma 3 sees everything, the others a window (arXiv 2503.19786, section 2)."""


def llama(config: Config, name: str, source: str) -> ModelSpec:
    """No biases but those that `attention_bias` names."""
    only(config, "mlp_bias", False)
    return _dense(config, name, source, windowed(config, gqa(config, bias=bool(config.get("attention_bias", False)))))


def granite(config: Config, name: str, source: str) -> ModelSpec:
    """Granite 3 and 4, dense: Llama with multipliers, which cost nothing."""
    return llama({"tie_word_embeddings": True, **config}, name, source)


def ernie45(config: Config, name: str, source: str) -> ModelSpec:
    """ERNIE 4.5, dense: Llama with tied embeddings unless the file says otherwise."""
    only(config, "use_bias", False)
    return llama({"tie_word_embeddings": True, **config}, name, source)


def smollm3(config: Config, name: str, source: str) -> ModelSpec:
    """SmolLM3: Llama, every fourth layer without rope."""
    return llama({"tie_word_embeddings": True, **config}, name, source)


def phi3(config: Config, name: str, source: str) -> ModelSpec:
    """Phi-3 and 4: fused projections; a window in all layers, unless it is as long as the context."""
    reach = config.get("sliding_window")
    near = bool(reach) and reach < config["max_position_embeddings"]
    everywhere = [SLIDING] * config["num_hidden_layers"] if near else []
    return _dense(config, name, source, windowed(config, gqa(config), everywhere))


def arcee(config: Config, name: str, source: str) -> ModelSpec:
    """AFM-4.5B: squared ReLU without a gate."""
    only(config, "mlp_bias", False)
    attention = windowed(config, gqa(config, bias=bool(config.get("attention_bias", False))))
    return _dense(config, name, source, attention, gated=False)


def exaone4(config: Config, name: str, source: str) -> ModelSpec:
    """EXAONE 4: windows in three of four layers, where a window is named; norms of queries and keys."""
    period = config.get("sliding_window_pattern")
    layers = config["num_hidden_layers"]
    if isinstance(period, str):  # LLLG: three local layers, then a global one
        usual = [SLIDING if period[layer % len(period)] == "L" else FULL for layer in range(layers)]
    else:
        usual = [SLIDING if (layer + 1) % period else FULL for layer in range(layers)] if period else []
    near = usual if config.get("sliding_window") else []
    kinds = config if config.get("sliding_window") else {**config, "layer_types": None}
    return _dense(config, name, source, windowed(kinds, gqa(config, qk_norm=True), near))


def olmo(config: Config, name: str, source: str) -> ModelSpec:
    """OLMo 2 and 3: norms of queries and keys over all heads; windows where layer_types says so."""
    attention = gqa(config, bias=bool(config.get("attention_bias", False)), qk_norm=True, qk_norm_across_heads=True)
    return _dense(config, name, source, windowed(config, attention))


def gemma2(config: Config, name: str, source: str) -> ModelSpec:
    """Gemma 2: windows in every other layer; of the four norms of a layer, two are counted."""
    alternating = [FULL if layer % 2 else SLIDING for layer in range(config["num_hidden_layers"])]
    return _dense({"tie_word_embeddings": True, **config}, name, source, windowed(config, gqa(config), alternating))


def muse_glimmer(config: Config, name: str, source: str) -> ModelSpec:
    """Muse Glimmer: gated attention, windows in three of four layers; of the four norms of a layer, two are counted."""
    return _dense(config, name, source, windowed(config, gqa(config, output_gate=True)))


def mistral(config: Config, name: str, source: str) -> ModelSpec:
    """All layers have the sliding window, where the config names one."""
    everywhere = [SLIDING] * config["num_hidden_layers"] if config.get("sliding_window") else []
    return _dense(config, name, source, windowed(config, gqa(config), everywhere))


def qwen2(config: Config, name: str, source: str) -> ModelSpec:
    """Biases of query, key and value."""
    return _dense(config, name, source, windowed(config, gqa(config, bias=True)))


def qwen3(config: Config, name: str, source: str) -> ModelSpec:
    """Norms of queries and keys instead of biases."""
    attention = gqa(config, bias=bool(config.get("attention_bias", False)), qk_norm=True)
    return _dense(config, name, source, windowed(config, attention))


def mimo(config: Config, name: str, source: str) -> ModelSpec:
    """Qwen2 with a draft module, which is not modelled for dense models."""
    flags = ("the draft (MTP) module of a dense model is not modelled",) if config.get("num_nextn_predict_layers") else ()
    attention = gqa(config, bias=bool(config.get("attention_bias", True)))
    return _dense(config, name, source, windowed(config, attention), flags)


def gemma3(config: Config, name: str, source: str) -> ModelSpec:
    """Windows in five of six layers; of the four norms of a layer, two are counted."""
    period = config.get("sliding_window_pattern") or GEMMA3_PERIOD
    usual = [SLIDING if (layer + 1) % period else FULL for layer in range(config["num_hidden_layers"])]
    return _dense({"tie_word_embeddings": True, **config}, name, source, windowed(config, gqa(config, qk_norm=True), usual))


def _dense(
    config: Config, name: str, source: str, attention: Sequence[GqaSpec], flags: tuple[str, ...] = (), *, gated: bool = True
) -> ModelSpec:
    ffn = DenseSpec(intermediate=config["intermediate_size"], gated=gated)
    return ModelSpec.of_layers([(kind, ffn) for kind in attention], **common(config, name, source), flags=flags)
