"""Expert-load balance against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from cost_models.balance import (
    REAL_TRAFFIC_SIGMA,
    active_experts_slope,
    busiest_active_experts,
    combined_max_over_mean,
    expected_active_experts,
    expected_tiles,
    in_order_max_over_mean,
    lumped_variance,
    normal_quantile,
    picks_variance,
    popularity_quantiles,
    uniform_max_over_mean,
)


def simulated_max_over_mean(tokens: int, ranks: int, experts: int, top_k: int, rounds: int = 300) -> float:
    """Uniform top-k routing without replacement, contiguous experts."""
    rng = np.random.default_rng(1)
    ratios = []
    for _ in range(rounds):
        keys = rng.random((tokens * ranks, experts))
        chosen = np.argpartition(keys, top_k, axis=1)[:, :top_k]
        load = np.bincount((chosen // (experts // ranks)).ravel(), minlength=ranks)
        ratios.append(load.max() / load.mean())
    return float(np.mean(ratios))


@pytest.mark.parametrize(
    ("ranks", "tokens"), [(8, 32), (8, 128), (16, 64), (32, 16), (64, 16), (8, 4), (32, 2), (64, 4), (128, 1)]
)
def test_closed_form_agrees_with_simulation_within_two_per_cent(ranks, tokens):
    simulated = simulated_max_over_mean(tokens, ranks, 256, 8, rounds=60 if tokens * ranks >= 512 else 400)
    assert uniform_max_over_mean(tokens, ranks, 256, 8) == pytest.approx(simulated, rel=0.02)


def test_imbalance_vanishes_with_many_tokens_and_for_one_rank():
    assert uniform_max_over_mean(10**9, 64, 256, 8) == pytest.approx(1.0, abs=1e-4)
    assert uniform_max_over_mean(100, 1, 256, 8) == 1.0
    assert uniform_max_over_mean(0, 8, 256, 8) == 1.0


@pytest.mark.parametrize(("gpus", "slots", "published", "within"), [(8, 256, 1.49, 0.10), (16, 256, 1.63, 0.05)])
def test_one_popularity_gives_the_published_balancedness_without_eplb(gpus, slots, published, within):
    # LMSYS large-scale EP, figure of balancedness, inverted; the averages of mean / max there are low by 4-13 % (Jensen)
    assert in_order_max_over_mean(gpus, slots, 256, 8, REAL_TRAFFIC_SIGMA) == pytest.approx(published, rel=within)


def test_one_popularity_explains_the_fall_of_throughput_without_eplb_at_72_gpus():
    # 1,088 of 2,785 tokens/s/GPU: combine and dispatch, 113 of 129 ms at 2.1, are linear in the ratio, which must be 4.3
    assert in_order_max_over_mean(72, 288, 256, 8, REAL_TRAFFIC_SIGMA) == pytest.approx(4.3, rel=0.15)


def test_experts_in_order_by_hand():
    assert in_order_max_over_mean([1, 8], 256, 256, 8, 1.07)[0] == 1.0  # one rank holds everything
    assert in_order_max_over_mean([8, 64], 256, 256, 8, 0.0).tolist() == [1.0, 1.0]  # all alike
    few = in_order_max_over_mean([2, 8, 32], 256, 256, 8, 1.07)
    assert np.all(np.diff(few) > 0)  # fewer experts a rank even out less
    assert np.all(in_order_max_over_mean([2, 8, 32], 256, 256, 8, 1.57) > few)
    # no rank gets more than every token once: top_k of 8 picks, i.e. G / 8 of the mean for one expert a rank
    assert in_order_max_over_mean(256, 256, 256, 8, 4.0) <= 256 / 8 * 1.001


def test_experts_in_order_against_routed_tokens():
    # 256 experts on 8 ranks; every token draws its top 8 by Gumbel noise over log popularity
    rng = np.random.default_rng(3)
    ratios = []
    for _ in range(20):
        scores = rng.normal(0, 1.07, 256) + rng.gumbel(size=(2000, 256))
        chosen = np.argpartition(-scores, 8, axis=1)[:, :8]
        load = np.bincount((chosen // 32).ravel(), minlength=8)
        ratios.append(load.max() / load.mean())
    assert in_order_max_over_mean(8, 256, 256, 8, 1.07) == pytest.approx(np.mean(ratios), rel=0.08)


def test_independent_excesses_add_in_quadrature():
    assert combined_max_over_mean(1.3, 1.4) == pytest.approx(1.5)


def test_active_experts_under_uniform_routing():
    # one token activates top_k experts; 48 tokens 256 (1 - (1 - 8/256)^48) = 200.2; half the experts, half of them
    assert expected_active_experts([1, 48], 256, 256, 8).tolist() == pytest.approx([8, 200.2], rel=1e-3)
    assert expected_active_experts(48, 128, 256, 8) == pytest.approx(100.1, rel=1e-3)


@pytest.mark.parametrize(("tokens", "measured"), [(1, 8.0), (4, 25.5), (16, 67.4), (48, 121.8), (128, 172.2), (512, 220.8)])
def test_active_experts_under_measured_skew(tokens, measured):
    # mean over 58 layers of sum 1 - (1 - q_e)^T, q_e from recorded DeepSeek-R1 loads (docs/models/balance.md)
    assert expected_active_experts(tokens, 256, 256, 8, sigma=1.57) == pytest.approx(measured, rel=0.04)


def test_skewed_routing_never_activates_more_experts_than_uniform():
    tokens = np.arange(1, 2000, 37)
    skewed = expected_active_experts(tokens, 256, 256, 8, sigma=1.57)
    assert np.all(skewed <= expected_active_experts(tokens, 256, 256, 8) + 1e-9)
    assert np.all(np.diff(skewed) > 0)


def test_popularity_quantiles_have_mean_one():
    assert popularity_quantiles(1.57).mean() == pytest.approx(1.0)
    assert popularity_quantiles(0.0).tolist() == [1.0] * 64


@pytest.mark.parametrize("tile", [8, 48.2, 128])
@pytest.mark.parametrize("mean", [0.5, 8, 20, 100, 127, 128, 200, 1000, 20000])
def test_expected_tiles_agree_with_poisson_sampling(mean, tile):
    sample = np.random.default_rng(0).poisson(mean, 200_000)
    assert expected_tiles(mean, tile) == pytest.approx(np.ceil(sample / tile).mean(), rel=0.02)


def test_expected_tiles_of_one_expert_do_not_depend_on_the_others():
    together = expected_tiles([3.0, 60.0, 5000.0], 8)
    assert together.tolist() == [float(expected_tiles(mean, 8)) for mean in (3.0, 60.0, 5000.0)]


def test_normal_quantile_by_table():
    assert normal_quantile([0.5, 0.975]).tolist() == pytest.approx([0.0, 1.959964], abs=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 1.57])
@pytest.mark.parametrize(("ranks", "tokens"), [(8, 16), (8, 64), (32, 16), (32, 64)])
def test_the_rank_with_most_active_experts_against_simulation(sigma, ranks, tokens):
    """Every token draws its top 8 of 256 by Gumbel noise over log popularity; experts lie on ranks as they come."""
    rng = np.random.default_rng(0)
    most = []
    for _ in range(200):
        scores = sigma * rng.standard_normal(256) + rng.gumbel(size=(tokens, 256))
        active = np.zeros(256, dtype=bool)
        active[np.argpartition(-scores, 8, axis=1)[:, :8].ravel()] = True
        most.append(active.reshape(ranks, -1).sum(axis=1).max())
    mean = expected_active_experts(tokens, 256 / ranks, 256, 8, sigma)
    assert busiest_active_experts(mean, 256 / ranks, ranks) == pytest.approx(np.mean(most), rel=0.04)


def test_the_busiest_rank_has_no_more_active_experts_than_it_holds_and_one_rank_has_the_mean():
    assert busiest_active_experts(31.9, 32, 8) == 32
    assert busiest_active_experts(12.0, 32, 1) == 12
    assert busiest_active_experts(0.0, 32, 8) == 0


GROUPS, CHOSEN = 8, 4
"""DeepSeek-V3's: a token chooses four of eight groups of 32 experts, then its eight experts among them."""


