"""Prefill: attention by hand, prompts in steps, and what the step must do when its inputs move."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.all_to_all.routing import expected_domains
from cost_models.attention.prompt import (
    PrefillAttentionCoefficients,
    fit_prefill_attention,
    key_tiles,
    prefill_attention_bound_s,
    prefill_attention_time_s,
)
from cost_models.catalog import calibration_for, load_hardware, load_model, load_recipe
from cost_models.dispatch import BACKENDS
from cost_models.machine import Machine
from cost_models.moe_layer import kernel_variants
from cost_models.operators import tp_all_reduce
from cost_models.overlap import OVERLAPS
from cost_models.prefill import prefill_step, prompt_batch
from cost_models.rows import Rows
from cost_models.specs.workload import Workload

IDEAL = PrefillAttentionCoefficients(0, 1, 0, 0, 50, query_tile=128)
H200 = {"peak_flops_per_s": 989e12, "hbm_bytes_per_s": 4.8e12}
MLA = {"qk_dim": 192, "v_dim": 128, **H200}


def machine(hardware: str = "hgx-h200", engine: str = "sglang", recipe: str = "fp8-block", model: str = "deepseek-v3") -> Machine:
    spec = load_hardware(hardware)
    return Machine(load_model(model), spec, load_recipe(recipe), calibration_for(spec.gpu.name, engine))


def rows(**columns) -> Rows:
    defaults = {"dp": 8, "ep": 8, "backend": BACKENDS.index("deepep_normal"), "batched_tokens": 8192, "graph_tokens": 0}
    return Rows.of(**{**defaults, **columns})


PROMPTS = Workload(isl_tokens=4096, osl_tokens=1)


def test_ideal_attention_runs_its_causal_tiles_at_peak():
    # 8,192 tokens: 64 query blocks touch 1 + 2 + ... + 64 = 2,080 key tiles of 128 x 128;
    # 128 heads x 2,080 x 2 x 128 x 128 x 320 / 989e12 = 2.823 ms
    time = prefill_attention_time_s(1, 8192, 0, 128, processors=132, coefficients=IDEAL, **MLA)
    assert key_tiles(8192, 0, 128) == 2080
    assert time == pytest.approx(2.823e-3, rel=1e-3)


def test_a_cached_prefix_is_attended_to_by_every_block():
    # 2 blocks of 128 x (1 + 2) causal tiles and 4 prefix tiles each
    assert key_tiles(256, 512, 128) == 3 + 2 * 4


@given(b=st.integers(1, 64), s=st.integers(1, 20_000), x=st.integers(0, 20_000), h=st.sampled_from([1, 8, 16, 128]))
def test_attention_never_beats_its_roofline(b, s, x, h):
    ideal = PrefillAttentionCoefficients(0, 1, 0, 1, 50, query_tile=128)
    time = prefill_attention_time_s(b, s, x, h, processors=132, coefficients=ideal, **MLA)
    assert time >= prefill_attention_bound_s(b, s, x, h, **MLA) * (1 - 1e-9)


def test_prefill_attention_round_trip():
    true = PrefillAttentionCoefficients(1.3e-5, 0.65, 9e-7, 1.3, 1.5, query_tile=128)
    grid = np.meshgrid([1, 4, 16, 64], [16, 64, 256, 1024, 4096, 16384], [1, 8, 32, 128])
    b, s, h = (g.ravel() for g in grid)
    clean = prefill_attention_time_s(b, s, 0, h, processors=132, coefficients=true, **MLA)
    noisy = clean * np.exp(0.03 * np.random.default_rng(0).standard_normal(len(clean)))
    fit = fit_prefill_attention(b, s, 0, h, noisy, processors=132, query_tile=128.0, **MLA)
    assert fit.median_error < 0.04
    assert fit.values["compute_efficiency"] == pytest.approx(0.65, rel=0.05)
    assert fit.values["query_tile"] == 128


def test_whole_prompts_are_packed_and_long_ones_cut_into_equal_chunks():
    whole = prompt_batch(rows(batched_tokens=16384), PROMPTS)
    assert (whole.sequences[0], whole.new_tokens[0], whole.prefix_tokens[0], whole.steps[0]) == (4, 4096, 0, 1)
    # 4,096 in chunks of at most 1,500: three of 1,365, the mean one after a third of the prompt
    cut = prompt_batch(rows(batched_tokens=1500), PROMPTS)
    assert (cut.sequences[0], cut.steps[0]) == (1, 3)
    assert cut.new_tokens[0] == pytest.approx(4096 / 3)
    assert cut.prefix_tokens[0] == pytest.approx((4096 - 4096 / 3) / 2)


def test_cache_hits_are_attended_to_but_not_computed():
    hit = Workload(isl_tokens=4096, osl_tokens=1, prefix_cache_hit_rate=0.75)
    batch = prompt_batch(rows(batched_tokens=4096), hit)
    assert (batch.sequences[0], batch.new_tokens[0], batch.prefix_tokens[0]) == (4, 1024, 3072)
    # four prompts instead of one finish in a step that attends to four times the tokens: longer, but far below four times
    cold, warm = (prefill_step(machine(), rows(batched_tokens=4096), w) for w in (PROMPTS, hit))
    assert cold.step_s[0] < warm.step_s[0] < 2 * cold.step_s[0]


def test_larger_steps_are_more_efficient_until_they_saturate():
    rate = prefill_step(machine(), rows(batched_tokens=np.array([512, 2048, 8192, 32768])), PROMPTS).tokens_per_s_per_gpu
    assert np.all(np.diff(rate[:3]) > 0)
    assert rate[3] < 1.5 * rate[2]


def test_operators_add_up_to_the_step_and_none_beats_its_roofline():
    cost = prefill_step(machine(), rows(overlap=OVERLAPS.index("two_batch")), PROMPTS)
    assert sum(float(t.time_s[0]) for t in cost.operators.values()) == pytest.approx(float(cost.step_s[0]))
    assert sum(float(v[0]) for v in cost.layer_kinds.values()) == pytest.approx(float(cost.step_s[0]))
    for name, timing in cost.operators.items():
        if name not in ("overlap", "shared_stream"):
            assert timing.time_s[0] >= timing.bound_s[0] * (1 - 1e-9), name


def test_two_pipeline_stages_give_the_same_rate_per_gpu_but_for_hops():
    one, two = (prefill_step(machine(), rows(pp=pp), PROMPTS) for pp in (1, 2))
    assert two.tokens_per_s_per_gpu[0] == pytest.approx(one.tokens_per_s_per_gpu[0], rel=0.05)


def test_two_gpus_beat_four_on_gb200_at_64k_tokens_and_lose_on_hopper_memory():
    # vLLM's GB200 prefill: with half of the experts' layers on Grace two GPUs hold the model; fewer ranks gather fewer tokens
    gb200 = machine("gb200-nvl72", "vllm", "nvfp4", "deepseek-r1")
    gathered = BACKENDS.index("allgather_reducescatter")
    common = {"backend": gathered, "batched_tokens": 65536}
    two = rows(dp=2, ep=2, offload_group_size=2, **common)
    four = rows(dp=4, ep=4, **common)
    rates = [float(prefill_step(gb200, r, Workload(isl_tokens=2048, osl_tokens=1)).tokens_per_s_per_gpu[0]) for r in (two, four)]
    assert rates[0] > rates[1]


def test_offload_copies_hide_behind_large_steps_only():
    gb200 = machine("gb200-nvl72", "vllm", "nvfp4", "deepseek-r1")
    tokens = np.array([4096, 16384, 65536])
    offloaded = rows(dp=2, ep=2, backend=BACKENDS.index("allgather_reducescatter"), batched_tokens=tokens, offload_group_size=2)
    stall = prefill_step(gb200, offloaded, Workload(isl_tokens=2048, osl_tokens=1)).operators["offload_stall"].time_s
    assert stall[0] > stall[1] > 0
    assert stall[2] == 0  # published: copies fully hidden in a 2,428 ms step of 65,536 tokens


def test_groups_that_stay_inside_nodes_reach_fewer_nodes():
    # DeepSeek-V3: 4 of 8 groups, two per node on four nodes: a node is missed with C(6,4)/C(8,4) = 15/70
    assert expected_domains(8, 4, 8, 4, grouped=True) == pytest.approx(4 * (1 - 15 / 70))
    assert expected_domains(8, 4, 8, 4, grouped=False) == pytest.approx(4 * (1 - 0.75**8))
    assert expected_domains(8, 1, 8, 4, grouped=True) == 1


@pytest.mark.parametrize("model", ["llama-3.1-70b", "qwen3-235b-a22b", "gpt-oss-120b"])
def test_gqa_models_prefill_too(model):
    spec = load_hardware("hgx-h200")
    m = Machine(load_model(model), spec, load_recipe("bf16"), calibration_for("H200", "vllm"))
    dense = m.model.moe is None
    r = Rows.of(tp=4, batched_tokens=8192, graph_tokens=0) if dense else Rows.of(tp=4, ep=4, batched_tokens=8192, graph_tokens=0)
    cost = prefill_step(m, r, PROMPTS)
    assert cost.tokens_per_s_per_gpu[0] > 500
    assert "attention" in cost.operators


@pytest.mark.parametrize("backend", ["allgather_reducescatter", "deepep_normal", "deepep_low_latency", "none"])
def test_tensorrt_llm_has_one_expert_kernel(backend):
    """Whatever the all-to-all: TRTLLM-gen on Blackwell with tensor-parallel attention, where it is told nothing else."""
    for phase in ("prefill", "decode"):
        assert kernel_variants(machine(engine="trtllm"), backend, phase) == ("fp8_block",)
        assert kernel_variants(machine("hgx-b200", engine="trtllm"), backend, phase) == ("fp8_block",)


def test_only_vllm_sorts_tokens_for_the_contiguous_kernel_without_deepep():
    engines = ("vllm", "sglang")
    gathered = [kernel_variants(machine(engine=engine), "allgather_reducescatter", "prefill") for engine in engines]
    assert gathered == [("fp8_block", "fp8_block.contiguous"), ("fp8_block",)]
    for engine in engines:
        assert kernel_variants(machine(engine=engine), "deepep_normal", "prefill") == ("fp8_block.contiguous",)


def test_sglang_gathers_prompts_of_its_ranks_by_adding_up():
    """4,096 tokens of each of eight ranks are 32,768 x 7,168 x 2 = 470 MB: all of it is added up, for tokens and for results."""
    row = rows(tp=1, dp=8, backend=BACKENDS.index("allgather_reducescatter"), batched_tokens=4096, ep=8)
    sglang, vllm = (prefill_step(machine("hgx-b200", engine=engine), row, PROMPTS).operators for engine in ("sglang", "vllm"))
    whole = tp_all_reduce(machine("hgx-b200", engine="sglang"), np.array([32768.0]), np.array([8]))
    layers = 58
    for name in ("dispatch", "combine"):
        assert sglang[name].time_s == pytest.approx(layers * whole[0])
        assert sglang[name].time_s > vllm[name].time_s  # which moves half of that, tokens in FP8


def test_tensorrt_llm_prompts_on_eight_h200_take_what_a_burst_of_them_took():
    """128 prompts of 7,373 tokens on one TP8 EP8 prefill worker: the last first token after 35.8 s (InferenceX, 2026-03-23)."""
    row = rows(tp=8, dp=1, backend=BACKENDS.index("none"), batched_tokens=2 * 7373)
    cost = prefill_step(machine(engine="trtllm"), row, Workload(isl_tokens=7373, osl_tokens=1))
    assert cost.step_s[0] / 2 == pytest.approx(35.8 / 128, rel=0.1)
