"""config.json and quantisation files: counted by hand, every architecture, every precision, and what is refused by name."""

from __future__ import annotations

import json

import pytest

from cost_models import catalog
from cost_models.errors import AutotuneError, UnsupportedModelError
from cost_models.huggingface import ARCHITECTURES, NOT_MODELLED, announced, model_from_config, stored_precision

CORE = {"hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100, "max_position_embeddings": 4096}
GQA = {**CORE, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
DENSE = {**GQA, "intermediate_size": 96}
EXPERTS = {**GQA, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    **CORE, "num_attention_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "intermediate_size": 96,
}  # fmt: skip
LOCAL = {**GQA, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 32}
GLM = {
    **EXPERTS, "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "intermediate_size": 96,
    "attention_bias": True,
}  # fmt: skip
ERNIE = {
    **DENSE, "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 1,
    "moe_layer_start_index": 1,
}  # fmt: skip
HUNYUAN = {**DENSE, "num_experts": 8, "moe_topk": [2] * 4, "moe_intermediate_size": [32] * 4, "num_shared_expert": [1] * 4}
BAILING = {**EXPERTS, "num_shared_experts": 1, "first_k_dense_replace": 1, "intermediate_size": 96}
STEP = {
    **EXPERTS, "share_expert_dim": 32, "first_k_dense_replace": 1, "intermediate_size": 96, "sliding_window": 512,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"],
}  # fmt: skip
LLAMA4 = {**LOCAL, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 2, "attention_chunk_size": 1024}
M3 = {
    **LOCAL, "shared_intermediate_size": 32, "n_shared_experts": 1, "dense_intermediate_size": 96, "moe_layer_freq": [0, 1, 1, 1],
    "use_qk_norm": True, "use_routing_bias": True,
    "sparse_attention_config": {
        "sparse_attention_freq": [0, 1, 1, 1], "sparse_block_size": 128, "sparse_topk_blocks": 16, "sparse_num_index_heads": 2,
        "sparse_index_dim": 8, "sparse_init_block": 0, "sparse_local_block": 1, "sparse_score_type": "max",
    },
}  # fmt: skip
MIMO = {
    **GQA, "v_head_dim": 8, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16, "swa_v_head_dim": 8,
    "sliding_window": 128, "hybrid_layer_pattern": [0, 1, 1, 0], "moe_layer_freq": [0, 1, 1, 1], "n_routed_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "intermediate_size": 96, "add_swa_attention_sink_bias": True,
}  # fmt: skip
GEMMA4 = {
    **EXPERTS, "intermediate_size": 96, "enable_moe_block": True, "sliding_window": 1024, "attention_k_eq_v": True,
    "global_head_dim": 32, "num_global_key_value_heads": 1,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
}  # fmt: skip
NAS = {
    **{key: value for key, value in GQA.items() if key != "num_key_value_heads"},
    "block_configs": [
        {"attention": {"n_heads_in_group": 2, "no_op": False}, "ffn": {"ffn_mult": 6.0, "no_op": False}},
        {"attention": {"n_heads_in_group": None, "no_op": True}, "ffn": {"ffn_mult": 1.0, "no_op": False}},
        {"attention": {"n_heads_in_group": 2, "no_op": False}, "ffn": {"ffn_mult": None, "no_op": True}},
        {"attention": {"n_heads_in_group": 2, "no_op": False}, "ffn": {"ffn_mult": 6.0, "no_op": False}},
    ],
}  # fmt: skip
LAGUNA = {
    **EXPERTS, "intermediate_size": 96, "shared_expert_intermediate_size": 32, "sliding_window": 512, "gating": "per-head",
    "num_attention_heads_per_layer": [4, 6, 6, 6], "mlp_only_layers": [0],
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"],
}  # fmt: skip
AFMOE = {**EXPERTS, "intermediate_size": 96, "num_shared_experts": 1, "num_dense_layers": 1, "sliding_window": 512}
DOTS3 = {
    **LATENT, "swa_num_attention_heads": 2, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16, "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 12, "swa_v_head_dim": 8, "sliding_window_size": 512, "index_n_heads": 4, "index_head_dim": 8,
    "index_topk": 1024,
}  # fmt: skip
EXAONE = {**EXPERTS, "intermediate_size": 96, "num_shared_experts": 1, "first_k_dense_replace": 1, "sliding_window": 512}
CONFIGS = {
    "AfmoeForCausalLM": AFMOE,
    "AXK1ForCausalLM": LATENT,
    "ArceeForCausalLM": DENSE,
    "BailingMoeV2ForCausalLM": BAILING,
    "Cohere2MoeForCausalLM": {**EXPERTS, "num_shared_experts": 1, "sliding_window": 512},
    "CwmForCausalLM": DENSE,
    "DeciLMForCausalLM": NAS,
    "DeepseekV2ForCausalLM": LATENT,
    "DeepseekV3ForCausalLM": LATENT,
    "Dots1ForCausalLM": GLM,
    "Dots3NoteForCausalLM": DOTS3,
    "Ernie4_5_MoeForCausalLM": ERNIE,
    "Ernie4_5ForCausalLM": DENSE,
    "Exaone4ForCausalLM": {**DENSE, "sliding_window": 512, "sliding_window_pattern": "LLLG"},
    "ExaoneMoEForCausalLM": EXAONE,
    "ExaoneMoeForCausalLM": EXAONE,
    "Gemma2ForCausalLM": {**DENSE, "sliding_window": 512},
    "Gemma3ForCausalLM": {**DENSE, "sliding_window": 1024},
    "Gemma3ForConditionalGeneration": {"text_config": {**DENSE, "sliding_window": 1024}},
    "Gemma4ForCausalLM": GEMMA4,
    "Gemma4ForConditionalGeneration": {"text_config": GEMMA4},
    "Gemma4UnifiedForConditionalGeneration": {"text_config": GEMMA4},
    "Glm4ForCausalLM": DENSE,
    "Glm4MoeForCausalLM": GLM,
    "Glm4MoeLiteForCausalLM": LATENT,
    "Glm4vMoeForConditionalGeneration": {"text_config": GLM},
    "GlmForCausalLM": DENSE,
    "GraniteForCausalLM": DENSE,
    "GraniteMoeForCausalLM": LOCAL,
    "GraniteMoeSharedForCausalLM": {**LOCAL, "shared_intermediate_size": 32},
    "GptOssForCausalLM": {**LOCAL, "sliding_window": 128},
    "HYV3ForCausalLM": BAILING,
    "HunYuanMoEV1ForCausalLM": HUNYUAN,
    "InternS1ForConditionalGeneration": {"text_config": EXPERTS},
    "InternVLChatModel": {"text_config": {"architectures": ["Qwen3ForCausalLM"], **DENSE}},
    "InternVLForConditionalGeneration": {"text_config": {"model_type": "qwen3", **DENSE}},
    "KimiK25ForConditionalGeneration": {"text_config": {"architectures": ["DeepseekV3ForCausalLM"], **LATENT}},
    "KimiVLForConditionalGeneration": {"text_config": LATENT},
    "Kimi_K25ForConditionalGeneration": {"text_config": LATENT},
    "LagunaForCausalLM": LAGUNA,
    "Llama4ForCausalLM": LLAMA4,
    "Llama4ForConditionalGeneration": {"text_config": LLAMA4},
    "LlamaForCausalLM": DENSE,
    "MiMoForCausalLM": DENSE,
    "LlavaForConditionalGeneration": {"text_config": DENSE},
    "LlavaOnevisionForConditionalGeneration": {"text_config": DENSE},
    "MellumForCausalLM": EXPERTS,
    "MiMoV2FlashForCausalLM": MIMO,
    "MiMoV2ForCausalLM": MIMO,
    "MiniMaxM2ForCausalLM": LOCAL,
    "MiniMaxM3ForCausalLM": M3,
    "MiniMaxM3SparseForConditionalGeneration": {"text_config": M3},
    "Ministral3ForCausalLM": DENSE,
    "Mistral3ForConditionalGeneration": {"text_config": DENSE},
    "Mistral4ForCausalLM": LATENT,
    "MuseGlimmerForCausalLM": DENSE,
    "MuseGlimmerForConditionalGeneration": {"text_config": DENSE},
    "MistralForCausalLM": {**DENSE, "sliding_window": 512},
    "MixtralForCausalLM": LOCAL,
    "Olmo2ForCausalLM": DENSE,
    "Olmo3ForCausalLM": DENSE,
    "OlmoeForCausalLM": {**EXPERTS, "intermediate_size": 32},
    "Phi3ForCausalLM": {**DENSE, "sliding_window": 4096},
    "Qwen2ForCausalLM": DENSE,
    "Qwen2MoeForCausalLM": {**EXPERTS, "shared_expert_intermediate_size": 48},
    "Qwen2VLForConditionalGeneration": DENSE,
    "Qwen2_5_VLForConditionalGeneration": DENSE,
    "Qwen3ForCausalLM": DENSE,
    "Qwen3MoeForCausalLM": EXPERTS,
    "Qwen3VLForConditionalGeneration": {"text_config": DENSE},
    "Qwen3VLMoeForConditionalGeneration": {"text_config": EXPERTS},
    "SeedOssForCausalLM": DENSE,
    "SmolLM3ForCausalLM": DENSE,
    "SolarOpenForCausalLM": {**EXPERTS, "n_routed_experts": 8, "n_shared_experts": 1},
    "Step3p5ForCausalLM": STEP,
    "Step3p7ForConditionalGeneration": {"text_config": STEP},
    "YoutuForCausalLM": LATENT,
    "Step3p7FlashForCausalLM": STEP,
}
"""Small configs with the fields of the real ones; hybrids and sparse attention have tests of their own."""


def read(architecture: str, **changes: object):
    config = {"architectures": [architecture], **CONFIGS[architecture], **changes}
    return config, model_from_config(config, name="x", source="config.json")


def stored(config, model, beside=None):
    base = {recipe.name: recipe.model_dump() for recipe in catalog.recipes().values()}
    return stored_precision(config, model, source="config.json", beside=beside, base=base)


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_every_architecture_is_read_and_its_modules_name_its_matrices(architecture):
    _, model = read(architecture)
    assert (model.layers, model.hidden, model.vocab) == (4, 64, 100)
    families = {matrix.family for matrix in model.layer_matrices()} - {"router", "router_fp32", "gates"}
    assert families <= set(ARCHITECTURES[architecture].modules)  # so that a quantisation file can leave each of them out


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_a_required_field_that_is_missing_or_null_is_named(architecture):
    config = {"architectures": [architecture], **CONFIGS[architecture]}
    inner = config.get("text_config", config)
    for broken in ({k: v for k, v in inner.items() if k != "hidden_size"}, {**inner, "hidden_size": None}):
        whole = {**config, "text_config": broken} if "text_config" in config else broken
        with pytest.raises(UnsupportedModelError, match="needs the key 'hidden_size'"):
            model_from_config({"architectures": [architecture], **whole}, name="x", source="config.json")


def test_a_dense_model_counted_by_hand():
    # per layer: qkv 64 x (4 + 2 x 2) x 16 = 8192, o 64 x 64 = 4096, ffn 3 x 64 x 96 = 18432, two norms 128; x 4
    # embedding and head 2 x 6400, last norm 64
    _, model = read("LlamaForCausalLM")
    assert model.parameters() == 4 * (8192 + 4096 + 18432 + 128) + 12800 + 64
    _, biased = read("Qwen2ForCausalLM")
    assert biased.parameters() == model.parameters() + 4 * 128  # biases of the 128 query, key and value features
    _, normed = read("Qwen3ForCausalLM")
    assert normed.parameters() == model.parameters() + 4 * 2 * 16  # a norm of queries and one of keys, over a head


def test_experts_counted_by_hand():
    # per layer: 8 experts x 3 x 64 x 32 = 49152, router 512, attention 12288 + 32, norms 128
    _, model = read("Qwen3MoeForCausalLM")
    assert model.parameters() == 4 * (49152 + 512 + 12288 + 32 + 128) + 12800 + 64
    _, shared = read("Qwen2MoeForCausalLM")
    assert shared.moe.shared_intermediate == 48


def test_block_sparse_layers_counted_by_hand():
    # dense layer: qkv 64 x (4 + 2 x 2) x 16 = 8192, o 4096, norms of heads 32, network 3 x 64 x 96 = 18432, two norms 128
    # sparse: the same attention, index queries 64 x 2 x 8 = 1024, key 64 x 8 = 512, their norms 16; 8 experts and a shared one
    # of 3 x 64 x 32 = 6144 each, router 512, correction 8, two norms 128; embedding and head 2 x 6400, last norm 64
    _, model = read("MiniMaxM3ForCausalLM")
    attention = 8192 + 4096 + 32
    sparse = attention + 1024 + 512 + 16 + 9 * 6144 + 512 + 8 + 128
    assert model.parameters() == attention + 18432 + 128 + 3 * sparse + 12800 + 64
    assert [group.attention.kind for group in model.in_order()] == ["gqa", *["block_sparse"] * 3]


def test_values_narrower_than_keys_and_other_heads_in_windows_counted_by_hand():
    # full: 64 x (4 x 16 + 2 x (16 + 8)) = 7168, o 64 x 4 x 8 = 2048; windowed: 64 x (64 + 4 x 24) = 10240, o 2048, 4 sinks
    _, model = read("MiMoV2FlashForCausalLM")
    full, near = 7168 + 2048, 10240 + 2048 + 4
    moe = 8 * 6144 + 512
    assert model.parameters() == 2 * full + 2 * near + 18432 + 3 * moe + 4 * 128 + 12800 + 64
    cache = model.state_bytes(1000, catalog.load_recipe("bf16"))
    assert cache == 2 * (1000 * 2 * 24 * 2) + 2 * (128 * 4 * 24 * 2)  # two full layers, two with 128 tokens


def test_laguna_has_other_heads_in_windows_and_a_gate_per_head_counted_by_hand():
    # full: queries 64 x 4 x 16, gates 64 x 4, keys and values 64 x 2 x 2 x 16, o 64 x 64, norms of heads 32 = 12576
    # windowed, six heads: 6144 + 384 + 4096 + 6144 + 32 = 16800; experts 8 x 6144, shared 6144, router 512, correction 8
    _, model = read("LagunaForCausalLM")
    moe = 9 * 6144 + 512 + 8
    assert model.parameters() == 12576 + 3 * 16800 + 18432 + 3 * moe + 4 * 128 + 12800 + 64
    _, whole = read("LagunaForCausalLM", gating="per-element")
    assert whole.parameters() - model.parameters() == 64 * (4 + 3 * 6) * 15  # sixteen gates for one


def test_gates_and_windows_of_trinity_counted_by_hand():
    # queries and gates 2 x 4096, keys and values 4096, o 4096, norms of heads 32; experts, shared one, router, correction
    _, model = read("AfmoeForCausalLM")
    assert model.parameters() == 4 * (16384 + 32 + 128) + 18432 + 3 * (9 * 6144 + 520) + 12800 + 64
    assert [group.attention.window_tokens for group in model.in_order()] == [512, 512, 512, None]


def test_layers_of_dots3_counted_by_hand():
    # sparse: q_a and kv_a 64 x (16 + 12), q_b 16 x 4 x 12, kv_b 8 x 4 x 16, gates 64 x 4, o 64 x 32, norms 24, and an indexer
    # of 16 x 4 x 8 + 64 x 8 + 64 x 4 + 16 = 1296
    # windowed, two heads: 64 x (16 + 20), 16 x 2 x 16, 16 x 2 x 20, 64 x 2, 64 x 16, norms 32
    _, model = read("Dots3NoteForCausalLM")
    sparse, near = 1792 + 768 + 512 + 256 + 2048 + 24 + 1296, 2304 + 512 + 640 + 128 + 1024 + 32
    assert [group.attention.kind for group in model.in_order()] == ["dsa", "dsa", "windowed_mla", "windowed_mla"]
    assert model.parameters() == 2 * sparse + 2 * near + 18432 + 3 * (9 * 6144 + 520) + 4 * 128 + 12800 + 64
    cache = model.state_bytes(2000, catalog.load_recipe("bf16"))
    assert cache == 2 * 2000 * (12 * 2 + 12) + 2 * 512 * 20 * 2  # an index key is 8 bytes and a scale


def test_a_wrapper_is_read_as_the_language_model_inside():
    inner = {"model_type": "mistral4", **LATENT, "first_k_dense_replace": 0}
    _, small = read("Mistral3ForConditionalGeneration", text_config=inner)
    assert {kind.kind for kind in small.attentions} == {"mla"}
    assert any("vision tower" in flag for flag in small.flags)
    _, intern = read("InternVLChatModel", text_config=None, llm_config={"architectures": ["Qwen2ForCausalLM"], **DENSE})
    assert intern.parameters() == read("Qwen2ForCausalLM")[1].parameters()
    with pytest.raises(UnsupportedModelError, match="its language model, riddle, is not one that is read"):
        read("InternVLForConditionalGeneration", text_config={"model_type": "riddle", **DENSE})


def test_windows_of_exaone_and_phi_are_where_their_fields_put_them():
    near = [512, 512, 512, None]
    for name in ("Exaone4ForCausalLM", "ExaoneMoeForCausalLM", "Cohere2MoeForCausalLM"):
        assert [group.attention.window_tokens for group in read(name)[1].in_order()] == near, name
    assert [g.attention.window_tokens for g in read("Exaone4ForCausalLM", sliding_window=None)[1].in_order()] == [None] * 4
    assert {g.attention.window_tokens for g in read("Phi3ForCausalLM")[1].groups} == {None}  # as long as the context
    assert {g.attention.window_tokens for g in read("Phi3ForCausalLM", sliding_window=2047)[1].groups} == {2047}


def test_windows_of_qwen_begin_at_max_window_layers():
    windowed = {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 3}
    _, model = read("Qwen2ForCausalLM", **windowed)
    assert [group.attention.window_tokens for group in model.in_order()] == [None, None, None, 512]
    _, off = read("Qwen2ForCausalLM", **{**windowed, "use_sliding_window": False})
    assert {group.attention.window_tokens for group in off.groups} == {None}


def test_a_network_without_a_gate_has_two_matrices():
    _, model = read("ArceeForCausalLM")
    assert read("LlamaForCausalLM")[1].parameters() - model.parameters() == 4 * 64 * 96


def test_experts_are_where_any_of_four_fields_puts_them():
    dense = {name: [group.ffn.kind for group in read("Qwen3MoeForCausalLM", intermediate_size=96, **changes)[1].in_order()]
             for name, changes in {"step": {"decoder_sparse_step": 2}, "listed": {"mlp_only_layers": [1, 3]},
                                   "first": {"first_k_dense_replace": 2},
                                   "types": {"mlp_layer_types": ["sparse", "dense", "sparse", "dense"]}}.items()}  # fmt: skip
    assert dense["step"] == ["dense", "moe", "dense", "moe"]
    assert dense["listed"] == dense["types"] == ["moe", "dense", "moe", "dense"]
    assert dense["first"] == ["dense", "dense", "moe", "moe"]


def test_full_layers_of_gemma_4_have_no_value_projection():
    # windowed: 64 x (64 + 2 x 32) + 4096 + 32 = 12320; full: 64 x (4 x 32 + 1 x 32) = 10240, o 64 x 128 = 8192, norms 64
    # experts 8 x 6144, router 512, dense network beside them 18432; one tied embedding 6400
    _, model = read("Gemma4ForConditionalGeneration")
    moe = 8 * 6144 + 512 + 18432
    assert model.parameters() == 3 * 12320 + 10240 + 8192 + 64 + 4 * (moe + 128) + 6400 + 64
    assert model.in_order()[3].attention.cache_elements_per_token == 64  # keys and values are both cached


def test_layers_of_an_architecture_search_lack_what_the_file_says():
    # widths: 2 x 6 x 64 / 3 = 256; 2 x 1 x 64 / 3 = 42, rounded up to 256
    _, model = read("DeciLMForCausalLM")
    parts = [(group.attention is not None, group.ffn is not None) for group in model.in_order()]
    assert parts == [(True, True), (False, True), (True, False), (True, True)]
    assert {ffn.intermediate for ffn in model.ffns} == {256}
    assert model.in_order()[0].attention.kv_heads == 2


def test_windows_are_where_the_config_says():
    windows = {name: [g.attention.window_tokens for g in read(name)[1].in_order()] for name in
               ("Step3p5ForCausalLM", "MistralForCausalLM", "GptOssForCausalLM", "Llama4ForConditionalGeneration")}  # fmt: skip
    assert windows["Step3p5ForCausalLM"] == [None, 512, 512, 512]
    assert windows["MistralForCausalLM"] == [512] * 4
    assert windows["GptOssForCausalLM"] == [128, None, 128, None]
    assert windows["Llama4ForConditionalGeneration"] == [1024, 1024, 1024, None]  # every fourth sees everything


def test_llama_4_has_experts_in_every_second_layer():
    _, model = read("Llama4ForConditionalGeneration")
    assert model.moe_positions == (1, 3)


CONFIGS_IN_A_PUBLIC_PACKAGE = {
    "DeciLMForCausalLM": 1, "DeepseekV32ForCausalLM": 2, "DeepseekV3ForCausalLM": 4, "DeepseekV41ForCausalLM": 1,
    "DeepseekV4ForCausalLM": 6, "Gemma4ForConditionalGeneration": 3, "Glm5NextForConditionalGeneration": 2,
    "GlmMoeDsaForCausalLM": 12, "GptOssForCausalLM": 2, "KimiK25ForConditionalGeneration": 4,
    "KimiK3ForConditionalGeneration": 1, "Llama4ForConditionalGeneration": 2, "LlamaForCausalLM": 4, "MiMoForCausalLM": 1,
    "MiMoV2FlashForCausalLM": 1, "MiniMaxM2ForCausalLM": 4, "MiniMaxM3ForCausalLM": 1,
    "MiniMaxM3SparseForConditionalGeneration": 1, "MixtralForCausalLM": 2, "MuseGlimmerForConditionalGeneration": 1,
    "NemotronHForCausalLM": 9, "Qwen3ForCausalLM": 6, "Qwen3MoeForCausalLM": 6,
    "Qwen3VLForConditionalGeneration": 5, "Qwen3VLMoeForConditionalGeneration": 2, "Qwen3_5ForConditionalGeneration": 2,
    "Qwen3_5MoeForCausalLM": 2, "Qwen3_5MoeForConditionalGeneration": 6, "Step3p7FlashForCausalLM": 2,
}  # fmt: skip
"""Architecture -> config.json files of it in aisimulate 0.13.0.dev202610270000000085 (Apache-2.0)."""


def test_how_many_public_configs_are_read():
    # 95 files of 29 architectures; DeepSeek-V4.1-Flash is refused by part, the other 94 read
    read_files = sum(count for name, count in CONFIGS_IN_A_PUBLIC_PACKAGE.items() if name in ARCHITECTURES)
    assert (len(CONFIGS_IN_A_PUBLIC_PACKAGE), sum(CONFIGS_IN_A_PUBLIC_PACKAGE.values()), read_files) == (29, 95, 94)
    refused = {name for name in CONFIGS_IN_A_PUBLIC_PACKAGE if name not in ARCHITECTURES}
    assert refused == {"DeepseekV41ForCausalLM"} <= set(NOT_MODELLED)


@pytest.mark.parametrize("architecture", sorted(NOT_MODELLED))
def test_what_is_not_modelled_is_refused_by_the_name_of_its_part(architecture):
    with pytest.raises(UnsupportedModelError, match="not modelled") as error:
        model_from_config({"architectures": [architecture], **DENSE}, name="x", source="config.json")
    assert NOT_MODELLED[architecture] in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("LlamaForCausalLM", {"num_hidden_layers": "4"}, "num_hidden_layers must be a number, found the text '4'"),
        ("LlamaForCausalLM", {"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 1,000"),
        ("LlamaForCausalLM", {"num_attention_heads": 0}, "num_attention_heads must be a whole number"),
        ("LlamaForCausalLM", {"hidden_size": [64]}, "hidden_size must be a whole number"),
        ("LlamaForCausalLM", {"layer_types": ["full_attention"]}, "layer_types has 1 entries, num_hidden_layers is 4"),
        ("Qwen3MoeForCausalLM", {"layer_types": ["linear_attention"] * 4}, "linear_attention is not modelled here"),
        ("Step3p5ForCausalLM", {"sliding_window": 5000}, "sliding_window 5000 does not lie within the 4096-token context"),
        ("Qwen3MoeForCausalLM", {"decoder_sparse_step": 2}, "needs the key 'intermediate_size'"),
        ("LagunaForCausalLM", {"num_attention_heads_per_layer": [4, 8]}, "an entry for each of 4 layers, found 2"),
        ("LagunaForCausalLM", {"gating": "sideways"}, "gating 'sideways' is not modelled"),
        ("LagunaForCausalLM", {"mlp_layer_types": ["sparse"] * 4}, r"mlp_only_layers \[0\] contradicts mlp_layer_types"),
        ("Dots3NoteForCausalLM", {"layer_types": ["full_attention"] * 3}, "layer_types has 3 entries"),
        ("HunYuanMoEV1ForCausalLM", {"moe_topk": [2, 2, 4, 2]}, r"moe_topk: layers that differ \(2, 4\)"),
        ("HYV3ForCausalLM", {"mlp_layer_types": ["dense", "sparse", "dense", "sparse"]}, "contradicts mlp_layer_types"),
        ("HYV3ForCausalLM", {"mlp_layer_types": ["sparse"] * 4}, "first_k_dense_replace 1 contradicts mlp_layer_types"),
        ("MiniMaxM2ForCausalLM", {"attn_type_list": [1, 0, 1, 1]}, "lightning attention"),
        ("MiniMaxM3ForCausalLM", {"moe_layer_freq": [0, 1]}, "moe_layer_freq has 2 entries, num_hidden_layers is 4"),
        (
            "MiniMaxM3ForCausalLM",
            {"sparse_attention_config": {**M3["sparse_attention_config"], "sparse_num_index_heads": 4}},
            "sparse_num_index_heads 4 is not num_key_value_heads 2",
        ),
        (
            "MiniMaxM3ForCausalLM",
            {"sparse_attention_config": {**M3["sparse_attention_config"], "sparse_score_type": "mean"}},
            "sparse_score_type other than max",
        ),
        ("MiMoV2FlashForCausalLM", {"hybrid_layer_pattern": [0, 1, 2, 0]}, "hybrid_layer_pattern: 2 is not modelled here"),
        (
            "Gemma4ForConditionalGeneration",
            {"text_config": {**GEMMA4, "hidden_size_per_layer_input": 8}},
            "hidden_size_per_layer_input: embeddings of every layer",
        ),
        ("Gemma4ForConditionalGeneration", {"text_config": {**GEMMA4, "num_kv_shared_layers": 2}}, "num_kv_shared_layers"),
        ("DeciLMForCausalLM", {"block_configs": NAS["block_configs"][:3]}, "block_configs must describe each of the 4 layers"),
        ("Step3p5ForCausalLM", {"attention_other_setting": {"num_attention_heads": 6}}, "attention_other_setting"),
    ],
)
def test_a_field_that_cannot_be_is_named(architecture, changes, message):
    with pytest.raises(UnsupportedModelError, match=message):
        read(architecture, **changes)


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
ATTENTION = ["re:.*self_attn.*"]


def group(bits: int, kind: str, size: int | None = None, inputs: bool = False, strategy: str = "group") -> dict[str, object]:
    weights = {"num_bits": bits, "type": kind, "group_size": size, "strategy": strategy}
    activations = {"num_bits": bits, "type": kind} if inputs else None
    return {"targets": ["Linear"], "weights": weights, "input_activations": activations}


def packed(ignore=(), **groups):
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": list(ignore)}


EXPERTS_NVFP4 = {f"model.layers.{i}.mlp.experts": {"quant_algo": "NVFP4"} for i in range(4)}
ATTENTION_FP8 = {f"model.layers.{i}.self_attn.{p}_proj": {"quant_algo": "FP8"} for i in range(4) for p in "qkvo"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
CACHE = {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}
PLAIN = {"attention_in": "bf16", "o_proj": "bf16"}
FP4 = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32}
FP8_TENSOR = {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}
QUARK = {
    "quant_method": "quark",
    "global_quant_config": {"weight": FP4, "input_tensors": FP4},
    "exclude": ["lm_head", *ATTENTION],
}
PRECISIONS = [
    (None, "bf16", {}),
    (FP8, "fp8-block", {}),
    ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8-tensor", {}),
    ({**FP8, "modules_to_not_convert": ["model.layers.*.self_attn"]}, "fp8-block", PLAIN),
    ({**FP8, "modules_to_not_convert": ["gate", "lm_head"]}, "fp8-block", {}),  # `gate` is the router, not gate_proj
    ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", {}),
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        "int4",
        dict.fromkeys(("attention_in", "o_proj", "experts"), "int4_g32"),
    ),
    (packed(ATTENTION, g=group(4, "int", 32)), "int4", {**PLAIN, "experts": "int4_g32"}),
    (packed(g=group(8, "float", inputs=True, strategy="channel")), "fp8-tensor", {}),
    (packed(g=group(8, "int", inputs=True, strategy="channel")), "int8", {}),
    (packed(g=group(4, "float", 16, inputs=True)), "nvfp4", {"attention_in": "nvfp4"}),
    (packed(ATTENTION, g=group(4, "float", 16)), "nvfp4-w4a16", {}),
    (packed(ATTENTION, g=group(4, "float", 32)), "mxfp4", {}),
    ({"quant_method": "mxfp4"}, "mxfp4", {}),
    (QUARK, "mxfp4-mxfp4", {}),
    (
        {**QUARK, "global_quant_config": {"weight": FP4}, "kv_cache_quant_config": {"*v_proj": {"output_tensors": FP8_TENSOR}}},
        "mxfp4",
        {"kv_cache": "fp8"},
    ),
    (
        {
            **QUARK,
            "layer_quant_config": {"*self_attn*": {"weight": FP8_TENSOR, "input_tensors": FP8_TENSOR}},
            "exclude": ["lm_head"],
        },
        "mxfp4-mxfp4",
        {"attention_in": "fp8", "o_proj": "fp8"},
    ),
    ({"quant_method": "quark", "global_quant_config": {"weight": FP8_TENSOR, "input_tensors": FP8_TENSOR}}, "fp8-tensor", {}),
    ({**MODELOPT, "quant_algo": "FP8", "exclude_modules": [], "kv_cache_quant_algo": "FP8"}, "fp8-tensor", {"kv_cache": "fp8"}),
    ({**MODELOPT, "ignore": ["*self_attn*"], **CACHE}, "nvfp4", {"o_proj": "bf16"}),
    ({**MODELOPT, "kv_cache_quant_algo": None}, "nvfp4", {"kv_cache": "bf16", "attention_compute": "bf16"}),
    (
        {**MODELOPT, "quant_algo": "MIXED_PRECISION", "quantized_layers": {**EXPERTS_NVFP4, **ATTENTION_FP8}},
        "nvfp4",
        {"attention_in": "fp8", "o_proj": "fp8"},
    ),
]


