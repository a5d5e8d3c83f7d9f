"""Sliding windows against brute force: which key tiles and pairs are left, and what they cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.attention.gqa import GqaSpec
from cost_models.attention.prompt import KEY_TILE, key_tiles, seen_pairs
from cost_models.catalog import load_model, load_recipe
from tests.conftest import machine_of

WINDOW = st.sampled_from((1, 64, 127, 128, 129, 512, 1000, 4096))
TILE = st.sampled_from((128.0, 256.0))


def tiles_by_block(new: int, prefix: int, tile: float, window: float) -> int:
    """Prefix tiles and new tiles of every query block, less those wholly before what its first row sees."""
    total = 0
    for block in range(math.ceil(new / tile)):
        end = min((block + 1) * tile, math.ceil(new / KEY_TILE) * KEY_TILE)
        seen = math.ceil(prefix / KEY_TILE) + math.ceil(end / KEY_TILE)
        first_key = max(prefix + block * tile - window + 1, 0)
        total += seen - math.floor(first_key / KEY_TILE)
    return total


@given(st.integers(1, 6000), st.integers(0, 40).map(lambda n: n * KEY_TILE), TILE, WINDOW)
def test_key_tiles_of_a_window_are_those_counted_block_by_block(new, prefix, tile, window):
    assert key_tiles(new, prefix, tile, window) == tiles_by_block(new, prefix, tile, window)


@given(st.integers(1, 400), st.integers(0, 400), st.integers(1, 500))
def test_pairs_of_a_window_are_those_counted_query_by_query(new, prefix, window):
    assert seen_pairs(new, prefix, window) == sum(min(prefix + i + 1, window) for i in range(new))


def test_a_window_longer_than_the_prompt_hides_nothing():
    assert key_tiles(5000, 1000, 128.0, 10_000) == key_tiles(5000, 1000, 128.0)
    assert seen_pairs(5000, 1000, 10_000) == seen_pairs(5000, 1000)


def test_window_prefill_of_gpt_oss_is_one_launch_over_two_tiles_a_block():
    # 8,192 tokens in blocks of 128 after a window of 128: the first block sees 1 tile, the other 63 see 2: 127 of 2,080
    assert key_tiles(8192, 0, 128.0, 128) == 127
    assert key_tiles(8192, 0, 128.0) == 64 * 65 / 2
    kind = GqaSpec(heads=64, kv_heads=8, head_dim=64, window_tokens=128)
    machine = machine_of("hgx-h200", model="gpt-oss-120b", recipe="mxfp4")
    c = machine.calibration.entry("gqa_prefill", "bf16").coefficients
    one, many, none = np.ones(1), np.array([8192.0]), np.zeros(1)
    time_s, _ = kind.prefill(machine, one, many, none, one)["window_attention"]
    tile_s = 2 * 128 * 128 * 128 * 132 / machine.hardware.gpu.peak_flops_per_s("bf16") / c["compute_efficiency"]
    total_s = 64 * (64 * c["block_s"] + 127 * tile_s) / 132  # 64 heads of 64 blocks on 132 processors
    longest_s = c["block_s"] + 2 * tile_s
    moved_s = 8192 * 64 * 2 * (64 + 64) * 2 / machine.hbm_bytes_per_s
    kernel_s = (total_s ** c["sharpness"] + longest_s ** c["sharpness"]) ** (1 / c["sharpness"])
    assert time_s[0] == pytest.approx(c["start_s"] + kernel_s + c["copy_passes"] * moved_s, rel=1e-9)


def test_gpt_oss_keeps_half_the_layers_whole():
    # 18 of 36 layers hold 128 tokens: at 8,192 tokens (18 x 8,192 + 18 x 128) x 2 x 8 heads x 64 x 2 B = 306.7 MB
    bytes_ = load_model("gpt-oss-120b").state_bytes(8192, load_recipe("mxfp4"))
    assert bytes_ == (18 * 8192 + 18 * 128) * 2 * 8 * 64 * 2


def test_key_and_value_projections_stop_sharding_at_the_kv_heads():
    # Qwen3-235B: 64 query and 4 KV heads of 128; on TP8 a rank has 8 query heads and one key and one value head
    qkv = next(m for m in load_model("qwen3-235b-a22b").layer_matrices() if m.name == "qkv")
    assert [float(qkv.rank_n(tp)) for tp in (1, 4, 8)] == [9216, 9216 / 4, (8 + 2) * 128]
