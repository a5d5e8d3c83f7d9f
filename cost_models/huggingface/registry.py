"""Architectures that are read, one entry each, and those that are refused by the part that is not modelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from pydantic import ValidationError

from cost_models.errors import UnsupportedModelError
from cost_models.huggingface import dense, experts, hybrids, latent, mixed
from cost_models.huggingface.fields import VISION, Config, flat, language_part
from cost_models.huggingface.saved import layer_changes
from cost_models.reading import kind_of
from cost_models.specs.model import ModelSpec

Reader = Callable[[Config, str, str], ModelSpec]

MODULES = {
    "attention_in": "self_attn.q_proj",
    "o_proj": "self_attn.o_proj",
    "dense_ffn": "mlp.down_proj",
    "experts": "mlp.experts.0.down_proj",
    "shared_expert": "mlp.shared_experts.down_proj",
}
"""Matrix family -> a module of it inside a layer, as most checkpoints name it."""
LATENT = {
    **MODULES,
    "attention_in": "self_attn.q_a_proj",
    "q_b": "self_attn.q_b_proj",
    "kv_b": "self_attn.kv_b_proj",
}
WHOLE_QUERIES = {"attention_in": "self_attn.kv_a_proj_with_mqa", "q_b": "self_attn.q_proj"}
"""Of latent attention whose queries have no latent."""
KIMI_LINEAR = {**LATENT, "experts": "block_sparse_moe.experts.0.w1", "shared_expert": "block_sparse_moe.shared_experts.down_proj"}
DEEPSEEK_V4 = {**LATENT, "attention_in": "attn.wq_a", "q_b": "attn.wq_b", "o_proj": "attn.wo_b"}
QWEN3_NEXT = {
    **MODULES,
    "gated_delta:attention_in": "linear_attn.in_proj_qkvz",
    "gated_delta:o_proj": "linear_attn.out_proj",
    "shared_expert": "mlp.shared_expert.down_proj",
}
QWEN3_5 = {**QWEN3_NEXT, "gated_delta:attention_in": "linear_attn.in_proj_qkv"}
NEMOTRON_H = {
    "attention_in": "mixer.q_proj",
    "mamba2:attention_in": "mixer.in_proj",
    "o_proj": "mixer.o_proj",
    "mamba2:o_proj": "mixer.out_proj",
    "dense_ffn": "mixer.down_proj",
    "experts": "mixer.experts.0.down_proj",
    "shared_expert": "mixer.shared_experts.down_proj",
}
GLM5_NEXT = {**LATENT, "kda:attention_in": "self_attn.q_proj"}
GEMMA4 = {**MODULES, "experts": "experts", "shared_expert": "mlp.down_proj"}
SPARSE_BLOCK = {**MODULES, "experts": "block_sparse_moe.experts.0.w1"}
GRANITE_HYBRID = {
    **SPARSE_BLOCK, "mamba2:attention_in": "mamba.in_proj", "mamba2:o_proj": "mamba.out_proj",
    "dense_ffn": "shared_mlp.output_linear", "shared_expert": "shared_mlp.output_linear",
}  # fmt: skip
MINIMAX_M3 = {**SPARSE_BLOCK, "shared_expert": "block_sparse_moe.shared_experts.down_proj"}
GATED_SHARED = {**MODULES, "shared_expert": "mlp.shared_expert.down_proj"}
MIMO_V2 = {**MODULES, "attention_in": "self_attn.qkv_proj"}
BAILING_V3 = {**MODULES, "attention_in": "attention.kv_a_proj_with_mqa", "q_b": "attention.q_proj", "kv_b": "attention.kv_b_proj",
              "o_proj": "attention.dense", "kda:attention_in": "attention.q_proj", "kda:o_proj": "attention.o_proj"}  # fmt: skip
LLAMA4 = {
    **MODULES,
    "dense_ffn": "feed_forward.down_proj",
    "experts": "feed_forward.experts.down_proj",
    "shared_expert": "feed_forward.shared_expert.down_proj",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one architecture of `config.json` is read."""

    read: Reader
    modules: Mapping[str, str] = field(default_factory=lambda: MODULES)
    """Matrix family -> a module of it inside a layer; `kind:family` where layers of a kind name it otherwise."""
    flags: tuple[str, ...] = ()
    """What of it is left out, said by name."""
    wraps: bool = False
    """Its language model may be of any architecture, as `architectures` or `model_type` inside say; else `read` reads it."""

    def modules_of(self, config: Config) -> Mapping[str, str]:
        """The names in a checkpoint of this config: queries without a latent of their own have other matrices."""
        whole = self.modules.get("q_b") == LATENT["q_b"] and not flat(config).get("q_lora_rank")
        return {**self.modules, **WHOLE_QUERIES} if whole else self.modules


