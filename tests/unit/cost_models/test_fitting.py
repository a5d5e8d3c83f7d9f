"""Fits: round trips from known coefficients, refusals, and the held-out split."""

from __future__ import annotations

import numpy as np
import pytest

from cost_models.attention.decode import (
    DecodeAttentionCoefficients,
    fit_gqa_decode,
    fit_mla_decode,
    gqa_decode_time_s,
    mla_decode_time_s,
)
from cost_models.collectives import AllReduceCoefficients, all_reduce_time_s, fit_all_reduce
from cost_models.dense_gemm import DenseGemmCoefficients, dense_gemm_time_s, fit_dense_gemm
from cost_models.fitting import Coefficient, FitError, fit_coefficients, held_out_mask
from cost_models.grouped_gemm import GroupedGemmCoefficients, fit_grouped_gemm, grouped_gemm_time_s
from cost_models.links import Links

GPU = {"peak_flops_per_s": 989e12, "hbm_bytes_per_s": 4.8e12}
NOISE = 0.03


def noisy(times: np.ndarray, seed: int = 0) -> np.ndarray:
    """3 % log-normal noise, and one row in fifty twice as slow, as glitches in real tables are."""
    rng = np.random.default_rng(seed)
    glitch = np.where(rng.random(len(times)) < 0.02, 2.0, 1.0)
    return times * np.exp(NOISE * rng.standard_normal(len(times))) * glitch


def grid(*axes: list[float]) -> list[np.ndarray]:
    return [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]


def test_dense_gemm_round_trip():
    true = DenseGemmCoefficients(3e-6, 0.8, 0.85, 2.5, k_prologue=100, tile_fill=1.0, cta_bandwidth_share=0.9, split_start_s=2e-6)
    m, n, k = grid(
        [1, 8, 32, 64, 128, 256, 512, 1024, 4096], [512, 1536, 2112, 4096, 7168, 24576], [512, 1536, 2048, 7168, 16384]
    )
    shape = {"weight_bytes": 2.0, "activation_bytes": 2.0, "processors": 132.0, **GPU}
    measured = noisy(dense_gemm_time_s(m, n, k, coefficients=true, **shape))
    fit = fit_dense_gemm(m, n, k, measured, architecture="hopper", quantised=False, **shape)
    assert fit.median_error < 0.03
    assert abs(fit.bias) < 0.03
    predicted = dense_gemm_time_s(m, n, k, coefficients=DenseGemmCoefficients(**fit.values), **shape)
    clean = dense_gemm_time_s(m, n, k, coefficients=true, **shape)
    assert np.median(np.abs(predicted / clean - 1)) < 0.02
    assert fit.values["memory_efficiency"] == pytest.approx(0.85, rel=0.05)


def test_a_gemm_fit_has_the_tiles_of_its_architecture():
    m, n, k = grid([1, 16, 64, 128, 512, 2048], [512, 2112, 4096, 7168], [512, 1536, 7168])
    shape = {"weight_bytes": 2.0, "activation_bytes": 2.0, "processors": 148.0, **GPU}
    true = DenseGemmCoefficients(3e-6, 0.8, 0.85, 2.5, split_start_s=2e-6, instruction_rows=128.0)
    measured = dense_gemm_time_s(m, n, k, coefficients=true, **shape)
    own, other = (fit_dense_gemm(m, n, k, measured, architecture=a, quantised=False, **shape) for a in ("blackwell", "hopper"))
    assert own.values["instruction_rows"] == 128.0
    assert "instruction_rows" not in other.values
    assert own.median_error < other.median_error


def test_all_reduce_fit_finds_where_the_engines_own_kernel_ends():
    links = Links(72, 900e9, 50e9, node_gpus=4)
    true = AllReduceCoefficients(
        4e-6, 4e-7, 0.5, 0.65, 1e-5, 7e-6, own_ranks=8.0, ring_step_s=1.4e-6, switch_start_s=4.5e-5, ring_efficiency=0.65
    )
    size, n = grid([2.0**k for k in range(10, 28)], [2, 4, 8, 16])
    fit = fit_all_reduce(size, n, noisy(all_reduce_time_s(size, n, links=links, coefficients=true)), links=links)
    assert fit.values["own_ranks"] == 8.0
    assert fit.values["switch_start_s"] == pytest.approx(4.2e-5, rel=0.1)  # 30 steps of 1.4 us are just short of it
    assert fit.median_error < 0.03


