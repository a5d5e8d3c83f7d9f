"""Rebalancing experts while serving: what stale and noisy load estimates leave uneven, and what moving experts costs.

An expert's log load wanders about its mean (Ornstein-Uhlenbeck): two of its loads `age` steps apart differ by
`drift_sigma^2 (1 - exp(-age / drift_steps))` in variance. A rebalance sees the mean of a window of steps, sampled with as many
picks as tokens made in it, and holds until the next one.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats, evaluate_distinct
from cost_models.balance import blom_quantile, popularity_quantiles

BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class EplbDynamics:
    """How loads wander and what a rebalance moves; docs/models/balance.md."""

    drift_sigma: float
    """Standard deviation of the log ratio of an expert's loads at two distant times [-]."""
    drift_steps: float
    """Correlation time of expert load [step]."""
    moved_share: float
    """Share of local experts that a rebalance moves [-]."""
    policy_s_per_slot: float
    """CPU time of the placement algorithm per physical expert and layer [s]."""
    layer_s: float
    """What a synchronous move of one layer takes beside its bytes: preparing and posting its transfers [s]."""
    async_layer_s: float
    """What an asynchronous move of one layer takes from the step that it runs beside [s]."""


def slot_loads(slots: ArrayLike, experts: int, sigma: float, top_k: int) -> tuple[Floats, Floats]:
    r"""(sum over experts of p_e w_e, sum over experts of w_e), w_e the load of one replica of expert e, sum of p_e = 1.

    Replicas by min-max replication without rounding: :math:`w_e = \min(p_e, \lambda)` with :math:`\lambda` such that
    :math:`\sum \max(1, p_e/\lambda)` is the number of slots. p_e log-normal, at most 1 / top_k.
    """
    shares = _shares(experts, sigma, top_k)
    level = replica_level(slots, experts, sigma, top_k)
    replica = np.minimum(shares, level[..., None])
    return as_floats((replica * shares).sum(axis=-1)), as_floats(replica.sum(axis=-1))


def _shares(experts: int, sigma: float, top_k: int) -> Floats:
    shares = np.minimum(popularity_quantiles(sigma, experts) / experts, 1 / top_k)
    return as_floats(shares / shares.sum())


def replica_level(slots: ArrayLike, experts: int, sigma: float, top_k: int) -> Floats:
    """lambda of `slot_loads`: the load of the heaviest replica, as a share of all picks."""
    slots = as_floats(slots)
    return as_floats([_level(each, experts, sigma, top_k) for each in slots.ravel().tolist()]).reshape(slots.shape)


@functools.cache
def _level(slots: float, experts: int, sigma: float, top_k: int) -> float:
    shares = _shares(experts, sigma, top_k)
    low, high = 1e-9, float(shares.max())
    for _ in range(BISECTIONS):  # the number of replicas falls with the level
        level = math.sqrt(low * high)
        if np.maximum(shares / level, 1).sum() > slots:
            low = level
        else:
            high = level
    return high


def placed_max_over_mean(ranks: ArrayLike, slots: ArrayLike, experts: int, top_k: int, sigma: float) -> Floats:
    r"""Busiest rank / mean that a placement balanced at known loads leaves: :math:`\max(1, G \lambda)`.

    lambda : load of the heaviest replica (`slot_loads`): packing evens the rest out, but a rank takes no less than a whole
    replica. Without redundant experts the hottest one decides; with 32 of 288 it does so beyond 100 ranks at sigma 1.
    """

    def distinct(g: Floats, n: Floats) -> Floats:
        return np.maximum(g * replica_level(n, experts, sigma, top_k), 1.0)

    return as_floats(evaluate_distinct(distinct, ranks, slots)).reshape(np.broadcast(ranks, slots).shape)


def mean_drift_variance(age: ArrayLike, held: ArrayLike, dynamics: EplbDynamics) -> Floats:
    """Variance of the log ratio of loads to their estimate, averaged over `held` steps that begin `age` steps after it."""
    start, span = as_floats(age) / dynamics.drift_steps, np.maximum(as_floats(held) / dynamics.drift_steps, 1e-9)
    remaining = np.exp(-start) * -np.expm1(-span) / span
    return as_floats(dynamics.drift_sigma**2 * (1 - remaining))


def stale_max_over_mean(
    ranks: ArrayLike,
    slots: ArrayLike,
    picks_per_step: ArrayLike,
    window_steps: ArrayLike,
    interval_steps: ArrayLike,
    lag_steps: ArrayLike,
    *,
    experts: int,
    top_k: int,
    sigma: float,
    dynamics: EplbDynamics,
) -> Floats:
    r"""Busiest rank / mean that a placement balanced on its estimate has at the true loads, averaged over an interval.

    .. math::
        1 + \Phi^{-1}\!\left(\frac{G-0.375}{G+0.25}\right) \sqrt{G \Big(v \sum p_e w_e + \frac{\sum w_e}{N W}\Big)}

    v : drift variance (`mean_drift_variance` from the middle of the window), N W : picks seen in the window. Errors of one
    GPU's replicas are independent. interval_steps 0: never moved, so loads have drifted as far as they go. 1 where one rank
    holds everything.
    picks_per_step : tokens of the group times experts per token. Checked against simulation: docs/models/balance.md.
    """

    def distinct(g: Floats, s: Floats, n: Floats, w: Floats, i: Floats, lag: Floats) -> Floats:
        concentration, total = evaluate_distinct(lambda each: slot_loads(each, experts, sigma, top_k), s)
        drift = np.where(i > 0, mean_drift_variance(w / 2 + lag, i, dynamics), dynamics.drift_sigma**2)
        variance = g * (drift * concentration + total / np.maximum(n * w, 1))
        return np.where(g > 1, 1 + blom_quantile(g) * np.sqrt(variance), 1.0)

    return as_floats(evaluate_distinct(distinct, ranks, slots, picks_per_step, window_steps, interval_steps, lag_steps))


def moved_bytes(slots_per_rank: ArrayLike, expert_bytes: float, dynamics: EplbDynamics) -> Floats:
    """What one rank receives in one layer when experts are placed again [B]."""
    return as_floats(dynamics.moved_share * as_floats(slots_per_rank) * expert_bytes)


def rebalance_s(
    received_bytes: ArrayLike,
    slots: ArrayLike,
    link_bytes_per_s: ArrayLike,
    hbm_bytes_per_s: float,
    asynchronous: ArrayLike,
    dynamics: EplbDynamics,
) -> Floats:
    """Time that one layer's move takes from the steps [s].

    Synchronous: the forward pass waits for the placement algorithm and the transfer. Asynchronous: a thread receives one layer
    per step into a buffer, and the pass waits only while it joins in and the buffer is copied (read and written once).
    """
    received = as_floats(received_bytes)
    waiting = dynamics.layer_s + received / as_floats(link_bytes_per_s) + dynamics.policy_s_per_slot * as_floats(slots)
    beside = dynamics.async_layer_s + 2 * received / hbm_bytes_per_s
    return np.where(as_floats(asynchronous) > 0, beside, waiting)