ARCHITECTURES: dict[str, Architecture] = {
    "AfmoeForCausalLM": Architecture(experts.afmoe),
    "AXK1ForCausalLM": Architecture(latent.axk1, LATENT),
    "ArceeForCausalLM": Architecture(dense.arcee),
    "BailingHybridForCausalLM": Architecture(hybrids.bailing_v3, BAILING_V3),
    "BailingMoeV2ForCausalLM": Architecture(experts.bailing_moe),
    "BailingMoeV3ForCausalLM": Architecture(hybrids.bailing_v3, BAILING_V3),
    "Cohere2MoeForCausalLM": Architecture(experts.cohere2_moe),
    "CwmForCausalLM": Architecture(dense.llama),
    "DeciLMForCausalLM": Architecture(mixed.nemotron_nas),
    "DeepseekV2ForCausalLM": Architecture(latent.deepseek_v2, LATENT),
    "DeepseekV4ForCausalLM": Architecture(latent.deepseek_v4, DEEPSEEK_V4),
    "DeepseekV32ForCausalLM": Architecture(latent.deepseek_v32, LATENT),
    "DeepseekV3ForCausalLM": Architecture(latent.deepseek_v3, LATENT),
    "Dots1ForCausalLM": Architecture(experts.dots1),
    "Dots3NoteForCausalLM": Architecture(latent.dots3_note, LATENT, (VISION,)),
    "Dots3NoteForConditionalGeneration": Architecture(latent.dots3_note, LATENT, (VISION,)),
    "Ernie4_5_MoeForCausalLM": Architecture(experts.ernie45_moe),
    "Ernie4_5ForCausalLM": Architecture(dense.ernie45),
    "Exaone4ForCausalLM": Architecture(dense.exaone4),
    "ExaoneMoEForCausalLM": Architecture(experts.exaone_moe),
    "ExaoneMoeForCausalLM": Architecture(experts.exaone_moe),
    "Gemma2ForCausalLM": Architecture(dense.gemma2),
    "Gemma3ForCausalLM": Architecture(dense.gemma3),
    "Gemma3ForConditionalGeneration": Architecture(dense.gemma3, flags=(VISION,)),
    "Gemma4ForCausalLM": Architecture(mixed.gemma4, GEMMA4),
    "Gemma4ForConditionalGeneration": Architecture(mixed.gemma4, GEMMA4, (VISION,)),
    "Gemma4UnifiedForConditionalGeneration": Architecture(mixed.gemma4, GEMMA4, (VISION,)),
    "Glm4MoeForCausalLM": Architecture(experts.glm4_moe),
    "Glm4MoeLiteForCausalLM": Architecture(latent.deepseek_v3, LATENT),
    "Glm4vMoeForConditionalGeneration": Architecture(experts.glm4_moe, flags=(VISION,)),
    "Glm4ForCausalLM": Architecture(dense.llama),
    "Glm5NextForConditionalGeneration": Architecture(hybrids.glm5_next, GLM5_NEXT, (VISION,)),
    "GlmMoeDsaForCausalLM": Architecture(latent.deepseek_v32, LATENT),
    "GlmForCausalLM": Architecture(dense.llama),
    "GraniteForCausalLM": Architecture(dense.granite),
    "GraniteMoeForCausalLM": Architecture(experts.granite_moe, SPARSE_BLOCK),
    "GraniteMoeHybridForCausalLM": Architecture(hybrids.granite_hybrid, GRANITE_HYBRID),
    "GraniteMoeSharedForCausalLM": Architecture(experts.granite_moe, {**SPARSE_BLOCK, "shared_expert": "shared_mlp"}),
    "GptOssForCausalLM": Architecture(experts.gpt_oss, {**MODULES, "experts": "mlp.experts.down_proj"}),
    "HYV4ForCausalLM": Architecture(latent.hy_v4, LATENT),
    "HYV4VLForConditionalGeneration": Architecture(latent.hy_v4, LATENT, (VISION,)),
    "HYV3ForCausalLM": Architecture(experts.hy_v3, {**MODULES, "shared_expert": "mlp.shared_experts.down_proj"}),
    "HunYuanMoEV1ForCausalLM": Architecture(experts.hunyuan_moe, {**MODULES, "shared_expert": "mlp.shared_mlp.down_proj"}),
    "InternS1ForConditionalGeneration": Architecture(experts.qwen3_moe, flags=(VISION,), wraps=True),
    "InternVLChatModel": Architecture(dense.qwen2, flags=(VISION,), wraps=True),
    "InternVLForConditionalGeneration": Architecture(dense.qwen2, flags=(VISION,), wraps=True),
    "KimiK25ForConditionalGeneration": Architecture(latent.deepseek_v3, LATENT, (VISION,)),
    "KimiK3ForConditionalGeneration": Architecture(hybrids.kimi_linear, KIMI_LINEAR, (VISION,)),
    "KimiVLForConditionalGeneration": Architecture(latent.deepseek_v3, LATENT, (VISION,), wraps=True),
    "Kimi_K25ForConditionalGeneration": Architecture(latent.deepseek_v3, LATENT, (VISION,)),
    "KimiLinearForCausalLM": Architecture(hybrids.kimi_linear, KIMI_LINEAR),
    "LagunaForCausalLM": Architecture(experts.laguna, GATED_SHARED),
    "Llama4ForCausalLM": Architecture(experts.llama4, LLAMA4),
    "Llama4ForConditionalGeneration": Architecture(experts.llama4, LLAMA4, (VISION,)),
    "LlamaForCausalLM": Architecture(dense.llama),
    "MiMoForCausalLM": Architecture(dense.mimo),
    "LlavaForConditionalGeneration": Architecture(dense.llama, flags=(VISION,), wraps=True),
    "LlavaOnevisionForConditionalGeneration": Architecture(dense.qwen2, flags=(VISION,), wraps=True),
    "MellumForCausalLM": Architecture(experts.mellum),
    "MiMoV2FlashForCausalLM": Architecture(mixed.mimo_v2),
    "MiMoV2ForCausalLM": Architecture(mixed.mimo_v2, MIMO_V2),
    "MiniMaxM2ForCausalLM": Architecture(experts.minimax_m2, SPARSE_BLOCK),
    "MiniMaxM3ForCausalLM": Architecture(mixed.minimax_m3, MINIMAX_M3),
    "MiniMaxM3SparseForCausalLM": Architecture(mixed.minimax_m3, MINIMAX_M3),
    "MiniMaxM3SparseForConditionalGeneration": Architecture(mixed.minimax_m3, MINIMAX_M3, (VISION,)),
    "Ministral3ForCausalLM": Architecture(dense.mistral),
    "Mistral3ForConditionalGeneration": Architecture(dense.mistral, flags=(VISION,), wraps=True),
    "Mistral4ForCausalLM": Architecture(latent.deepseek_v2, LATENT),
    "MistralForCausalLM": Architecture(dense.mistral),
    "MixtralForCausalLM": Architecture(experts.mixtral, SPARSE_BLOCK),
    "MuseGlimmerForCausalLM": Architecture(dense.muse_glimmer),
    "MuseGlimmerForConditionalGeneration": Architecture(dense.muse_glimmer, flags=(VISION,)),
    "NemotronHForCausalLM": Architecture(hybrids.nemotron_h, NEMOTRON_H),
    "NemotronH_Nano_Omni_Reasoning_V3": Architecture(hybrids.nemotron_h, NEMOTRON_H, (VISION,)),
    "NemotronH_Omni_Reasoning_V3": Architecture(hybrids.nemotron_h, NEMOTRON_H, (VISION,)),
    "NemotronH_Super_Omni_Reasoning_V3": Architecture(hybrids.nemotron_h, NEMOTRON_H, (VISION,)),
    "Qwen2_5_VLForConditionalGeneration": Architecture(dense.qwen2, flags=(VISION,)),
    "Qwen2ForCausalLM": Architecture(dense.qwen2),
    "Qwen2VLForConditionalGeneration": Architecture(dense.qwen2, flags=(VISION,)),
    "OlmoHybridForCausalLM": Architecture(hybrids.olmo_hybrid, QWEN3_5),
    "Olmo2ForCausalLM": Architecture(dense.olmo),
    "Olmo3ForCausalLM": Architecture(dense.olmo),
    "OlmoeForCausalLM": Architecture(experts.olmoe),
    "Phi3ForCausalLM": Architecture(dense.phi3, {**MODULES, "attention_in": "self_attn.qkv_proj"}),
    "Qwen2MoeForCausalLM": Architecture(experts.qwen2_moe, GATED_SHARED),
    "Qwen3ForCausalLM": Architecture(dense.qwen3),
    "Qwen3MoeForCausalLM": Architecture(experts.qwen3_moe),
    "Qwen3NextForCausalLM": Architecture(hybrids.qwen3_next, QWEN3_NEXT),
    "Qwen3_5ForCausalLM": Architecture(hybrids.qwen3_next, QWEN3_5),
    "Qwen3_5ForConditionalGeneration": Architecture(hybrids.qwen3_next, QWEN3_5, (VISION,)),
    "Qwen3_5MoeForCausalLM": Architecture(hybrids.qwen3_next, QWEN3_5),
    "Qwen3_5MoeForConditionalGeneration": Architecture(hybrids.qwen3_next, QWEN3_5, (VISION,)),
    "Qwen3VLForConditionalGeneration": Architecture(dense.qwen3, flags=(VISION,)),
    "Qwen3VLMoeForConditionalGeneration": Architecture(experts.qwen3_moe, flags=(VISION,)),
    "SeedOssForCausalLM": Architecture(dense.llama),
    "Step3p5ForCausalLM": Architecture(experts.step3p5),
    "SmolLM3ForCausalLM": Architecture(dense.smollm3),
    "SolarOpenForCausalLM": Architecture(experts.solar_open),
    "Step3p7ForConditionalGeneration": Architecture(experts.step3p5, flags=(VISION,)),
    "YoutuForCausalLM": Architecture(latent.youtu, LATENT),
    "Step3p7FlashForCausalLM": Architecture(experts.step3p5, flags=(VISION,)),
}