def test_mla_decode_round_trip_and_extrapolation_in_context():
    true = DecodeAttentionCoefficients(1.2e-5, 0.65, 0.9, 2.5, 0.2, 6e-6, 2000, 6e-6, 1.0, 0.95)
    b, s, h = grid([1, 4, 16, 64, 256], [64, 512, 1024, 2048, 4096, 65536], [8, 16, 32, 64, 128])
    shape = {"latent_dim": 512, "rope_dim": 64, "kv_bytes": 2.0, "processors": 132.0, **GPU}
    clean = mla_decode_time_s(b, s, h, 1, coefficients=true, **shape)
    near = s <= 4096
    fit = fit_mla_decode(b[near], s[near], h[near], noisy(clean[near]), **shape)
    far = mla_decode_time_s(b[~near], s[~near], h[~near], 1, coefficients=DecodeAttentionCoefficients(**fit.values), **shape)
    assert np.median(np.abs(far / clean[~near] - 1)) < 0.05


def test_gqa_decode_round_trip():
    true = DecodeAttentionCoefficients(1e-5, 0.3, 0.85, 0.0, 0.5, 4e-6, 500, 4e-6)
    b, s, g = grid([1, 4, 16, 64, 256], [64, 512, 2048, 8192, 32768], [1, 2, 4, 8])
    shape = {"head_dim": 128, "kv_bytes": 2.0, "processors": 132.0, **GPU}
    clean = gqa_decode_time_s(b, s, 8 * g, g, 1, coefficients=true, **shape)
    assert fit_gqa_decode(b, s, 8 * g, g, noisy(clean), **shape).median_error < 0.05


def test_grouped_gemm_round_trip():
    true = GroupedGemmCoefficients(2e-5, 0.6, 0.9, 2.3, 2.0, 1.5, 2e-7)
    tokens, local, tp = grid([1, 4, 16, 64, 256, 1024, 4096, 16384], [8, 32, 64, 256], [1, 2, 4])
    pairs = np.maximum(tokens * 8 * local / 256, 1)
    active = np.minimum(local, pairs)
    shape = {"weight_bytes": 1.0, "activation_bytes": 1.0, **GPU}
    layer = {"hidden": 7168, "intermediate": 2048}
    clean = grouped_gemm_time_s(pairs, local, active, tokens, tp, coefficients=true, **layer, **shape)
    fit = fit_grouped_gemm(pairs, local, active, tokens, tp, latency_s=noisy(clean), **layer, **shape)
    assert fit.median_error < 0.04
    assert fit.values["start_s"] == pytest.approx(2e-5, rel=0.1)


def line(values, rows, x):
    return values["a"] + values["b"] * x[rows]


def test_intervals_cover_the_truth_and_residuals_give_the_conformal_range():
    x = np.linspace(1, 50, 400)
    measured = (2.0 + 0.5 * x) * np.exp(0.05 * np.random.default_rng(3).standard_normal(400))
    start = {"a": Coefficient(1.0, 0.1, 10), "b": Coefficient(1.0, 0.1, 10)}
    fit = fit_coefficients(lambda v, r: line(v, r, x), measured, start, held_out_mask(x[:, None].tolist()))
    assert fit.ci95["a"][0] < 2.0 < fit.ci95["a"][1]
    assert fit.ci95["b"][0] < 0.5 < fit.ci95["b"][1]
    # 10 % and 90 % quantiles of log-normal noise of 0.05: exp(+-1.28 * 0.05)
    assert fit.ratio_80 == pytest.approx((0.938, 1.066), abs=0.025)
    assert 40 < fit.held_out < 120


def test_held_out_shapes_stay_together_and_do_not_move():
    shapes = [(n, k) for n in range(50) for k in range(4)] * 3
    mask = held_out_mask(shapes)
    assert 0.1 < mask.mean() < 0.3
    by_shape: dict[tuple[int, int], set[bool]] = {}
    for shape, held in zip(shapes, mask, strict=True):
        by_shape.setdefault(shape, set()).add(bool(held))
    assert all(len(values) == 1 for values in by_shape.values())
    assert np.array_equal(mask, held_out_mask(shapes))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_latencies_that_are_not_positive_are_refused(bad):
    x = np.arange(1.0, 40)
    measured = x.copy()
    measured[5] = bad
    with pytest.raises(FitError, match="1 of 39 latencies"):
        fit_coefficients(lambda v, r: line(v, r, x), measured, {"a": Coefficient(1, 0.1, 9)}, held_out_mask(x[:, None].tolist()))


def test_too_few_rows_are_refused():
    x = np.arange(1.0, 5)
    start = {"a": Coefficient(1, 0.1, 9), "b": Coefficient(1, 0.1, 9)}
    with pytest.raises(FitError, match="2 coefficients need 6"):
        fit_coefficients(lambda v, r: line(v, r, x), x, start, np.array([False, False, False, True]))
