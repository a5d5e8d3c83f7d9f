"""Expert-load balance against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from cost_models.balance import (
    combined_max_over_mean,
    expected_active_experts,
    expected_tiles,
    normal_quantile,
    skew_prior,
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


@pytest.mark.parametrize(("ranks", "tokens"), [(8, 32), (8, 128), (16, 64), (32, 16), (64, 16)])
def test_closed_form_agrees_with_simulation_within_two_per_cent(ranks, tokens):
    simulated = simulated_max_over_mean(tokens, ranks, 256, 8, rounds=60)
    assert uniform_max_over_mean(tokens, ranks, 256, 8) == pytest.approx(simulated, rel=0.02)


def test_imbalance_vanishes_with_many_tokens_and_for_one_rank():
    assert uniform_max_over_mean(10**9, 64, 256, 8) == pytest.approx(1.0, abs=1e-4)
    assert uniform_max_over_mean(100, 1, 256, 8) == 1.0
    assert uniform_max_over_mean(0, 8, 256, 8) == 1.0


def test_skew_prior_interpolates_in_log_ranks_and_stops_at_the_table():
    table = {"8": 1.06, "32": 1.26}
    assert skew_prior([1, 8, 16, 32, 256], table).tolist() == pytest.approx([1.0, 1.06, 1.16, 1.26, 1.26])


def test_independent_excesses_add_in_quadrature():
    assert combined_max_over_mean(1.3, 1.4) == pytest.approx(1.5)


def test_active_experts_by_hand():
    # 10 draws over 4: 4 (1 - (3/4)^10) = 3.775; one expert: active once there is a pair
    assert expected_active_experts(10, 4) == pytest.approx(3.775, rel=1e-3)
    assert expected_active_experts([0, 5], [1, 1]).tolist() == [0, 1]


@pytest.mark.parametrize("mean", [0.5, 20, 100, 127, 128, 200, 1000, 20000])
def test_expected_tiles_agree_with_poisson_sampling(mean):
    sample = np.random.default_rng(0).poisson(mean, 200_000)
    assert expected_tiles(mean, 128) == pytest.approx(np.ceil(sample / 128).mean(), rel=0.02)


def test_normal_quantile_by_table():
    assert normal_quantile([0.5, 0.975]).tolist() == pytest.approx([0.0, 1.959964], abs=1e-6)
