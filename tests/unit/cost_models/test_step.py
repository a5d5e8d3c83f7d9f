"""A whole step: sums, limits, monotonicity, and published operator breakdowns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.arrays import FEW_ROWS
from cost_models.collectives import AllReduceCoefficients
from cost_models.dispatch import BACKENDS
from cost_models.layers import OUTSIDE
from cost_models.memory import WEIGHTLESS, decode_memory
from cost_models.moe_layer import imbalance
from cost_models.operators import gemm
from cost_models.overlap import OVERLAPS
from cost_models.provenance import operator_provenance
from cost_models.rows import Rows
from cost_models.specs.workload import Workload
from cost_models.step import decode_step, draft_projection
from tests.conftest import machine_of

LL = BACKENDS.index("deepep_low_latency")
AGRS = BACKENDS.index("allgather_reducescatter")
TWO_BATCH = OVERLAPS.index("two_batch")
SINGLE_BATCH = OVERLAPS.index("single_batch")
WIDE = {"dp": 72, "ep": 72, "redundant_experts": 32, "eplb": 1, "backend": LL}


def test_operators_and_layer_kinds_both_sum_to_the_step(gb200):
    rows = Rows.of(
        dp=[8, 16, 1, 1], tp=[1, 1, 8, 4], ep=[8, 16, 8, 1], pp=[1, 1, 1, 2], batch=[512, 64, 32, 33], backend=[AGRS, LL, 0, 0]
    )
    step = decode_step(gb200, rows, 3000)
    assert sum(t.time_s for t in step.operators.values()) == pytest.approx(step.step_s)
    assert sum(step.layer_kinds.values()) == pytest.approx(step.step_s)


def test_norms_over_the_heads_of_all_ranks_add_up_their_sums_first():
    """MiniMax-M2: 62 layers, two sums of 4 bytes a token; a message of 64 x 8 B = 512 B is nothing beside its start."""
    machine = machine_of("hgx-h200", model="minimax-m2", recipe="fp8-block")
    rows = Rows.of(batch=64, tp=[1, 8])
    step = decode_step(machine, rows, 3000)
    start = machine.coefficients("all_reduce", "default", AllReduceCoefficients)
    one_s = start.start_s + start.start_per_log2_ranks_s * 3 + 7 * 512 / 450e9 / start.one_shot_efficiency
    assert step.operators["norm_all_reduce"].time_s == pytest.approx([0.0, 62 * one_s])
    assert "norm_all_reduce" not in decode_step(machine_of("hgx-h200", recipe="fp8-block"), rows, 3000).operators


def test_layers_are_priced_once_for_rows_that_differ_outside_them(gb200):
    # every row with columns OUTSIDE of its own, many rows: a column that a layer did depend on would show
    rng = np.random.default_rng(0)
    count = 4 * FEW_ROWS
    outside = {name: rng.integers(1, 5, count) for name in OUTSIDE}
    rows = Rows.of(dp=8, ep=8, backend=LL, eplb=1, eplb_interval_steps=rng.choice([0, 3000], count), **outside)
    together = decode_step(gb200, rows, 3000)
    for at in range(0, count, 7):
        alone = decode_step(gb200, rows.take(np.array([at])), 3000)
        for shared, own in zip(together.layers, alone.layers, strict=True):
            assert shared.time_s[at] == pytest.approx(own.time_s[0], rel=1e-12)
            assert set(shared.operators) == set(own.operators)
            for name, timing in own.operators.items():
                both = shared.operators[name]
                assert (both.time_s[at], both.bound_s[at]) == pytest.approx((timing.time_s[0], timing.bound_s[0]), rel=1e-12)


def test_weights_are_counted_once_for_rows_that_differ_in_what_no_weights_depend_on(gb200):
    # columns of every value they may take: a column that weights did depend on would show
    rng = np.random.default_rng(0)
    weightless = {name: rng.integers(0, 2, 200) for name in WEIGHTLESS} | {"batch": rng.integers(1, 900, 200)}
    tp = rng.choice([1, 2], 200)
    rows = Rows.of(
        tp=tp, dp=8 // tp, ep=8, drafts=rng.integers(0, 2, 200), redundant_experts=rng.choice([0, 8], 200), **weightless
    )
    workload = Workload(isl_tokens=2000, osl_tokens=2000)
    together = decode_memory(gb200, rows, workload).lines
    for at in range(0, 200, 9):
        for name, line in decode_memory(gb200, rows.take(np.array([at])), workload).lines.items():
            assert together[name][at] == pytest.approx(line[0], rel=1e-12)


def test_costing_rows_together_equals_costing_them_alone(gb200):
    rows = Rows.of(
        dp=[8, 72, 16],
        ep=[8, 72, 1],
        batch=[1024, 7, 333],
        backend=[AGRS, LL, AGRS],
        overlap=[0, TWO_BATCH, 0],
        redundant_experts=[0, 32, 0],
    )
    together = decode_step(gb200, rows, 2500).step_s
    alone = [decode_step(gb200, rows.take(np.array([i])), 2500).step_s[0] for i in range(3)]
    assert together == pytest.approx(alone)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 2000), context=st.integers(1, 30_000))
def test_steps_grow_with_batch_and_context(batch, context):
    machine = machine_of()
    rows = Rows.of(dp=8, ep=8, batch=[batch, batch * 2], backend=AGRS)
    near, far = (decode_step(machine, rows, c).step_s for c in (context, context * 2))
    assert near[1] > near[0]
    assert np.all(far >= near)


def test_experts_move_once_however_many_microbatches_a_layer_runs():
    machine = machine_of("hgx-h200", recipe="fp8-block", engine="sglang", model="deepseek-r1")
    rows = Rows.of(dp=16, ep=16, redundant_experts=32, backend=2, batch=64, overlap=[0, 1], eplb=1, eplb_interval_steps=100)
    # none, two_batch
    moved_s = decode_step(machine, rows, 2000).operators["eplb_moves"].time_s
    assert moved_s[0] > 0
    assert moved_s[1] == moved_s[0]


@pytest.mark.parametrize(
    ("model", "recipe", "rows", "kernels"),
    [
        # two norms, one after qkv and the cache write, the activation
        ("llama-3.1-70b", "bf16", {"tp": 4}, 80 * 5),
        # two norms, two in attention, one for its normed heads, top-k; order, activation and sum are the experts' own
        ("qwen3-235b-a22b", "fp8-block", {"tp": 4}, 94 * 6),
        # norms 2, MLA 4, activation 1; MoE layers: routing by groups 2, shared expert 2, packing around the all-to-all 4
        ("deepseek-r1", "fp8-block", {"tp": 8}, 3 * 7 + 58 * 10),
        ("deepseek-r1", "fp8-block", {"dp": 8, "ep": 8, "backend": 2}, 3 * 11 + 58 * 14 - 3 * 4),
    ],
)
def test_launch_gaps_are_one_per_small_kernel(model, recipe, rows, kernels):
    machine = machine_of("hgx-h200", recipe=recipe, engine="sglang", model=model)
    gap_s = machine.calibration.entry("host", "default").coefficients["small_kernel_s"]
    step = decode_step(machine, Rows.of(**rows, batch=8, graph_tokens=8), 2000)
    assert step.operators["launch_gaps"].time_s[0] == pytest.approx(kernels * gap_s)


@pytest.mark.parametrize(
    ("rows", "kernels"),
    [
        ({"tp": 1}, 80 * 5),
        # the all-reduce after attention and the one after the network each take their norm along
        ({"tp": 4}, 80 * 3),
    ],
)
def test_norms_fused_into_the_all_reduce_are_no_kernels(rows, kernels):
    machine = machine_of("hgx-b200", recipe="bf16", engine="vllm", model="llama-3.1-70b")
    gap_s = machine.calibration.entry("host", "default").coefficients["small_kernel_s"]
    step = decode_step(machine, Rows.of(**rows, batch=8, graph_tokens=8), 2000)
    assert step.operators["launch_gaps"].time_s[0] == pytest.approx(kernels * gap_s)


def test_eager_experts_have_a_floor_that_graphs_do_not():
    # vLLM, 48 layers: floor of a layer = its operators x eager_operator_s + eager_experts_s, where the GPU is done sooner
    machine = machine_of("hgx-h100", recipe="bf16", engine="vllm", model="qwen3-235b-a22b")
    host = machine.calibration.entry("host", "default").coefficients
    eager = decode_step(machine, Rows.of(tp=8, ep=8, batch=1, graph_tokens=0), 500)
    operators = 9  # qkv, attention, o_proj, element-wise, two all-reduces, router, experts, element-wise
    floor_s = 94 * (operators * host["eager_operator_s"] + host["eager_experts_s"])
    assert eager.layer_kinds["moe_layers"][0] == pytest.approx(floor_s)
    graph = decode_step(machine, Rows.of(tp=8, ep=8, batch=1, graph_tokens=8), 500)
    assert graph.layer_kinds["moe_layers"][0] < floor_s / 5


def test_drafts_are_a_chain_of_one_long_pass_and_short_ones():
    # t(d) = L(b (1+d)) + (d-1) L(b) + projections + d lm_heads: the second draft adds one short pass to the step's own growth
    machine = machine_of("hgx-h200", recipe="fp8-block", engine="sglang", model="deepseek-r1")
    rows = Rows.of(tp=8, batch=16, drafts=[0, 1, 2, 3])
    step = decode_step(machine, rows, 2000, (0.8,))
    layer_s = [step.layer_kinds["moe_layers"][i] / 58 for i in range(4)]
    projection_s = draft_projection(machine, np.array([16.0 * (1 + d) for d in range(4)])).time_s
    head_s = step.operators["lm_head"].time_s[0]  # over one token a sequence, as drafts end
    expected = [
        layer_s[d] + projection_s[d] + (d - 1) * (layer_s[0] + projection_s[0]) + d * head_s if d else 0.0 for d in range(4)
    ]
    assert step.operators["mtp_drafts"].time_s == pytest.approx(expected)


def test_long_dense_steps_keep_up_what_the_power_limit_allows():
    # 8,192 x 8,192 x 8,192 in BF16: 2 m n k / (0.66 x 989e12) = 1.68 ms, 1.34 as a burst; small ones keep theirs
    machine = machine_of("hgx-h100", recipe="bf16", engine="vllm", model="llama-3.1-70b")
    time_s, _ = gemm(machine, "bf16", np.array([8192.0, 512.0]), 8192, 8192)
    assert time_s[0] == pytest.approx(2 * 8192**3 / (0.66 * machine.peak_flops_per_s("dense_ffn")))
    assert time_s[1] < 2 * 512 * 8192**2 / (0.66 * machine.peak_flops_per_s("dense_ffn"))


def test_no_operator_beats_its_roofline(gb200):
    rows = Rows.of(**WIDE, batch=[1, 16, 256, 1024])
    for name, timing in decode_step(gb200, rows, 3000).operators.items():
        if name not in ("overlap", "shared_stream", "launch_gaps", "host"):
            assert np.all(timing.time_s >= timing.bound_s * (1 - 1e-9)), name


@pytest.mark.parametrize(
    ("batch", "published_ms"),
    [
        (256, {"gemm": 0.179, "attention": 0.279, "experts": 0.232, "dispatch": 0.394, "combine": 0.706, "other": 0.117}),
        (128, {"gemm": 0.147, "attention": 0.151, "experts": 0.148, "dispatch": 0.202, "combine": 0.367, "other": 0.092}),
    ],
)
def test_h100_breakdown_without_overlap(batch, published_ms):
    # LMSYS large-scale EP, decode ablation, milliseconds per layer (batch 128 column halved)
    newest = machine_of("hgx-h100", recipe="fp8-block", engine="sglang")
    machine = dataclasses.replace(newest, calibration=newest.calibration.at("0.4.6"))  # of May 2025
    step = decode_step(machine, Rows.of(**WIDE, batch=batch), 2050)
    per_layer = {name: float(t.time_s[0]) * 1e3 / 58 for name, t in step.operators.items()}
    gemms = ("q_a_kv_a", "q_b", "absorb", "o_proj", "router", "shared_gate_up", "shared_down")
    grouped = {
        "gemm": sum(per_layer[name] for name in gemms) * 58 / 61,
        "attention": per_layer["attention"] * 58 / 61,
        "experts": per_layer["experts"],
        "dispatch": per_layer["dispatch"],
        "combine": per_layer["combine"],
        "other": (per_layer["elementwise"] + per_layer["launch_gaps"]) * 58 / 61 + per_layer["moe_elementwise"],
    }
    for name, published in published_ms.items():
        assert grouped[name] == pytest.approx(published, rel=0.30), name
    assert sum(grouped.values()) == pytest.approx(sum(published_ms.values()), rel=0.10)


def test_two_batch_overlap_pays_when_communication_is_long_and_not_without_it():
    machine = machine_of("hgx-h100", recipe="fp8-block", engine="sglang")
    wide = Rows.of(**WIDE, batch=256, overlap=[0, TWO_BATCH])
    alone, overlapped = decode_step(machine, wide, 2050).step_s
    assert overlapped < 0.85 * alone  # LMSYS: 1.929 -> 1.491 ms per layer
    small = Rows.of(dp=8, ep=8, batch=8, backend=LL, overlap=[0, TWO_BATCH])
    alone, overlapped = decode_step(machine, small, 2050).step_s
    assert overlapped > alone  # weights are read twice


def test_the_shared_expert_hides_its_latency_in_small_batches_only(gb200):
    step = decode_step(gb200, Rows.of(dp=8, ep=8, batch=[16, 256, 257], backend=AGRS), 2000)
    hidden = -step.operators["shared_stream"].time_s
    shared = sum(step.operators[name].time_s - step.operators[name].bound_s for name in ("shared_gate_up", "shared_down"))
    assert hidden[:2] == pytest.approx(shared[:2])
    assert hidden[2] == 0


def test_single_batch_overlap_never_costs(gb200):
    alone, overlapped = decode_step(gb200, Rows.of(**WIDE, batch=768, overlap=[0, SINGLE_BATCH]), 2050).step_s
    assert overlapped <= alone


def test_imbalance_slows_experts_and_point_to_point_bytes_but_not_all_gather(gb200):
    even, skewed = ({"imbalance": ratio} for ratio in (1.0, 1.5))
    for backend, moves in ((LL, True), (AGRS, False)):
        base = {"dp": 8, "ep": 8, "batch": 512, "backend": backend}
        one, other = (decode_step(gb200, Rows.of(**base, **ratio), 2000).operators for ratio in (even, skewed))
        assert other["experts"].time_s > one["experts"].time_s
        assert bool(other["dispatch"].time_s > one["dispatch"].time_s) is moves


def test_the_noise_of_a_step_is_that_of_the_tokens_that_all_ranks_feed_together(gb200):
    # 32 tokens over EP8: four from each attention-DP rank, or all of tensor-parallel ranks, which hold the same ones
    spread, same = Rows.of(dp=8, ep=8), Rows.of(tp=8, ep=8)
    assert imbalance(gb200, same, np.array([32.0])) == pytest.approx(imbalance(gb200, spread, np.array([4.0])))


def test_one_token_reads_three_experts_on_the_busiest_of_eight_ranks(gb200):
    # 8 picks in 4 of 8 groups: 3.06 by simulation, where a rank has one on average; each is 3 x 7,168 x 2,048 weights
    one = decode_step(gb200, Rows.of(tp=8, ep=8, batch=1), 2000).operators["experts"]
    weights = 3 * 7168 * 2048 * gb200.dtype_info("experts").weight_bytes
    layers = gb200.model.moe_layers
    assert one.bound_s * gb200.hbm_bytes_per_s / weights / layers == pytest.approx(3.06, rel=0.06)


def test_drafts_trade_a_longer_step_for_more_tokens(gb200):
    none, one = (decode_step(gb200, Rows.of(dp=8, ep=8, batch=64, drafts=d, backend=AGRS), 2000, (0.8,)) for d in (0, 1))
    assert one.step_s > none.step_s
    assert one.accepted_tokens == pytest.approx(1.8)
    assert one.tpot_s == pytest.approx(one.step_s / 1.8)


def test_moe_chunks_repeat_dispatch_and_weights(gb200):
    base = {"dp": 8, "ep": 8, "batch": 512, "backend": LL}
    whole, chunked = (decode_step(gb200, Rows.of(**base, moe_chunk_tokens=c), 2000).step_s for c in (0, 128))
    assert chunked > whole * 1.1


def test_running_without_graphs_meets_the_launch_floor(gb200):
    base = {"dp": 8, "ep": 8, "batch": 1, "backend": AGRS}
    captured, eager = (decode_step(gb200, Rows.of(**base, graph_tokens=g), 2000).step_s for g in (512, 0))
    assert eager >= 61 * 0.8e-3
    assert eager > captured


def test_throughput_counts_accepted_tokens_of_all_ranks(gb200):
    step = decode_step(gb200, Rows.of(tp=2, dp=4, ep=8, batch=100, backend=AGRS), 2000)
    assert step.tokens_per_s_per_gpu == pytest.approx(100 * 4 / step.tpot_s / 8)


def test_provenance_names_what_lies_outside_the_measured_box(gb200):
    rows = Rows.of(dp=72, ep=72, redundant_experts=32, batch=1024, backend=LL)
    sources = operator_provenance(gb200, rows, 3000)
    assert sources["attention"].status == "measured"
    assert any("ranks 72" in text for text in sources["dispatch"].outside)


def test_groups_beyond_the_timed_ones_are_less_sure(gb200):
    # DeepEP low latency was timed on 4 ranks of a rack: 64 are four doublings, hypot(own, 4 x 0.08)
    def sigma(ep: int) -> float:
        rows = Rows.of(dp=ep, ep=ep, redundant_experts=0, batch=64, backend=LL)
        return operator_provenance(gb200, rows, 3000)["dispatch"].held_out_sigma

    assert sigma(64) == pytest.approx(np.hypot(sigma(4), 4 * 0.08))


def test_an_all_reduce_on_a_whole_rack_says_so(gb200):
    measured, rack = (operator_provenance(gb200, Rows.of(tp=tp, dp=1), 3000)["tp_all_reduce"] for tp in (16, 64))
    assert measured.outside == ()
    assert rack.outside == ("ranks 64 outside 2-16",)
    assert rack.held_out_sigma == pytest.approx(np.hypot(measured.held_out_sigma, 2 * 0.3))


def test_symmetric_memory_starts_an_all_reduce_over_two_trays_in_a_fifth_of_the_time():
    """One sequence of DeepSeek-V3 on TP8: two all-reduces of 14,336 B in each of 61 layers.

    SGLang's own over two trays start after 3.4 + 3 x 0.48 + 24.2 = 29.1 us (its table), NCCL's in symmetric memory after
    6.3 us (NVIDIA, 32 GPUs of a rack); 7 x 14,336 B or 1.75 x 14,336 B take less than 0.2 us of 900 GB/s.
    122 x (29.1 - 6.3) us = 2.8 ms.
    """
    own = machine_of("gb200-nvl72", engine="sglang", recipe="fp8-block")
    rows = Rows.of(tp=8, batch=1)
    ours, symmetric = (decode_step(m, rows, 2000) for m in (own, dataclasses.replace(own, symmetric_memory=True)))
    assert (ours.step_s - symmetric.step_s)[0] == pytest.approx(2.8e-3, rel=0.05)
    names = ("tp_all_reduce", "ffn_all_reduce", "moe_all_reduce")
    assert sum(symmetric.operators[name].time_s[0] for name in names) == pytest.approx(122 * 6.35e-6, rel=0.02)


def test_an_engine_without_times_of_symmetric_memory_is_priced_with_its_own_all_reduce():
    own = machine_of("gb200-nvl72", engine="trtllm", recipe="fp8-block")
    rows = Rows.of(tp=8, batch=1)
    ours, symmetric = (decode_step(m, rows, 2000) for m in (own, dataclasses.replace(own, symmetric_memory=True)))
    assert ours.step_s[0] == symmetric.step_s[0]
