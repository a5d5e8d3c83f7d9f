"""Cost functions against numbers worked out by hand, limits, and scaling laws."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.arrays import FEW_ROWS, alike_rows, distinct_rows, distinct_values, evaluate_distinct, quantile_of, smoothmax
from cost_models.attention.decode import (
    DecodeAttentionCoefficients,
    gqa_decode_bound_s,
    gqa_decode_time_s,
    mla_decode_bound_s,
    mla_decode_time_s,
)
from cost_models.attention.latent import absorb_bytes
from cost_models.catalog import load_hardware, load_model
from cost_models.chunking import activation_chunks, moe_chunks
from cost_models.collectives import AllReduceCoefficients, all_reduce_bound_s, all_reduce_time_s
from cost_models.dense_gemm import DenseGemmCoefficients, dense_gemm_bound_s, dense_gemm_time_s
from cost_models.elementwise import elementwise_time_s
from cost_models.grouped_gemm import GroupedGemmCoefficients, grouped_gemm_bound_s, grouped_gemm_time_s
from cost_models.host import HostCoefficients, host_step_s, output_processing_s
from cost_models.links import Links
from cost_models.overlap import single_batch_hidden_s, two_batch_time_s
from cost_models.speculative import accepted_tokens_per_step

H200 = {"peak_flops_per_s": 989e12, "hbm_bytes_per_s": 4.8e12}
IDEAL_GEMM = DenseGemmCoefficients(start_s=0, compute_efficiency=1, memory_efficiency=1, sharpness=50, cta_bandwidth_share=1e9)
IDEAL_ATTENTION = DecodeAttentionCoefficients(start_s=0, compute_efficiency=1, memory_efficiency=1)
IDEAL_EXPERTS = GroupedGemmCoefficients(start_s=0, compute_efficiency=1, memory_efficiency=1, sharpness=50)


def test_a_skinny_gemm_streams_its_weights():
    # 7168 x 16384 BF16 = 234.9 MB; + input 16 x 16384 x 2 B and output 16 x 7168 x 2 B = 0.75 MB; / 4.8 TB/s = 49.1 us
    time = dense_gemm_time_s(16, 7168, 16384, weight_bytes=2, activation_bytes=2, processors=132, coefficients=IDEAL_GEMM, **H200)
    assert time == pytest.approx(49.1e-6, rel=2e-3)


def test_a_square_gemm_runs_at_peak_flops():
    # 2 * 8448 * 8192 * 8192 / 989e12 = 1.1465 ms; 8448 x 8192 is 33 x 64 = 2112 tiles of 256 x 128: 16 full waves of 132
    time = dense_gemm_time_s(
        8448, 8192, 8192, weight_bytes=2, activation_bytes=2, processors=132, coefficients=IDEAL_GEMM, **H200
    )
    assert time == pytest.approx(1.1465e-3, rel=1e-3)


def test_a_gemm_of_no_rows_costs_nothing():
    c = DenseGemmCoefficients(start_s=5e-6, compute_efficiency=0.7, memory_efficiency=0.8, sharpness=2)
    assert dense_gemm_time_s(0, 7168, 7168, weight_bytes=1, activation_bytes=1, processors=132, coefficients=c, **H200) == 0


def test_an_instruction_of_128_rows_computes_rows_that_are_not_there():
    # 64 rows, 132 x 64 columns: one wave of 64 x 64 tiles, 2 * 64 * 64 * 65,536 * 132 / 989e12 = 71.7 us; of 128 rows twice
    shape = {"weight_bytes": 1e-3, "activation_bytes": 1e-3, "processors": 132, **H200}
    hopper, blackwell = IDEAL_GEMM, dataclasses.replace(IDEAL_GEMM, instruction_rows=128.0)
    times = [dense_gemm_time_s(64, 132 * 64, 65536, coefficients=c, **shape) for c in (hopper, blackwell)]
    assert times == pytest.approx([71.66e-6, 143.3e-6], rel=2e-3)


def test_split_k_helps_a_single_column_of_tiles():
    plain = DenseGemmCoefficients(start_s=0, compute_efficiency=1, memory_efficiency=1, sharpness=8, cta_bandwidth_share=1)
    split = DenseGemmCoefficients(
        start_s=0, compute_efficiency=1, memory_efficiency=1, sharpness=8, cta_bandwidth_share=1, split_start_s=1e-6
    )
    shape = {"weight_bytes": 2, "activation_bytes": 2, "processors": 132, **H200}
    one = dense_gemm_time_s(16, 256, 16384, coefficients=plain, **shape)
    assert dense_gemm_time_s(16, 256, 16384, coefficients=split, **shape) < one


@given(m=st.integers(1, 8192), n=st.integers(64, 16384), k=st.integers(64, 16384))
def test_no_gemm_beats_its_roofline(m, n, k):
    shape = {"weight_bytes": 1.0, "activation_bytes": 1.0, **H200}
    time = dense_gemm_time_s(m, n, k, processors=132, coefficients=IDEAL_GEMM, **shape)
    assert time >= dense_gemm_bound_s(m, n, k, **shape) * (1 - 1e-9)


def test_mla_reads_the_latent_once_for_all_heads():
    # 64 sequences x 4096 tokens x 576 elements x 2 B = 302 MB / 4.8 TB/s = 62.9 us, whatever the heads;
    # 16 heads: 2*64*4096*16*1088 = 9.13 GFLOP / 989 TFLOP/s = 9.2 us, hidden
    shape = {"latent_dim": 512, "rope_dim": 64, "kv_bytes": 2.0, **H200}
    assert mla_decode_bound_s(64, 4096, 16, 1, **shape) == pytest.approx(62.9e-6, rel=1e-3)
    time = mla_decode_time_s(64, 4096, 16, 1, processors=132, coefficients=IDEAL_ATTENTION, **shape)
    assert time == pytest.approx(62.9e-6, rel=1e-3)


def test_mla_with_128_heads_is_compute_bound_on_hopper():
    # 2 * 64 * 4096 * 128 * 1088 = 73.0 GFLOP / 989e12 = 73.8 us > 62.9 us of reading
    assert mla_decode_bound_s(64, 4096, 128, 1, latent_dim=512, rope_dim=64, kv_bytes=2.0, **H200) == pytest.approx(
        73.8e-6, rel=1e-3
    )


def test_two_query_tokens_double_mla_flops_but_not_bytes():
    shape = {"latent_dim": 512, "rope_dim": 64, "kv_bytes": 2.0, **H200}
    assert mla_decode_bound_s(64, 4096, 128, 2, **shape) == pytest.approx(2 * mla_decode_bound_s(64, 4096, 128, 1, **shape))
    assert mla_decode_bound_s(64, 4096, 8, 2, **shape) == pytest.approx(mla_decode_bound_s(64, 4096, 8, 1, **shape))


def test_gqa_reads_keys_and_values_of_each_kv_head():
    # 32 x 8192 x 2 x 8 x 128 x 2 B = 1.074 GB / 4.8 TB/s = 223.7 us
    shape = {"head_dim": 128, "kv_bytes": 2.0, **H200}
    assert gqa_decode_bound_s(32, 8192, 64, 8, 1, **shape) == pytest.approx(223.7e-6, rel=1e-3)
    time = gqa_decode_time_s(32, 8192, 64, 8, 1, processors=132, coefficients=IDEAL_ATTENTION, **shape)
    assert time == pytest.approx(223.7e-6, rel=1e-2)


def test_memory_bound_decode_reads_each_active_expert_once():
    # four experts: 4 * 3*7168*2048 B (FP8) / 4.8e12 B/s = 36.70 us
    bound = grouped_gemm_bound_s(
        10, 3.5, 1, hidden=7168, intermediate=2048, weight_bytes=1, peak_flops_per_s=1979e12, hbm_bytes_per_s=4.8e12
    )
    assert bound == pytest.approx(36.70e-6 * 3.5 / 4, rel=1e-3)  # 3.5 of the four are active on average


def test_expert_flops_pad_each_expert_to_128_tokens():
    # 2 experts x 1024 tokens, no partial tile on average but half a tile: (1024 + 64)/1024 of the FLOPs
    shape = {"hidden": 7168, "intermediate": 2048, "weight_bytes": 1, "peak_flops_per_s": 1979e12, "hbm_bytes_per_s": 4.8e12}
    time = grouped_gemm_time_s(2048, 2, 2, 2048, 1, activation_bytes=1, coefficients=IDEAL_EXPERTS, **shape)
    assert time == pytest.approx(2048 * 1.0625 * 6 * 7168 * 2048 / 1979e12, rel=5e-3)


def test_sharding_experts_by_tp_divides_both_terms():
    shape = {"hidden": 7168, "intermediate": 2048, "weight_bytes": 1, "peak_flops_per_s": 1979e12, "hbm_bytes_per_s": 4.8e12}
    whole = grouped_gemm_time_s(512, 32, 32, 64, 1, activation_bytes=1, coefficients=IDEAL_EXPERTS, **shape)
    half = grouped_gemm_time_s(512, 32, 32, 64, 2, activation_bytes=1, coefficients=IDEAL_EXPERTS, **shape)
    assert half == pytest.approx(whole / 2)


def test_all_reduce_takes_the_better_of_one_and_two_shots():
    links = Links(8, 450e9, 50e9)
    c = AllReduceCoefficients(0, 0, 1, 1, two_shot_start_s=10e-6)
    # 64 KiB over 8: one-shot reads 7 x 64 KiB = 1.02 us; two-shot 10 us + 0.25 us
    assert all_reduce_time_s(2**16, 8, links=links, coefficients=c) == pytest.approx(7 * 2**16 / 450e9)
    # 64 MiB: two-shot 10 us + 2 * 7/8 * 64 MiB / 450 GB/s = 271 us against 1.04 ms
    assert all_reduce_time_s(2**26, 8, links=links, coefficients=c) == pytest.approx(10e-6 + 1.75 * 2**26 / 450e9)
    assert all_reduce_time_s(2**26, 1, links=links, coefficients=c) == 0
    assert all_reduce_bound_s(2**26, 8, links) == pytest.approx(1.75 * 2**26 / 450e9)


def test_groups_too_large_for_the_engines_kernel_take_the_rings_steps_or_the_switch():
    # 16 ranks: 2 us + 2 x 15 steps x 1.5 us = 47 us + 2 x 15/16 x 1 MiB / 900 GB/s = 2.18 us; the switch starts after 40 us
    links = Links(72, 900e9, 50e9, node_gpus=4)
    ring = AllReduceCoefficients(2e-6, 0, 1, 1, 0, own_ranks=8.0, ring_step_s=1.5e-6)
    assert all_reduce_time_s(2**20, 16, links=links, coefficients=ring) == pytest.approx(49.18e-6, rel=1e-3)
    switch = dataclasses.replace(ring, switch_start_s=40e-6)
    assert all_reduce_time_s(2**20, 16, links=links, coefficients=switch) == pytest.approx(44.18e-6, rel=1e-3)
    times = all_reduce_time_s(2**20, [8, 9, 16, 72], links=links, coefficients=switch)
    assert np.all(np.diff(times) > 0)
    assert np.all(times >= all_reduce_bound_s(2**20, [8, 9, 16, 72], links))


def test_absorbing_streams_activations_and_weights_of_every_head():
    # 1,024 tokens x 128 heads x (128 + 512) + 128 heads x 128 x 512 = 92.3e6 elements in BF16 = 184.5 MB a kernel
    assert absorb_bytes(1024, 128, 128, 512) == pytest.approx(184.5e6, rel=1e-3)
    assert absorb_bytes(0, 128, 128, 512) == 0


def test_elementwise_counts_passes():
    # 1000 tokens x 2 B x 8 passes x 7168 = 114.7 MB / (0.77 x 8 TB/s) = 18.6 us
    time = elementwise_time_s(1000, 0, hidden=7168, hidden_passes=8, query_passes=0, memory_efficiency=0.77, hbm_bytes_per_s=8e12)
    assert time == pytest.approx(18.6e-6, rel=2e-3)


def test_moe_chunks_round_up_and_off_means_one():
    iterations, tokens = moe_chunks([1000, 1000, 0], [256, 0, 256])
    assert iterations.tolist() == [4, 1, 0]
    assert tokens.tolist() == [250, 1000, 0]
    assert activation_chunks([40000, 40000], [16384, 0]).tolist() == [3, 1]


def test_overlap_lies_between_the_maximum_and_the_sum():
    assert two_batch_time_s(3.0, 4.0, 2.0) == pytest.approx(5.0)
    assert two_batch_time_s(3.0, 4.0, 1.0) == pytest.approx(7.0)
    assert two_batch_time_s(3.0, 4.0, 200.0) == pytest.approx(4.0)
    # combine 9 hides under a third of 12, dispatch 2 under the shared expert's 5; all of it: 4 + 2
    assert single_batch_hidden_s(2.0, 9.0, 12.0, 5.0, 1.0) == pytest.approx(6.0)


def test_accepted_tokens_multiply_conditional_rates():
    # 1 + 0.8 + 0.8 * 0.5 + 0.8 * 0.5 * 0.5 (the last rate repeats)
    assert accepted_tokens_per_step([0, 1, 2, 3], (0.8, 0.5)).tolist() == pytest.approx([1, 1.8, 2.2, 2.4])
    with pytest.raises(ValueError, match="acceptance"):
        accepted_tokens_per_step([1], ())


def test_output_processing_yields_between_chunks_only():
    c = HostCoefficients(step_s=1e-3, data_parallel_sync_s=5e-4, per_sequence_s=1e-6, output_s=1e-5, output_yield_s=1e-4)
    # 1000 outputs: 10 ms, and 7 yields between 8 chunks of 128
    assert output_processing_s(1000, 128, c) == pytest.approx(10e-3 + 7e-4)
    assert output_processing_s(1000, 2048, c) == pytest.approx(10e-3)
    assert host_step_s(100, 1, c) == pytest.approx(1.1e-3)
    assert host_step_s(100, 8, c) == pytest.approx(1.6e-3)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=5), st.floats(1, 30))
def test_smoothmax_is_bounded(values, sharpness):
    a, b = np.array(values), np.array(values[::-1])
    result = smoothmax(a, b, sharpness)
    assert np.all(result >= np.maximum(a, b) * (1 - 1e-12))
    assert np.all(result <= (a + b) * (1 + 1e-9))


@given(st.lists(st.integers(-3, 3) | st.floats(-10, 10), min_size=1, max_size=40), st.floats(0, 1))
def test_distinct_values_and_quantiles_are_those_of_numpy(values, share):
    assert np.array_equal(distinct_values(values), np.unique(values))
    assert quantile_of(values, share) == pytest.approx(np.quantile(values, share), rel=1e-9, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.5, 0.25, np.nan])), min_size=1, max_size=30))
def test_alike_rows_part_the_rows_by_their_values(rows):
    number, real = (np.array(column) for column in zip(*rows, strict=True))
    owner = np.full(len(rows), -1)
    for values, those in alike_rows(number, np.nan_to_num(real, nan=-1.0)):
        assert (owner[those] == -1).all()
        owner[those] = 0
        assert set(number[those].tolist()) == {values[0]}
        assert set(np.nan_to_num(real, nan=-1.0)[those].tolist()) == {values[1]}
    assert (owner == 0).all()


@pytest.mark.parametrize("count", [1, 3, 2000])
def test_distinct_rows_are_found_in_their_order_whatever_the_columns_hold(count):
    # short ranges and halves are looked up, long ones and thirds sorted; together they are more than a table holds
    rng = np.random.default_rng(count)
    columns = [
        rng.integers(-3, 4, count),
        rng.choice([1, 10**12], count),
        rng.integers(0, 40, count) / 2,
        rng.choice([-1 / 3, 0.1, 7e9], count),
        np.broadcast_to(5, count),
        rng.integers(0, 3000, count),
    ]
    for chosen in (columns, columns[::-1], columns[:3], columns[4:5]):
        rows = list(zip(*(column.tolist() for column in chosen), strict=True))
        first, inverse = distinct_rows(*chosen)
        assert [rows[at] for at in first] == sorted(set(rows))
        assert [rows[first[at]] for at in inverse] == rows
        assert first.tolist() == [rows.index(rows[at]) for at in first]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=60))
def test_evaluating_distinct_rows_equals_evaluating_all(rows):
    few, rows = rows, rows * FEW_ROWS
    x, y = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    seen = []

    def function(a, b):
        seen.append(len(a))
        return {"sum": a + 10 * b, "pair": (a, b)}

    result = evaluate_distinct(function, x, y)
    assert np.array_equal(result["sum"], x + 10 * y)
    assert np.array_equal(result["pair"][1], y)
    assert seen == [len(set(few))]
    x, y = (np.array(column, dtype=float) for column in zip(*few, strict=True))
    assert np.array_equal(evaluate_distinct(function, x, y)["sum"], x + 10 * y)  # few enough to be evaluated as they are


def test_attention_time_is_continuous_in_heads():
    # the kernels of 32 and 64 heads are slower than streaming, 24, 48 and 96 heads lie between their neighbours
    c = DecodeAttentionCoefficients(1e-5, 0.6, 0.8, heads_32_factor=1.4, heads_64_factor=1.2)
    shape = {"latent_dim": 512, "rope_dim": 64, "kv_bytes": 2.0, **H200}
    heads = np.arange(16, 129, dtype=float)
    time_s = mla_decode_time_s(64, 8192, heads, 1, processors=132, coefficients=c, **shape)
    assert np.max(np.abs(np.diff(time_s) / time_s[1:])) < 0.04
    bare = mla_decode_time_s(
        64, 8192, heads, 1, processors=132, coefficients=DecodeAttentionCoefficients(1e-5, 0.6, 0.8), **shape
    )
    ratio = dict(zip(heads, (time_s - 1e-5) / (bare - 1e-5), strict=True))
    assert [ratio[h] for h in (16, 32, 64, 128)] == pytest.approx([1.0, 1.4, 1.2, 1.0], rel=1e-6)


def test_all_reduce_across_nodes_adds_a_ring_over_the_nics():
    # 16 H100 are two domains of eight: inside, one shot of 7 messages at 450 GB/s; over the NICs each of the eight rings carries
    # its eighth of the message 2 (2 - 1) / 2 = 1 times at 50 GB/s
    links = Links.of(load_hardware("hgx-h100"))
    c = AllReduceCoefficients(0.0, 0.0, 1.0, 1.0, 1.0, scale_out_start_s=0.0, scale_out_efficiency=1.0)
    message = 2**20
    expected = 7 * message / 450e9 + message / 8 / 50e9
    assert all_reduce_time_s(message, 16, links=links, coefficients=c) == pytest.approx(expected)


def test_attention_activations_of_llama_by_hand():
    # 64 query and 8 KV heads of 128: query and output 2 x 64 x 128; in prefill keys and values too. TP8 shares all of it
    attention = next(iter(load_model("llama-3.1-70b").attentions))
    assert attention.activation_elements("decode", np.array([1.0, 8.0])).tolist() == [16_384, 2_048]
    assert attention.activation_elements("prefill", np.array([1.0, 8.0])).tolist() == [18_432, 2_304]


def test_expert_gemms_start_sooner_in_small_layers():
    # c_K (H + I / tp): 2 ns x (7,168 + 2,048) = 18.4 us on DeepSeek's layer, 2 ns x (2,048 + 768 / 2) = 4.9 us on Qwen3-30B's TP2
    c = GroupedGemmCoefficients(1e-5, 1.0, 1.0, 8.0, start_per_k_s=2e-9)
    bare = GroupedGemmCoefficients(1e-5, 1.0, 1.0, 8.0)
    shape = {"weight_bytes": 1.0, "activation_bytes": 1.0, "peak_flops_per_s": 1e15, "hbm_bytes_per_s": 3e12}
    for hidden, width, tp, start_s in ((7168, 2048, 1, 18.432e-6), (2048, 768, 2, 4.864e-6)):
        times = [
            grouped_gemm_time_s(8, 256, 8, 1, tp, hidden=hidden, intermediate=width, coefficients=x, **shape) for x in (c, bare)
        ]
        assert times[0] - times[1] == pytest.approx(start_s)