@pytest.mark.parametrize(("quantisation", "recipe", "changed"), PRECISIONS)
def test_precision_of_each_matrix_is_what_the_file_says(quantisation, recipe, changed):
    config, model = read("Qwen3MoeForCausalLM")
    found = stored({**config, **({"quantization_config": quantisation} if quantisation else {})}, model)
    assert (found.recipe, dict(found.changed)) == (recipe, changed)


@pytest.mark.parametrize(
    ("quantisation", "message"),
    [
        ({"quant_method": "gguf"}, "quant_method 'gguf' has no precision recipe"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "gptq with 8 bits"),
        ({"quant_method": "awq", "bits": 4, "group_size": 48}, "group_size 48"),
        ({"quant_method": "fp8", "weight_block_size": [32, 32]}, r"weight_block_size \[32, 32\]"),
        (
            {**QUARK, "global_quant_config": {"weight": FP4, "input_tensors": FP8_TENSOR}},
            "Quark's fp4 weights .per_group, group 32. with fp8",
        ),
        ({**QUARK, "global_quant_config": {"weight": [FP8_TENSOR, FP4]}}, "quantises twice"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo 'W4A8_AWQ'"),
        (packed(g=group(4, "int", 128, inputs=True)), "4-bit int weights .group 128. with quantised activations"),
        ({"quant_method": "compressed-tensors"}, "needs the key 'config_groups'"),
        ([1, 2], "quantization_config must be an object"),
    ],
)
def test_a_quantisation_without_a_recipe_is_named(quantisation, message):
    config, model = read("Qwen3MoeForCausalLM")
    with pytest.raises(UnsupportedModelError, match=message):
        stored({**config, "quantization_config": quantisation}, model)


def test_modelopts_file_beside_the_config_counts():
    config, model = read("DeepseekV3ForCausalLM")
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}
    assert stored(config, model, beside).recipe == "nvfp4"
    with pytest.raises(UnsupportedModelError, match=r"config\.json says fp8, hf_quant_config\.json beside it NVFP4"):
        stored({**config, "quantization_config": FP8}, model, beside)


