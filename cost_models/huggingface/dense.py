"""Dense models with grouped-query attention: Llama, Mistral, Qwen2, Qwen3, MiMo-7B, Gemma 3."""

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


def _dense(config: Config, name: str, source: str, attention: Sequence[GqaSpec], flags: tuple[str, ...] = ()) -> ModelSpec:
    ffn = DenseSpec(intermediate=config["intermediate_size"])
    return ModelSpec.of_layers([(kind, ffn) for kind in attention], **common(config, name, source), flags=flags)