def simulated_groups(tokens: int, ranks: int, sigma: float, rounds: int = 200) -> tuple[float, float]:
    """(busiest load / mean, most active experts) of ranks that hold experts in order; a group scores by its best two experts."""
    rng = np.random.default_rng(0)
    ratios, most = [], []
    for _ in range(rounds):
        scores = (sigma * rng.standard_normal(256) + rng.gumbel(size=(tokens, 256))).reshape(tokens, GROUPS, -1)
        best = np.sort(scores, axis=2)[:, :, -2:].sum(axis=2)
        refused = np.argsort(best, axis=1)[:, : GROUPS - CHOSEN]
        np.put_along_axis(scores, refused[:, :, None], -np.inf, axis=1)
        chosen = np.argpartition(-scores.reshape(tokens, -1), 8, axis=1)[:, :8]
        picks = np.bincount(chosen.ravel(), minlength=256).reshape(ranks, -1)
        ratios.append(picks.sum(axis=1).max() * ranks / (tokens * 8))
        most.append((picks > 0).sum(axis=1).max())
    return float(np.mean(ratios)), float(np.mean(most))


@pytest.mark.parametrize("sigma", [0.0, REAL_TRAFFIC_SIGMA])
@pytest.mark.parametrize(("ranks", "tokens"), [(4, 4), (8, 1), (8, 4), (8, 16), (16, 16), (32, 16)])
def test_tokens_that_choose_groups_first_against_simulation(sigma, ranks, tokens):
    ratio, most = simulated_groups(tokens, ranks, sigma)
    noise = uniform_max_over_mean(tokens / ranks, ranks, 256, 8, GROUPS, CHOSEN)
    if sigma == 0:
        assert noise == pytest.approx(ratio, rel=0.05)
    mean = expected_active_experts(tokens, 256 / ranks, 256, 8, sigma)
    slope = active_experts_slope(tokens, 256 / ranks, 256, 8, sigma)
    lumps = lumped_variance(tokens, slope, ranks, 256, 8, GROUPS, CHOSEN)
    assert busiest_active_experts(mean, 256 / ranks, ranks, lumps) == pytest.approx(most, rel=0.06)


def test_choosing_groups_first_doubles_the_variance_of_what_a_token_gives_a_rank():
    # without groups, hypergeometric: 8 x 1/8 x 7/8 x 248/255; with them half of the tokens come, with 2 picks of variance
    # 8 x 1/4 x 3/4 x 120/127: (1.417 + 2^2) / 2 - 1
    assert picks_variance(8, 256, 8) == pytest.approx(0.851, abs=0.001)
    assert picks_variance(8, 256, 8, GROUPS, CHOSEN) == pytest.approx(1.709, abs=0.001)
    assert picks_variance(6, 256, 8, GROUPS, CHOSEN) == picks_variance(6, 256, 8)  # six ranks hold no whole groups


def test_the_slope_of_active_experts_is_their_derivative():
    before, after = expected_active_experts([15.99, 16.01], 32, 256, 8, 1.07)
    assert active_experts_slope(16, 32, 256, 8, 1.07) == pytest.approx((after - before) / 0.02, rel=1e-4)