def test_experts_that_modelopt_quantised_in_an_fp8_checkpoint_are_its_own():
    # nvidia/DeepSeek-V4-Pro-NVFP4: FP8 in blocks, experts NVFP4 by moe_quant_algo, although expert_dtype still says fp4
    config, model = read("DeepseekV3ForCausalLM")
    quantisation = {**FP8, "quant_algo": "MIXED_PRECISION", "moe_quant_algo": "NVFP4", "kv_cache_quant_algo": None}
    found = stored({**config, "expert_dtype": "fp4", "quantization_config": quantisation}, model)
    assert found.recipe == "nvfp4"
    assert {found.changed[name] for name in ("attention_in", "q_b", "o_proj", "shared_expert")} == {"fp8_block"}
    assert found.changed["kv_cache"] == "bf16"
    assert stored({**config, "expert_dtype": "fp4", "quantization_config": FP8}, model).recipe == "mxfp4-mxfp8"


def test_experts_of_an_fp8_checkpoint_may_be_mxfp4_by_any_of_three_fields():
    # Ling-3.0-flash-fp4, MiMo-V2.6: FP8 in blocks, experts MXFP4; what is left out stays BF16
    config, model = read("MiMoV2ForCausalLM")
    left = {"ignored_layers": [f"model.layers.{layer}.self_attn.o_proj" for layer in range(4)]}
    for field in ("store_dtype", "routed_experts_quant_method", "expert_dtype"):
        found = stored({**config, "quantization_config": {**FP8, **left, field: "mxfp4"}}, model)
        assert (found.recipe, found.changed.get("o_proj", "bf16")) == ("mxfp4-mxfp8", "bf16")  # as the recipe has it
        assert found.changed["attention_in"] == "fp8_block"
    with pytest.raises(UnsupportedModelError, match="experts in int3 have no precision recipe"):
        stored({**config, "quantization_config": {**FP8, "store_dtype": "int3"}}, model)


