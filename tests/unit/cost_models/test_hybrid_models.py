"""Models with recurrent layers and sparse attention: parameters against their cards, states by hand, contradictions refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from cost_models.attention.block_sparse import BlockSparseSpec
from cost_models.attention.dsa import DsaSpec
from cost_models.attention.gated_delta import GatedDeltaSpec
from cost_models.attention.kda import KdaSpec
from cost_models.catalog import calibration_for, load_hardware, load_model, load_recipe
from cost_models.errors import UnsupportedModelError
from cost_models.huggingface import model_from_config
from cost_models.hyper_connections import mixed_bytes
from cost_models.machine import Machine
from cost_models.specs.model import DenseSpec, ModelSpec

CARDS = {
    "deepseek-v3.2": (671e9, 37e9),
    "deepseek-v4-flash": (284e9, 13e9),
    "glm-5": (744e9, 40e9),
    "glm-5.2": (743e9, 39e9),
    "qwen3.5-397b-a17b": (397e9, 17e9),
    "qwen3.5-122b-a10b": (122e9, 10e9),
    "kimi-k3": (2.8e12, None),
    "glm-5.3-flash": (313.3e9, 18e9),  # card: 320B with 7.43B of the MTP layer, without the vision tower's 0.56B
    "minimax-m3": (427e9, 26e9),
    "mimo-v2-flash": (309e9, 15e9),
    "gemma-4-26b-a4b": (25.2e9, 3.8e9),
    "nemotron-3-super-120b-a12b": (120e9, 12e9),
    "nemotron-3-ultra-550b-a55b": (550e9, 55e9),
}
GLM: dict[str, Any] = {
    "architectures": ["GlmMoeDsaForCausalLM"], "hidden_size": 6144, "num_hidden_layers": 4, "vocab_size": 154880,
    "max_position_embeddings": 202752, "num_attention_heads": 64, "first_k_dense_replace": 1, "intermediate_size": 12288,
    "kv_lora_rank": 512, "q_lora_rank": 2048, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256,
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "index_n_heads": 32, "index_head_dim": 128, "index_topk": 2048, "indexer_types": ["full", "shared", "shared", "full"],
}  # fmt: skip
KIMI: dict[str, Any] = {
    "architectures": ["KimiLinearForCausalLM"], "hidden_size": 2304, "num_hidden_layers": 4, "vocab_size": 163840,
    "max_position_embeddings": 1048576, "num_attention_heads": 32, "first_k_dense_replace": 1, "intermediate_size": 9216,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "moe_intermediate_size": 1024, "num_experts": 256, "num_experts_per_token": 8, "num_shared_experts": 1,
    "linear_attn_config": {
        "full_attn_layers": [4], "kda_layers": [1, 2, 3], "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4,
    },
}  # fmt: skip

QWEN: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 4, "vocab_size": 151936,
    "max_position_embeddings": 262144, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
    "intermediate_size": 5120, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "full_attention_interval": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}  # fmt: skip


def read(config: dict[str, Any], **changes: Any) -> ModelSpec:
    return model_from_config({**copy.deepcopy(config), **changes}, name="model", source="config.json")


@pytest.mark.parametrize(("name", "total", "active"), [(name, *counts) for name, counts in CARDS.items()])
def test_parameters_are_those_of_the_card(name, total, active):
    model = load_model(name)
    assert model.parameters() == pytest.approx(total, rel=0.01)
    if active:  # cards round to a billion, and some leave the head out
        assert model.active_parameters() == pytest.approx(active, rel=0.1)


def test_layers_of_glm_that_share_an_index_keep_no_index_keys():
    # 4 layers of 512 + 64 latents in BF16, 2 of them with 128 + 4 B of index key and scale
    model = read(GLM)
    assert [group.attention.computes_index for group in model.in_order()] == [True, False, False, True]
    assert model.state_bytes(1000, load_recipe("bf16")) == 1000 * (4 * 576 * 2 + 2 * 132)


GLM_NEXT: dict[str, Any] = {
    **{key: value for key, value in GLM.items() if key != "indexer_types"},
    "architectures": ["Glm5NextForConditionalGeneration"], "qk_rope_head_dim": 0, "qk_nope_head_dim": 256, "head_dim": 0,
    "index_kpool": 4, "mhc": True, "hc_mult": 4, "layer_types": ["linear_attention"] * 3 + ["deepseek_sparse_attention"],
    "linear_attn_config": {"num_heads": 64, "head_dim": 128, "short_conv_kernel_size": 4, "kda_layers": [0, 1, 2]},
}  # fmt: skip


def test_pooled_index_keys_take_a_quarter_of_the_cache():
    # one sparse layer: 512 latents without rope in BF16, and 132 B of index key and scale per 4 tokens; the delta layers' state
    # does not grow
    model = read(GLM_NEXT)
    grown = model.state_bytes(3000, load_recipe("bf16")) - model.state_bytes(1000, load_recipe("bf16"))
    assert grown == pytest.approx(2000 * (512 * 2 + 132 / 4))
    assert (model.residual_streams, model.in_order()[3].attention.index.top_k) == (4, 512)  # pools of the 2,048 tokens


def test_layers_that_a_list_of_delta_layers_contradicts_are_named():
    linear = {**GLM_NEXT["linear_attn_config"], "kda_layers": [0, 1, 3]}
    with pytest.raises(UnsupportedModelError, match="layer 3 is not linear_attention in layer_types"):
        read(GLM_NEXT, linear_attn_config=linear)


def test_block_sparse_decode_reads_sixteen_blocks_and_every_index_key():
    # one KV head of a rank at TP 4, 64 sequences of 131,072 tokens on GB200: the core reads (16 - 1/2) x 128 = 1,984 tokens of
    # 2 x 128 x 2 B each, 65 MB, the indexer 131,072 keys of 256 B for each sequence, 2.1 GB
    spec = load_model("minimax-m3").in_order()[-1].attention
    assert isinstance(spec, BlockSparseSpec)
    hardware = load_hardware("gb200-nvl72")
    model, recipe = load_model("minimax-m3"), load_recipe("bf16")
    machine = Machine(model, hardware, recipe, calibration_for("GB200", "vllm"))
    inputs = (np.array([64.0]), np.array([1.0]), np.array([4.0]), 131_072.0)
    operators = spec.decode(machine, *inputs)
    bandwidth = machine.hbm_bytes_per_s
    assert operators["block_attention"][1] == pytest.approx(64 * 1984 * 512 / bandwidth)
    assert operators["indexer"][1] == pytest.approx(64 * 131_072 * 256 / bandwidth)


def test_an_fp8_latent_of_sparse_attention_is_656_bytes():
    # FlashMLA: 512 B, four FP32 scales, 64 rope elements in BF16; and the index key of 132 B
    kind = DsaSpec(heads=128, q_lora_rank=1536, kv_lora_rank=512, qk_nope_dim=128, qk_rope_dim=64, v_dim=128,
                   index_heads=64, index_dim=128, top_k=2048)  # fmt: skip
    assert kind.state_bytes(1, 1, load_recipe("nvfp4")) == 656 + 132


def test_compressed_streams_of_deepseek_v4_by_hand():
    # a million tokens: 30 layers of 262,144 entries with index keys (584 + 132 B), 31 of 8,192 (584 B), 61 windows of 128 tokens
    # (584 B) and what compressors are collecting: 2 x 2 x 4 x (512 + 128) x 4 B and 2 x 128 x 512 x 4 B
    model = load_model("deepseek-v4-pro")
    streams = 30 * 262_144 * (584 + 132) + 31 * 8192 * 584 + 61 * 128 * 584
    collected = 30 * 2 * 2 * 4 * 640 * 4 + 31 * 2 * 128 * 512 * 4
    assert model.state_bytes(2**20, load_recipe("bf16")) == streams + collected
    # vLLM states 9.62 GiB in BF16 (1,024 B an entry, 256 B an index key): in FP8 it is a little over half
    assert 0.5 < float(model.state_bytes(2**20, load_recipe("bf16"))) / (9.62 * 2**30) < 0.6


def test_streams_that_contradict_the_layers_are_named():
    config = {
        "architectures": ["DeepseekV4ForCausalLM"], "num_hidden_layers": 3, "compress_ratios": [0, 4],
        "num_nextn_predict_layers": 1,
    }  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="compress_ratios has 2 entries; 3 layers and 1 drafts"):
        read(config)
    with pytest.raises(UnsupportedModelError, match="compress_ratios: 2 is not modelled"):
        read({**config, "compress_ratios": [0, 2, 4]})


def test_hyper_connections_read_and_write_every_stream_at_two_sites():
    # 4 streams of 7,168 in BF16: before a block 5 passes, after it 9, twice a layer
    assert mixed_bytes("pre", 10, 7168, 4) == 2 * 10 * 5 * 7168 * 2
    assert mixed_bytes("post", 10, 7168, 4) == 2 * 10 * 9 * 7168 * 2


def test_the_state_of_a_hybrid_hardly_grows():
    # Qwen3.5-397B: 45 layers x (64 x 128 x 128 x 4 B + 12,288 channels x 3 x 2 B) and 15 layers of 2 x 2 x 256 x 2 B a token
    state = 45 * (64 * 128 * 128 * 4 + 12_288 * 3 * 2)
    model = load_model("qwen3.5-397b-a17b")
    for context in (1, 1000, 100_000):
        assert model.state_bytes(context, load_recipe("bf16")) == state + 15 * context * 2048


def test_recurrent_layers_cost_the_same_at_any_context():
    delta = GatedDeltaSpec(key_heads=16, value_heads=64, key_dim=128, value_dim=128, conv=4)
    assert delta.state_bytes(10, 4, load_recipe("bf16")) == delta.state_bytes(10**6, 4, load_recipe("bf16"))
    assert delta.state_bytes(0, 1, load_recipe("bf16")) == 0


def test_a_narrow_gate_of_kda_is_two_matrices():
    wide, narrow = (KdaSpec(heads=32, head_dim=128, conv=4, full_rank_gate=full) for full in (True, False))
    size = {kind.full_rank_gate: sum(m.parameters for m in kind.matrices(2304, 1)) for kind in (wide, narrow)}
    assert size[True] - size[False] == 4096 * 2304 - (128 * 2304 + 4096 * 128)


def test_ling_has_whole_decays_and_a_gate_per_latent_head():
    # delta: queries, keys and values 3 x 64 x 64, decay and gate 64 x 64 each, beta 64 x 4, out 64 x 64; convolutions 4 x 192,
    # 4 rates, 64 biases, a norm of 16; latent: 64 x 12, queries 64 x 4 x 12, kv_b 8 x 4 x 16, gates 64 x 4, o 64 x 32, norm 8
    config = {
        "architectures": ["BailingMoeV3ForCausalLM"], "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100,
        "max_position_embeddings": 4096, "num_attention_heads": 4, "head_dim": 16, "q_lora_rank": None, "kv_lora_rank": 8,
        "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "layer_group_size": 3, "first_k_dense_replace": 1,
        "intermediate_size": 96, "num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1, "moe_intermediate_size": 32,
    }  # fmt: skip
    model = model_from_config(config, name="x", source="config.json")
    delta, latent = 6 * 4096 + 256 + 768 + 4 + 64 + 16, 768 + 3072 + 512 + 256 + 2048 + 8
    assert [group.attention.kind for group in model.in_order()] == ["kda", "kda", "mla", "mla"]  # what fills no group attends
    assert model.parameters() == 2 * (delta + latent) + 18432 + 3 * (9 * 6144 + 520) + 4 * 128 + 12800 + 64


def test_granite_has_a_network_after_every_mixer():
    # mixer: in 64 x (64 gates + 64 + 2 x 2 x 8 convolved + 4), out 64 x 64, convolution 96 x 5, 3 x 4, norm 64; attention 12288
    # experts 8 x 3 x 64 x 32, a shared one of width 48, router; two norms a layer; tied embeddings
    config = {
        "architectures": ["GraniteMoeHybridForCausalLM"], "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100,
        "max_position_embeddings": 4096, "num_attention_heads": 4, "num_key_value_heads": 2, "mamba_n_heads": 4,
        "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_d_conv": 4, "num_local_experts": 8,
        "num_experts_per_tok": 2, "intermediate_size": 32, "shared_intermediate_size": 48,
        "layer_types": ["mamba", "mamba", "attention", "mamba"],
    }  # fmt: skip
    model = read(config)
    mixer, experts = 64 * 164 + 4096 + 96 * 5 + 12 + 64, 8 * 6144 + 9216 + 512
    assert model.parameters() == 3 * mixer + 12288 + 4 * (experts + 128) + 6400 + 64
    dense = read(config, num_local_experts=0)
    assert dense.parameters() == 3 * mixer + 12288 + 4 * (9216 + 128) + 6400 + 64


def test_hy4_gates_sparse_latent_attention_and_keeps_four_streams():
    config = {**GLM, "hidden_size": 64, "vocab_size": 100, "indexer_types": ["full", "shared", "shared", "full"]}
    plain, gated = read(config), read(config, architectures=["HYV4ForCausalLM"], hc_mult=4)
    mixing = 8 * (4 * 64 * 24 + 24 + 3)  # two sites a layer
    assert gated.parameters() - plain.parameters() == 4 * 64 * 64 * 256 + mixing
    assert [group.attention.computes_index for group in gated.in_order()] == [True, False, False, True]


def test_a_language_model_under_llm_config_is_read():
    inner = {
        "architectures": ["NemotronHForCausalLM"], "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100,
        "max_position_embeddings": 4096, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "hybrid_override_pattern": "MEM*", "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 2,
        "conv_kernel": 4, "intermediate_size": 32, "moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 2,
    }  # fmt: skip
    outer = {"architectures": ["NemotronH_Nano_Omni_Reasoning_V3"], "llm_config": inner, "vision_config": {"hidden_size": 8}}
    omni = model_from_config(outer, name="x", source="config.json")
    assert omni.parameters() == model_from_config(inner, name="x", source="config.json").parameters()
    assert any("vision tower" in flag for flag in omni.flags)


def test_experts_without_a_gate_have_two_matrices_in_the_latent_width():
    # Nemotron-3-Super: 512 experts x 2 x 1,024 x 2,688; the shared expert works in the hidden size
    moe = load_model("nemotron-3-super-120b-a12b").moe
    routed = [m for m in moe.matrices(4096, 1) if m.family == "experts"]
    assert sum(m.parameters for m in routed) == 512 * 2 * 1024 * 2688 == 512 * moe.expert_parameters(4096)
    assert moe.gemm_intermediate * 3 == pytest.approx(2 * 2688)


def test_a_draft_module_of_separate_blocks_has_attention_and_experts():
    drafts = load_model("nemotron-3-super-120b-a12b").draft_layers
    assert [(group.attention is not None, group.ffn is not None) for group in drafts] == [(True, False), (False, True)]
    assert drafts[0].attention.kind == "gqa"


def test_shallow_copies_keep_the_pattern():
    model = load_model("qwen3.5-397b-a17b").scaled_to_layers(4)
    assert [group.attention.kind for group in model.in_order()] == ["gated_delta"] * 3 + ["gqa"]
    assert load_model("kimi-k3").scaled_to_layers(2).moe_positions == (1,)


def test_a_dense_network_without_a_gate_has_two_matrices():
    assert sum(m.parameters for m in DenseSpec(intermediate=100, gated=False).matrices(10, 1)) == 2 * 100 * 10


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (GLM, {"index_topk": None}, "needs the key .index_topk."),
        (GLM, {"indexer_types": ["full"] * 3}, "indexer_types has 3 entries"),
        (GLM, {"indexer_types": ["shared", "full", "full", "full"]}, "layer 0 shares an index"),
        (GLM, {"indexer_types": ["full", "full", "full", "half"]}, "need full or shared"),
        (KIMI, {"linear_attn_config": {**KIMI["linear_attn_config"], "full_attn_layers": [3, 4]}}, "layer 3 is named twice"),
        (KIMI, {"linear_attn_config": {**KIMI["linear_attn_config"], "full_attn_layers": []}}, "layer 4 is in neither"),
        (KIMI, {"linear_attn_config": {**KIMI["linear_attn_config"], "full_attn_layers": [5]}}, "layer 5 is not one of 4"),
        (QWEN, {"full_attention_interval": 2}, "full_attention_interval 2 contradicts layer_types"),
        (QWEN, {"layer_types": ["linear_attention"] * 4}, "full_attention_interval 4 contradicts layer_types"),
        (QWEN, {"layer_types": ["linear_attention"] * 3}, "layer_types has 3 entries"),
    ],
)
def test_contradictions_are_named(config, changes, said):
    with pytest.raises(UnsupportedModelError, match=said):
        read(config, **changes)


def test_layers_of_a_hybrid_come_from_the_list_or_the_interval():
    by_list = read(
        {key: value for key, value in QWEN.items() if key != "full_attention_interval"}, layer_types=QWEN["layer_types"]
    )
    by_interval = read({key: value for key, value in QWEN.items() if key != "layer_types"})
    assert by_list.attentions == by_interval.attentions == read(QWEN).attentions
    assert list(read(QWEN).attentions.values()) == [3, 1]


def test_a_missing_indexer_field_is_named():
    with pytest.raises(UnsupportedModelError, match="index_n_heads"):
        read({key: value for key, value in GLM.items() if key != "index_n_heads"})