NOT_MODELLED: dict[str, str] = {
    "BailingMoeLinearV2ForCausalLM": "linear attention",
    "BailingMoeV2_5ForCausalLM": "linear (lightning) attention",
    "BambaForCausalLM": "state-space layers (Mamba) beside attention heads",
    "DiffusionGemmaForBlockDiffusion": "decoding by diffusion over blocks",
    "DeepseekV41ForCausalLM": "compressed attention shared between layers, n-gram tables and hyper-connections",
    "Ernie4_5_VLMoeForConditionalGeneration": "separate experts for text and images",
    "FalconH1ForCausalLM": "state-space and attention heads side by side in a layer",
    "Gemma3nForCausalLM": "embeddings of every layer and keys and values shared between layers",
    "Gemma3nForConditionalGeneration": "embeddings of every layer and keys and values shared between layers",
    "Inkling2ForCausalLM": "convolutions beside attention and learned relative positions",
    "Inkling2ForConditionalGeneration": "convolutions beside attention and learned relative positions",
    "InklingForCausalLM": "convolutions beside attention and learned relative positions",
    "InklingForConditionalGeneration": "convolutions beside attention and learned relative positions",
    "JambaForCausalLM": "state-space layers (Mamba)",
    "Lfm2ForCausalLM": "convolution layers",
    "Lfm2MoeForCausalLM": "convolution layers",
    "Lfm3ForCausalLM": "convolution layers",
    "LongcatFlashForCausalLM": "zero-computation experts and two attention blocks per layer",
    "MiniMaxM1ForCausalLM": "linear (lightning) attention",
    "MiniMaxForCausalLM": "linear (lightning) attention",
    "MiniMaxText01ForCausalLM": "linear (lightning) attention",
    "MistralLarge4ForConditionalGeneration": "keys and values shared between layers",
    "MuseSparkForConditionalGeneration": "experts in a width of their own (moe_hidden_size) and gated residuals",
    "Qwen4ExpForCausalLM": "n-gram embeddings inside layers, indexed blocks and low-rank hyper-connections",
    "Qwen4ExpForConditionalGeneration": "n-gram embeddings inside layers, indexed blocks and low-rank hyper-connections",
    "RWKVForCausalLM": "RWKV layers",
    "ZayaForCausalLM": "compressed convolutional attention",
}
"""Architecture -> the part of it that the cost models do not describe."""