def test_names_of_other_tools_for_known_precisions():
    config, model = read("LlamaForCausalLM")
    assert stored({**config, "quantization_config": {"quant_method": "fbgemm_fp8"}}, model).recipe == "fp8-tensor"
    rounded = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "extra_config": {"self_attn.o_proj": {"bits": 16}}}
    assert stored({**config, "quantization_config": rounded}, model).changed["o_proj"] == "bf16"
    groups = {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"weights": {"type": "int", "num_bits": 4, "group_size": 128}}},
    }
    assert stored({**config, "compression_config": groups}, model).recipe == "int4"


def test_a_kv_cache_that_only_the_file_beside_the_config_names_counts():
    # nvidia/Qwen3.6-35B-A3B-NVFP4: quantization_config is silent, hf_quant_config.json says FP8
    config, model = read("Qwen3MoeForCausalLM")
    quantisation = {**MODELOPT, "quant_algo": "MIXED_PRECISION", "quantized_layers": {**EXPERTS_NVFP4, **ATTENTION_FP8}}
    beside = {"quantization": {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None}}
    assert stored({**config, "quantization_config": quantisation}, model, beside).changed["kv_cache"] == "bf16"
    assert "kv_cache" not in stored({**config, "quantization_config": quantisation}, model).changed


def test_queries_without_a_latent_are_one_matrix_and_their_own_module():
    # DeepSeek-V2-Lite, Moonlight, Kimi Linear: q_proj [heads * (nope + rope), hidden] beside kv_a [latent + rope, hidden]
    config, whole = read("DeepseekV3ForCausalLM", q_lora_rank=None)
    _, through = read("DeepseekV3ForCausalLM")
    layers, heads, hidden = config["num_hidden_layers"], 4, config["hidden_size"]
    (group, *_) = whole.groups
    shapes = {m.name: (m.n, m.k) for m in group.attention.matrices(hidden, 1)}
    assert (shapes["q"], shapes["kv_a"]) == ((heads * (8 + 4), hidden), (8 + 4, hidden))
    # q [48, h] in place of q_a [16, h], q_b [48, 16] and the norm of 16
    assert whole.parameters() - through.parameters() == layers * (48 * hidden - 16 * hidden - 48 * 16 - 16)
    bf16_queries = {**FP8, "modules_to_not_convert": [f"model.layers.{n}.self_attn.q_proj" for n in range(layers)]}
    assert stored({**config, "quantization_config": bf16_queries}, whole).changed["q_b"] == "bf16"


