"""config.json as transformers 5 writes it again: the same models as by the published files."""

from __future__ import annotations

import pytest

from cost_models.errors import UnsupportedModelError
from cost_models.huggingface import model_from_config

CORE = {"hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100, "max_position_embeddings": 4096, "num_attention_heads": 4}
GQA = {**CORE, "num_key_value_heads": 2, "head_dim": 16}
EXPERTS = {**GQA, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "intermediate_size": 96}
LATENT = {**CORE, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
HYBRID = {
    **LATENT, "q_lora_rank": None, "num_experts": 8, "num_experts_per_token": 2, "num_shared_experts": 1,
    "moe_intermediate_size": 32, "intermediate_size": 96,
}  # fmt: skip
DELTA = {"num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4}
SAVED_DELTA = {"linear_num_heads": 4, "linear_head_dim": 16, "linear_conv_kernel_dim": 4}
STREAMS = {
    **CORE, "head_dim": 16, "qk_rope_head_dim": 4, "q_lora_rank": 16, "o_lora_rank": 8, "o_groups": 2, "sliding_window": 128,
    "index_n_heads": 4, "index_head_dim": 8, "index_topk": 64, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32,
}  # fmt: skip
GEMMA = {
    **EXPERTS,
    "enable_moe_block": True,
    "sliding_window": 1024,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
}
BLOCKS = {
    **GQA, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 32, "shared_intermediate_size": 32,
    "dense_intermediate_size": 96,
}  # fmt: skip
CHOSEN = {"sparse_block_size": 128, "sparse_topk_blocks": 16, "sparse_num_index_heads": 2, "sparse_index_dim": 8}
MIXED = ["linear_attention"] * 3 + ["full_attention"]
FIRST_DENSE = ["dense"] + ["sparse"] * 3
MIMO = {
    **GQA, "v_head_dim": 8, "sliding_window": 128, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "intermediate_size": 96,
}  # fmt: skip

LING = {
    **LATENT, "q_lora_rank": None, "num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1,
    "moe_intermediate_size": 32, "intermediate_size": 96,
}  # fmt: skip
PAIRS = {
    "BailingMoeV3ForCausalLM": (
        {**LING, "head_dim": 16, "layer_group_size": 4, "first_k_dense_replace": 1},
        {**LING, **SAVED_DELTA, "head_dim": 4, "layer_group_size": 4, "layer_types": MIXED, "mlp_layer_types": FIRST_DENSE},
    ),
    "Qwen3MoeForCausalLM": (EXPERTS, {**{k: v for k, v in EXPERTS.items() if k != "num_experts"}, "num_local_experts": 8}),
    "KimiLinearForCausalLM": (
        {**HYBRID, "first_k_dense_replace": 1, "linear_attn_config": {**DELTA, "kda_layers": [1, 2, 3], "full_attn_layers": [4]}},
        {**HYBRID, **SAVED_DELTA, "layer_types": MIXED, "mlp_layer_types": FIRST_DENSE},
    ),
    "DeepseekV4ForCausalLM": (
        {**STREAMS, "compress_ratios": [128, 0, 4, 128], "num_hash_layers": 1},
        {
            **STREAMS, "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
            "layer_types": ["heavily_compressed_attention", "sliding_attention", "compressed_sparse_attention",
                            "heavily_compressed_attention"],
            "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
        },
    ),
    "Gemma4ForConditionalGeneration": (
        {"text_config": {**GEMMA, "global_head_dim": 32}},
        {"text_config": {**GEMMA, "per_layer_config": {"03": {"head_dim": 32}}}},
    ),
    "MiniMaxM3SparseForConditionalGeneration": (
        {
            "text_config": {
                **BLOCKS, "n_shared_experts": 1, "use_qk_norm": True, "use_routing_bias": True, "moe_layer_freq": [0, 1, 1, 1],
                "sparse_attention_config": {**CHOSEN, "sparse_attention_freq": [0, 1, 1, 1]},
            }
        },
        {
            "text_config": {
                **BLOCKS, "mlp_layer_types": FIRST_DENSE, "layer_types": ["full_attention"] + ["minimax_m3_sparse"] * 3,
                "index_n_heads": 2, "index_head_dim": 8, "index_block_size": 128, "index_topk_blocks": 16,
            }
        },
    ),
    "MiMoV2FlashForCausalLM": (
        {**MIMO, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16, "swa_v_head_dim": 8,
         "hybrid_layer_pattern": [0, 1, 1, 0], "moe_layer_freq": [0, 1, 1, 1]},
        {**MIMO, "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
         "mlp_layer_types": FIRST_DENSE, "per_layer_config": {"1": {"num_key_value_heads": 4}, "2": {"num_key_value_heads": 4}}},
    ),
}  # fmt: skip
"""Architecture -> small configs in both forms."""


def read(architecture: str, config: dict):
    return model_from_config({"architectures": [architecture], **config}, name="x", source="config.json")


@pytest.mark.parametrize("architecture", sorted(PAIRS))
def test_a_config_that_was_saved_again_is_the_same_model(architecture):
    published, saved = (read(architecture, config) for config in PAIRS[architecture])
    assert saved.groups == published.groups
    assert saved.parameters() == published.parameters()


def test_layers_of_their_own_sizes_are_never_read_over():
    with pytest.raises(UnsupportedModelError, match="per_layer_config: layers with sizes of their own"):
        read("Qwen3MoeForCausalLM", {**EXPERTS, "per_layer_config": {"2": {"head_dim": 32}}})
    with pytest.raises(UnsupportedModelError, match="per_layer_config must be an object of objects"):
        read("Qwen3MoeForCausalLM", {**EXPERTS, "per_layer_config": {"two": 3}})
    with pytest.raises(UnsupportedModelError, match="layers that differ in more than the heads"):
        read("Gemma4ForConditionalGeneration", {"text_config": {**GEMMA, "per_layer_config": {"3": {"intermediate_size": 9}}}})
    with pytest.raises(UnsupportedModelError, match="heavy has no entry in compress_rates"):
        read("DeepseekV4ForCausalLM", {**STREAMS, "compress_rates": {}, "layer_types": ["heavy"] * 4})


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("index_topk", 2048, "sparse attention"),
        ("hc_mult", 4, "hyper-connections"),
        ("kv_source_layer_ids", [0, 2], "keys and values shared between layers"),
        ("ple_layer_ids", [1], "n-gram tables"),
    ],
)
def test_a_part_that_a_file_switches_on_is_never_passed_over(field, value, part):
    with pytest.raises(UnsupportedModelError, match=f"{field} is set: {part}"):
        read("Qwen3MoeForCausalLM", {**EXPERTS, field: value})
    assert read("Qwen3MoeForCausalLM", {**EXPERTS, field: None}).layers == 4


def test_parts_of_another_type_are_named():
    with pytest.raises(UnsupportedModelError, match="sparse_attention_config must be an object, found 5"):
        read("MiniMaxM3ForCausalLM", {**BLOCKS, "sparse_attention_config": 5})
    with pytest.raises(UnsupportedModelError, match="linear_attn_config must be an object"):
        read("KimiLinearForCausalLM", {**HYBRID, "first_k_dense_replace": 1, "linear_attn_config": "kda"})
    with pytest.raises(UnsupportedModelError, match="another type of value"):
        read("Qwen3MoeForCausalLM", {**EXPERTS, "mlp_layer_types": [{}, {}]})


def test_the_outer_config_says_whether_embeddings_are_tied():
    inner = {**EXPERTS, "tie_word_embeddings": True}
    tied, untied = (
        read("Qwen3VLMoeForConditionalGeneration", {"text_config": inner, **outer})
        for outer in ({}, {"tie_word_embeddings": False})
    )
    assert untied.parameters() - tied.parameters() == 6400  # a head of 100 x 64