def architecture_of(config: Config, source: str) -> str:
    """Name of a config's architecture; raises UnsupportedModelError for none, and for one that is not modelled."""
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UnsupportedModelError(f"{source}: 'architectures' must be a list of names")
    if not names:
        raise UnsupportedModelError(f"{source}: 'architectures' is missing: it names the model's kind")
    name = str(names[0])
    if name in NOT_MODELLED:
        raise UnsupportedModelError(f"{source}: {name}: not modelled: {NOT_MODELLED[name]}")
    if name not in ARCHITECTURES:
        near = ", ".join(get_close_matches(name, ARCHITECTURES, 3)) or "none"
        raise UnsupportedModelError(
            f"{source}: architecture {name} is not supported: it is none of the {len(ARCHITECTURES)} that are read "
            f"(nearest in name: {near})"
        )
    return name


NO_NUMBERS = (
    "architectures", "model_type", "layer_types", "layers_block_type", "hybrid_override_pattern", "rope_scaling",
    "rope_parameters", "quantization_config", "text_config", "vision_config", "torch_dtype", "dtype", "hidden_act", "_title",
    "_name_or_path", "auto_map", "transformers_version", "scoring_func", "topk_method", "eos_token_id",
)  # fmt: skip
"""Fields that are lists, objects or text in sound files."""