def test_layers_that_differ_from_the_rest_are_a_remark():
    config, model = read("Qwen3MoeForCausalLM")
    found = stored({**config, "quantization_config": {**FP8, "ignored_layers": ["model.layers.2.self_attn"]}}, model)
    assert found.changed == {}
    assert "1 of 4 layers store attention_in in bf16; all are priced in fp8_block" in found.remarks


def test_names_of_vision_models_are_matched_inside_their_language_model():
    config, model = read("KimiK25ForConditionalGeneration")
    layers = [f"language_model.model.layers.{i}.self_attn*" for i in range(4)]
    algorithm = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": layers}
    assert stored({**config, "quantization_config": algorithm}, model).changed == {"q_b": "bf16", "o_proj": "bf16"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("DeepSeek-R1-0528-AWQ", "int4"), ("GLM-4.7-NVFP4", "nvfp4"), ("Qwen3-32B-FP8", "fp8"), ("gpt-oss-120b", None),
        ("X-quantized.w4a16", "int4"), ("DeepSeek-R1_w8a8", "int8"), ("Llama-3.1-8B-Instruct-FP8-dynamic", "fp8"), ("fp8x", None),
    ],
)  # fmt: skip
def test_words_of_a_name_that_announce_a_precision(name, said):
    assert announced(name) == said


