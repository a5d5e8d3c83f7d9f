"""Hugging Face config.json -> ModelSpec, for the architectures the cost models describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from cost_models.attention.gqa import GqaSpec
from cost_models.attention.mla import MlaSpec
from cost_models.errors import UnsupportedModelError
from cost_models.specs.model import ModelSpec, MoeSpec

Config = Mapping[str, Any]
K = TypeVar("K")

REJECTED = {
    "DeepseekV32ForCausalLM": "sparse attention (DSA, index_topk) is not modelled",
    "DeepseekV4ForCausalLM": "its compressed sparse attention is not modelled",
    "Llama4ForConditionalGeneration": "interleaved chunked attention is not modelled",
    "Qwen3NextForCausalLM": "gated linear attention is not modelled",
}


def model_from_config(config: Config, *, name: str, source: str) -> ModelSpec:
    """Read a Hugging Face configuration.

    Raises UnsupportedModelError for an architecture or feature that is not modelled, naming it,
    and for a key that the architecture needs and the file lacks.
    """
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise UnsupportedModelError(f"{source}: 'architectures' must be a list of names")
    supported = ", ".join(sorted(READERS))
    architecture = architectures[0] if architectures else None
    if architecture in REJECTED:
        raise UnsupportedModelError(f"{source}: {architecture}: {REJECTED[architecture]}. Supported: {supported}")
    if architecture not in READERS:
        raise UnsupportedModelError(f"{source}: architecture {architecture} is not supported. Supported: {supported}")
    if config.get("index_topk"):
        raise UnsupportedModelError(f"{source}: index_topk is set: sparse attention (DSA) is not modelled")
    try:
        return READERS[architecture](config, name, source)
    except KeyError as missing:
        raise UnsupportedModelError(f"{source}: {architecture} needs the key {missing}, which is absent") from missing
    except (ValidationError, TypeError, ValueError) as error:
        detail = error.errors()[0] if isinstance(error, ValidationError) else error
        text = f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" if isinstance(detail, dict) else str(detail)
        raise UnsupportedModelError(f"{source}: {architecture}: {text}") from error


def _common(config: Config, name: str, source: str) -> dict[str, Any]:
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


def _deepseek_v3(config: Config, name: str, source: str) -> ModelSpec:
    if config.get("moe_layer_freq", 1) != 1:
        raise ValueError("moe_layer_freq other than 1 is not modelled")
    attention = MlaSpec(
        heads=config["num_attention_heads"],
        q_lora_rank=config["q_lora_rank"],
        kv_lora_rank=config["kv_lora_rank"],
        qk_nope_dim=config["qk_nope_head_dim"],
        qk_rope_dim=config["qk_rope_head_dim"],
        v_dim=config["v_head_dim"],
    )
    moe = MoeSpec(
        experts=config["n_routed_experts"],
        top_k=config["num_experts_per_tok"],
        intermediate=config["moe_intermediate_size"],
        shared_intermediate=config["n_shared_experts"] * config["moe_intermediate_size"],
        groups=config.get("n_group", 1),
        top_k_groups=config.get("topk_group", 1),
        correction_bias=True,
    )
    return ModelSpec.uniform(
        **_common(config, name, source),
        dense_layers=config["first_k_dense_replace"],
        dense_intermediate=config["intermediate_size"],
        attention=attention,
        moe=moe,
        mtp_layers=config.get("num_nextn_predict_layers", 0),
    )


def _qwen3_moe(config: Config, name: str, source: str) -> ModelSpec:
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise ValueError("mlp_only_layers and decoder_sparse_step other than 1 are not modelled")
    if config.get("use_sliding_window"):
        raise ValueError("use_sliding_window is not modelled for Qwen3")
    attention = GqaSpec(
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        qk_norm=True,
    )
    moe = MoeSpec(
        experts=config["num_experts"], top_k=config["num_experts_per_tok"], intermediate=config["moe_intermediate_size"]
    )
    return ModelSpec.uniform(**_common(config, name, source), dense_layers=0, dense_intermediate=0, attention=attention, moe=moe)


def _gpt_oss(config: Config, name: str, source: str) -> ModelSpec:
    heads = {"heads": config["num_attention_heads"], "kv_heads": config["num_key_value_heads"], "head_dim": config["head_dim"]}
    full = GqaSpec(**heads, bias=True, sinks=True)
    window = full.model_copy(update={"window_tokens": config["sliding_window"]})
    moe = MoeSpec(
        experts=config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        intermediate=config["intermediate_size"],
        bias=True,
    )
    common = _common(config, name, source)
    alternating = ["sliding_attention", "full_attention"] * (common["layers"] // 2)
    kinds = _layer_types(config, {"sliding_attention": window, "full_attention": full}, alternating)
    flags = ("attention sinks add one logit per head; their time is not modelled",)
    return ModelSpec.of_layers([(kind, moe) for kind in kinds], **common, attention_output_bias=True, flags=flags)


def _layer_types(config: Config, kinds: Mapping[str, K], otherwise: Sequence[str] = ()) -> list[K]:
    """What `layer_types` says of each layer; raises ValueError where it is of another length or names something else."""
    names = config.get("layer_types") or otherwise
    if len(names) != config["num_hidden_layers"]:
        raise ValueError(f"layer_types has {len(names)} entries, num_hidden_layers is {config['num_hidden_layers']}")
    if unknown := sorted({str(name) for name in names} - set(kinds)):
        raise ValueError(f"layer_types: {', '.join(unknown)} is not modelled here; known: {', '.join(kinds)}")
    return [kinds[name] for name in names]


def _llama(config: Config, name: str, source: str) -> ModelSpec:
    heads = config["num_attention_heads"]
    attention = GqaSpec(
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
    )
    common = _common(config, name, source)
    return ModelSpec.uniform(
        **common,
        dense_layers=common["layers"],
        dense_intermediate=config["intermediate_size"],
        attention=attention,
    )


READERS: dict[str, Callable[[Config, str, str], ModelSpec]] = {
    "DeepseekV3ForCausalLM": _deepseek_v3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "GptOssForCausalLM": _gpt_oss,
    "LlamaForCausalLM": _llama,
}


def native_precision(config: Config) -> str:
    """Precision recipe that the checkpoint of a configuration is stored in."""
    quantisation = config.get("quantization_config") or {}
    method = str(quantisation.get("quant_method", "")).lower()
    algorithm = str(quantisation.get("quant_algo", "")).lower()
    if method == "fp8":
        return "fp8-block"
    if method == "mxfp4":
        return "mxfp4"
    if "nvfp4" in algorithm or "fp4" in method:
        return "nvfp4"
    if method:
        raise UnsupportedModelError(f"quantization_config.quant_method '{method}' has no precision recipe")
    return "bf16"