def _of_another_type(fields: Config) -> str:
    """Which fields are none of the numbers that readers compute with, where they met something else."""
    other = [
        f"{name} ({kind_of(value)})"
        for name, value in fields.items()
        if isinstance(value, list | dict | str) and name not in NO_NUMBERS
    ]
    return f"a number is needed where the file has another type of value; it may be one of {', '.join(other[:8]) or 'its lists'}"


INNER = {
    "deepseek_v3": "DeepseekV3ForCausalLM", "gpt_oss": "GptOssForCausalLM", "llama": "LlamaForCausalLM",
    "ministral3": "Ministral3ForCausalLM", "mistral": "MistralForCausalLM", "mistral4": "Mistral4ForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM", "qwen3_5_text": "Qwen3_5ForCausalLM",
}  # fmt: skip
"""Type of a language model inside another one -> its architecture."""


def entry_of(config: Config, source: str) -> tuple[str, Architecture]:
    """A config's architecture, and how it is read: as its language model's own, where it may have any.

    Raises UnsupportedModelError like `architecture_of`, and for a language model inside that is not read.
    """
    name = architecture_of(config, source)
    entry, inside = ARCHITECTURES[name], language_part(config)
    if not entry.wraps or not isinstance(inside, Mapping) or not (inside.get("architectures") or inside.get("model_type")):
        return name, entry
    kind = inside.get("model_type")
    inner = architecture_of(inside, source) if inside.get("architectures") else INNER.get(str(kind))
    if inner is None:
        raise UnsupportedModelError(f"{source}: {name}: its language model, {kind}, is not one that is read inside another")
    found = ARCHITECTURES[inner]
    return name, replace(found, flags=(*found.flags, *entry.flags))


INDEXED = (latent.deepseek_v32, latent.hy_v4, latent.deepseek_v4, latent.dots3_note, hybrids.glm5_next)
STREAMED = (latent.deepseek_v4, latent.hy_v4, hybrids.glm5_next)
PARTS: dict[str, tuple[str, tuple[Reader, ...]]] = {
    "index_topk": ("sparse attention (DSA)", INDEXED),
    "indexer_n_heads": ("attention to indexed blocks", ()),
    "hc_mult": ("hyper-connections between residual streams", STREAMED),
    "hc_count": ("hyper-connections between residual streams", ()),
    "kv_source_layer_ids": ("keys and values shared between layers", ()),
    "num_kv_shared_layers": ("keys and values shared between layers", (mixed.gemma4,)),
    "engram_layer_ids": ("n-gram tables", ()),
    "ple_layer_ids": ("n-gram tables", ()),
}
"""Field -> the part of a model that it switches on, and the readers that know it (or refuse it themselves)."""


def _check_parts(fields: Config, reader: Reader) -> None:
    """Raises ValueError for a part that a file switches on and its architecture's reader would pass over."""
    for key, (part, known) in PARTS.items():
        if fields.get(key) and fields[key] != 1 and reader not in known:
            raise ValueError(f"{key} is set: {part} is not modelled for this architecture")


READ_BY_LAYER = (latent.dots3_note, mixed.gemma4, mixed.mimo_v2)
"""Readers that take sizes of single layers."""


def model_from_config(config: Config, *, name: str, source: str) -> ModelSpec:
    """Read a Hugging Face configuration.

    Raises UnsupportedModelError for an architecture or feature that is not modelled, naming it,
    and for a key that the architecture needs and the file lacks.
    """
    architecture, entry = entry_of(config, source)
    fields: Config = config
    try:
        fields = flat(config)
        _check_parts(fields, entry.read)
        if layer_changes(fields) and entry.read not in READ_BY_LAYER:
            raise ValueError("per_layer_config: layers with sizes of their own are not modelled for this architecture")
        model = entry.read(fields, name, source)
    except KeyError as missing:
        raise UnsupportedModelError(f"{source}: {architecture} needs the key {missing}, which is absent") from missing
    except TypeError as error:
        raise UnsupportedModelError(f"{source}: {architecture}: {_of_another_type(fields)}") from error
    except (ValidationError, ValueError, ArithmeticError) as error:
        detail = error.errors()[0] if isinstance(error, ValidationError) else error
        text = f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" if isinstance(detail, dict) else str(detail)
        raise UnsupportedModelError(f"{source}: {architecture}: {text}") from error
    return model.model_copy(update={"architecture": architecture, "flags": (*model.flags, *entry.flags)})
