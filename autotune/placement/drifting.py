"""Synthetic loads that wander, and how balanced a rebalanced placement stays on them: the oracle of `cost_models.rebalancing`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autotune.placement.eplb import global_placement
from autotune.placement.solve import gpu_loads, normalised
from cost_models.arrays import Floats, as_floats
from cost_models.rebalancing import EplbDynamics

WINDOW_SAMPLES = 8
"""Times at which loads are drawn within a window, and within an interval."""


@dataclass(frozen=True, slots=True)
class Wandering:
    """Log loads about a mean that stays: an Ornstein-Uhlenbeck process for every expert."""

    mean_log: Floats
    """(experts,)."""
    dynamics: EplbDynamics
    top_k: int

    @classmethod
    def drawn(cls, experts: int, spread: float, top_k: int, dynamics: EplbDynamics, rng: np.random.Generator) -> Wandering:
        """Experts whose loads spread by `spread` (standard deviation of log load) at any time."""
        fixed = np.sqrt(max(spread**2 - dynamics.drift_sigma**2 / 2, 0.0))
        return cls(as_floats(rng.normal(0, fixed, experts)), dynamics, top_k)

    def shares(self, times_steps: Floats, rng: np.random.Generator) -> Floats:
        """Shares of the picks at rising times, (times, experts), as one path; no expert gets more than 1 / top_k."""
        own = self.dynamics.drift_sigma / np.sqrt(2.0)
        state = rng.normal(0, own, len(self.mean_log))
        found = []
        for waited in np.diff(times_steps, prepend=times_steps[0]):
            kept = np.exp(-waited / self.dynamics.drift_steps)
            state = state * kept + rng.normal(0, own, len(state)) * np.sqrt(1 - kept**2)
            share = np.exp(self.mean_log + state)
            found.append(np.minimum(share / share.sum(), 1 / self.top_k))
        return normalised(as_floats(np.array(found)))


def simulated_max_over_mean(
    loads: Wandering,
    gpus: int,
    slots: int,
    picks_per_step: float,
    window_steps: int,
    interval_steps: int,
    lag_steps: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """(busiest GPU / mean over one interval, the same placed with the loads of the interval's middle known exactly).

    A window is recorded, EPLB places its counts, and after the lag the placement holds for the interval.
    """
    window = np.linspace(0, window_steps, WINDOW_SAMPLES)
    held = np.linspace(0, interval_steps, WINDOW_SAMPLES) + window_steps + lag_steps
    shares = loads.shares(as_floats(np.concatenate([window, held])), rng)
    picks = picks_per_step * window_steps / WINDOW_SAMPLES
    counted = rng.poisson(shares[:WINDOW_SAMPLES] * picks).sum(axis=0).astype(float)
    later = shares[WINDOW_SAMPLES:]
    middle = later[WINDOW_SAMPLES // 2]
    stale = gpu_loads(later, global_placement(as_floats(counted), slots, gpus)).max(axis=1).mean()
    known = gpu_loads(middle[None], global_placement(middle, slots, gpus)).max()
    return float(stale * gpus), float(known * gpus)
