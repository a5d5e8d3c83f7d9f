"""Rebalancing: limits by hand, and the closed form beside simulated drifting loads."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.placement.drifting import Wandering, simulated_max_over_mean
from cost_models.rebalancing import (
    EplbDynamics,
    mean_drift_variance,
    moved_bytes,
    placed_max_over_mean,
    rebalance_s,
    replica_level,
    slot_loads,
    stale_max_over_mean,
)

DYNAMICS = EplbDynamics(
    drift_sigma=0.4, drift_steps=10_000, moved_share=0.9, policy_s_per_slot=6e-6, layer_s=9e-3, async_layer_s=1.5e-3,
)  # fmt: skip
SHAPE = {"experts": 256, "top_k": 8, "sigma": 1.7, "dynamics": DYNAMICS}


def test_slots_of_equal_experts_by_hand():
    concentration, total = slot_loads([256, 512], 256, 0.0, 8)
    assert concentration == pytest.approx([1 / 256, 1 / 512], rel=1e-6)  # 256 experts of 1/256, then two replicas of each
    assert total == pytest.approx([1.0, 0.5], rel=1e-6)


def test_a_whole_replica_is_the_least_that_a_rank_takes():
    # equal experts: every replica is 1/256, and 64 ranks of four are even; on 512 ranks half would stand idle
    assert placed_max_over_mean([8, 64], 256, 256, 8, 0.0).tolist() == [1.0, 1.0]
    assert replica_level(512, 256, 0.0, 8) == pytest.approx(1 / 512, rel=1e-6)
    # without spare slots the hottest expert decides; with 32 of 288 it no longer does at 72 ranks
    assert placed_max_over_mean(64, 256, 256, 8, 1.07) > 2
    assert placed_max_over_mean(72, 288, 256, 8, 1.07) == 1.0


@pytest.mark.parametrize(("gpus", "published"), [(8, 1.06), (16, 1.11), (32, 1.25), (72, 1.23)])
def test_published_balancedness_with_eplb(gpus, published):
    # LMSYS large-scale EP with 32 redundant experts, placed from a recording: what drift of 0.2 leaves
    static = dataclasses.replace(DYNAMICS, drift_sigma=0.2)
    shape = {"experts": 256, "top_k": 8, "sigma": 1.07, "dynamics": static}
    left = stale_max_over_mean(gpus, 288, 256 * 8 * gpus, 10_000, 0, 0, **shape)
    assert left == pytest.approx(published, abs=0.09)


def test_drift_variance_starts_at_nothing_and_ends_at_two_distant_times():
    assert mean_drift_variance(0, 1, DYNAMICS) == pytest.approx(0.16 * 0.5e-4, rel=1e-3)  # half a step on average
    assert mean_drift_variance(1e9, 1, DYNAMICS) == pytest.approx(0.16)


def test_a_rebalance_by_hand():
    received = moved_bytes(9, 44e6, DYNAMICS)
    assert received == pytest.approx(0.9 * 9 * 44e6)
    synchronous, asynchronous = rebalance_s(received, 288, 450e9, 4.8e12, [0, 1], DYNAMICS)
    assert synchronous == pytest.approx(9e-3 + 356.4e6 / 450e9 + 288 * 6e-6)
    assert asynchronous == pytest.approx(1.5e-3 + 2 * 356.4e6 / 4.8e12)


@given(
    st.sampled_from([8, 32, 72]), st.integers(10, 3000), st.integers(1, 30), st.integers(0, 100), st.floats(1e3, 1e6),
)  # fmt: skip
def test_waiting_longer_never_helps_and_more_tokens_never_hurt(ranks, window, factor, lag, picks):
    def ratio(interval, seen):
        return stale_max_over_mean(ranks, 288, seen, window, interval, lag, **SHAPE)[0]

    interval = window * factor
    assert 1.0 <= ratio(interval, picks) <= ratio(2 * interval, picks)
    assert ratio(interval, 2 * picks) <= ratio(interval, picks)
    assert ratio(0, picks) >= ratio(2 * interval, picks) * (1 - 1e-9)  # never moved: loads drift as far as they go
    assert stale_max_over_mean(1, 288, picks, window, interval, lag, **SHAPE)[0] == 1.0


@pytest.mark.parametrize(("gpus", "slots"), [(32, 288), (72, 360)])
@pytest.mark.parametrize(("tokens", "window", "interval"), [(2048, 100, 1000), (2048, 1000, 10_000), (64, 10, 1000)])
def test_closed_form_is_within_a_fifth_of_the_simulated_excess(gpus, slots, tokens, window, interval):
    rng = np.random.default_rng(0)
    cases = [
        simulated_max_over_mean(Wandering.drawn(256, 1.7, 8, DYNAMICS, rng), gpus, slots, tokens * 8, window, interval, 0, rng)
        for _ in range(30)
    ]
    simulated, known = np.mean(cases, axis=0)
    stale = stale_max_over_mean(gpus, slots, tokens * 8, window, interval, 0, **SHAPE)[0]
    predicted = 1 + np.hypot(known - 1, stale - 1)  # independent causes, as everywhere
    assert predicted - 1 == pytest.approx(simulated - 1, rel=0.2)