def test_a_folder_whose_name_contradicts_its_files_is_refused(tmp_path):
    folder = tmp_path / "Mine-NVFP4"
    folder.mkdir()
    config = {"architectures": ["Qwen3MoeForCausalLM"], **EXPERTS, "quantization_config": FP8}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="the name Mine-NVFP4 announces nvfp4, its quantisation says fp8-block"):
        catalog.load_model(str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "expected a Hugging Face config object"), ("{}", "'architectures' is missing"),
     ('{"architectures": ["LlamaForCausalLM"], "architectures": []}', "stands twice")],
)  # fmt: skip
def test_unreadable_configurations_get_one_message(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(AutotuneError, match=message):
        catalog.load_model(str(tmp_path))


def test_a_folder_without_a_config_is_said(tmp_path):
    with pytest.raises(AutotuneError, match=r"config\.json: no such file"):
        catalog.load_model(str(tmp_path))


def test_the_recipe_of_a_model_is_as_its_checkpoint_is_stored():
    k25, k2 = catalog.load_model("kimi-k2.5"), catalog.load_model("kimi-k2-thinking")
    for model in (k25, k2):
        recipe = catalog.recipe_of("int4", model)
        assert (recipe.experts, recipe.attention_in, recipe.shared_expert) == ("int4_g32", "bf16", "bf16")
    assert catalog.load_recipe("int4").experts == "int4_g128"


def test_nvfp4_on_hopper_is_weight_only_and_elsewhere_as_the_checkpoint_says():
    # no FP4 tensor cores: weights widened to BF16 in the kernel, attention in BF16 over the FP8 cache, tokens dispatched in BF16
    recipe = catalog.load_recipe("nvfp4")
    widened = recipe.on("hopper")
    assert {widened.experts, widened.shared_expert, widened.dense_ffn, widened.o_proj} == {"nvfp4_a16"}
    assert (widened.kv_cache, widened.attention_compute, widened.dispatch) == ("fp8", "bf16", "bf16")
    assert recipe.on("blackwell") is recipe
    assert recipe.on("cdna4").foreign_dtype("cdna4") == "nvfp4"  # engines do not widen there
