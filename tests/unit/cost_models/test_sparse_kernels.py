"""Kernels of sparse prefill: padded heads, and walks of a full selection."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cost_models.attention.indexing import IndexShape, SparseCoefficients, index_time_s, sparse_prefill_time_s
from cost_models.catalog import load_calibration

PLAIN = SparseCoefficients(0.0, 1.0, 1e9, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
HOPPER = replace(PLAIN, head_tile=64.0, whole_below_heads=32.0, whole_efficiency=0.5)
TOKENS, WIDTH = 4096.0, 2 * 512 + 64


def prefill_s(heads: float, coefficients: SparseCoefficients, *, pairs: float = TOKENS * 16) -> float:
    time_s = sparse_prefill_time_s(
        1.0, TOKENS, pairs, heads, full_selection=2048, latent_dim=512, rope_dim=64,
        peak_flops_per_s=1e15, hbm_bytes_per_s=3e12, coefficients=coefficients,
    )  # fmt: skip
    return float(time_s)


def test_with_few_heads_a_query_walks_its_full_selection_however_few_keys_it_sees():
    """4,096 queries x 2,048 keys x 64 padded heads x 1,088 x 2 FLOP at half of 1e15: 2.34 ms, whatever the prompts' length."""
    by_hand = 2 * TOKENS * 2048 * 64 * WIDTH / 0.5e15
    assert by_hand == pytest.approx(2.336e-3, rel=1e-3)
    for heads in (1.0, 16.0):
        assert prefill_s(heads, HOPPER) == pytest.approx(by_hand)
        assert prefill_s(heads, HOPPER, pairs=TOKENS * 2048) == pytest.approx(by_hand)


def once_s(heads: float) -> float:
    """Queries in and outputs out in BF16 at 3 TB/s."""
    return heads * TOKENS * WIDTH * 2 / 3e12


def test_from_32_heads_on_only_what_is_selected_is_walked():
    long = TOKENS * 1024
    assert prefill_s(32.0, HOPPER, pairs=long) == pytest.approx(2 * long * 64 * WIDTH / 1e15)
    assert prefill_s(32.0, HOPPER) < prefill_s(16.0, HOPPER) / 20


def test_queries_and_outputs_pass_once_at_least_however_little_is_selected():
    # 16 keys a query: 9 us of FLOPs, 95 us of traffic
    assert prefill_s(32.0, HOPPER) == pytest.approx(once_s(32))


def test_heads_below_the_tile_cost_its_rows_and_their_copies():
    padded = replace(PLAIN, head_tile=64.0, pad_passes=2.0, copy_passes=1.0)
    compute_s = 2 * TOKENS * 16 * 64 * WIDTH / 1e15
    copies_s = (2 * 64 + 1 * 8) * TOKENS * WIDTH * 2 / 3e12
    assert prefill_s(8.0, padded) == pytest.approx(compute_s + copies_s)
    assert prefill_s(64.0, padded) == pytest.approx(once_s(64))  # as many heads as the tile has: no copies


def test_the_fits_found_the_tiles_that_the_engine_s_source_states():
    """FlashMLA takes 64 heads on Hopper, 128 on Blackwell; vLLM 0.24 takes the FP8 decode kernel below 32 heads on Hopper."""
    for name in ("h100-vllm", "h200-vllm"):
        chosen = load_calibration(name).entry("dsa_prefill", "fp8").coefficients
        assert (chosen["head_tile"], chosen["whole_below_heads"]) == (64, 32)
        assert load_calibration(name).entry("dsa_prefill", "bf16").coefficients["head_tile"] == 64
    assert load_calibration("b200-vllm").entry("dsa_prefill", "bf16").coefficients["head_tile"] == 128


def test_prompts_of_sparse_attention_are_priced_within_eight_percent_wherever_vllm_was_timed():
    errors = {
        (name, dtype): report.median_error
        for name in ("h100-vllm", "h200-vllm", "b200-vllm", "gb200-vllm", "gb300-vllm", "b300-vllm")
        for dtype in ("bf16", "fp8")
        if (report := load_calibration(name).entry("dsa_prefill", dtype).fit) is not None
    }
    assert len(errors) == 12
    assert max(errors.values()) < 0.08, errors


def test_time_grows_with_tokens_on_either_side_of_the_switch():
    for heads in (16.0, 32.0):
        times = [
            float(
                sparse_prefill_time_s(
                    1.0, tokens, tokens * 16, heads, full_selection=2048, latent_dim=512, rope_dim=64,
                    peak_flops_per_s=1e15, hbm_bytes_per_s=3e12, coefficients=HOPPER,
                )
            )
            for tokens in (0.0, 16.0, 128.0, 1024.0)
        ]  # fmt: skip
        assert times[0] == 0
        assert np.all(np.diff(times) > 0)


def test_selection_takes_a_step_per_query_once_there_is_more_than_it_keeps():
    """1,024 entries kept of one per four tokens: 6,000 queries x 0.2 us begin where a prompt has more than 4,096 tokens."""
    kernel = replace(PLAIN, select_query_s=2e-7)

    def scoring_s(entries: float, c: SparseCoefficients) -> float:
        index = IndexShape(heads=64, dim=128, top_k=1024)
        time_s = index_time_s(
            entries, 1e6, 1e6, entries, queries=6000.0, index=index, peak_flops_per_s=2e15, hbm_bytes_per_s=3e12, coefficients=c
        )
        return float(time_s)

    assert scoring_s(1024.0, kernel) == scoring_s(1024.0, PLAIN)
    assert scoring_s(1500.0, kernel) - scoring_s(1500.0, PLAIN) == pytest.approx(1.2e-3)
