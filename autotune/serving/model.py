"""Deployment of a service -> the times that a replay needs, from the step cost models."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats
from cost_models.dispatch import BACKENDS
from cost_models.machine import Machine
from cost_models.prefill import PrefillCost, prefill_step
from cost_models.rows import Rows
from cost_models.specs.workload import Workload
from cost_models.step import decode_step

GRID = 28
"""Points of each tabulated curve, geometric; steps are smooth in batch and tokens."""
MOE_OPERATORS = frozenset(
    {
        "router", "shared_gate_up", "shared_down", "shared_stream", "dispatch", "experts", "combine", "moe_elementwise",
        "moe_all_reduce", "eplb_moves", "overlap",
    }
)  # fmt: skip
"""Work that attention-DP ranks share, so it follows the mean of their tokens; the rest follows the busiest rank."""


@dataclass(frozen=True, slots=True)
class ServiceCoefficients:
    """Per engine."""

    frontend_s: float
    """Tokenising, HTTP and scheduling before a prompt can start [s]."""
    transfer_s: float
    """Fixed time of handing a KV cache over [s]."""
    prefill_switch_s: float
    """What an aggregated engine adds to every prefill step: leaving the decode loop, scheduling, allocation [s]."""
    mixed: float
    """1 where prompts join decode steps, 0 where they get steps of their own [-]."""


def interrupted_step_s(step_s: ArrayLike, prefill_s: ArrayLike, rate_per_s: ArrayLike, looks_s: ArrayLike) -> Floats:
    """Seconds per decode step of an aggregated engine whose prompts come at random.

    A renewal argument: a prefill step of `prefill_s`, at least `looks_s` of decode before the engine looks again, and,
    if nothing came meanwhile (probability exp(-rate x both)), the mean wait 1 / rate for the next prompt. Of that cycle
    everything but the prefill step decodes.
    """
    step, prefill, rate, looks = (as_floats(x) for x in np.broadcast_arrays(step_s, prefill_s, rate_per_s, looks_s))
    decoding = looks + np.exp(-rate * (prefill + looks)) / np.maximum(rate, 1e-12)
    return step * (prefill + decoding) / decoding


def curve(x: Floats, y: Floats) -> Callable[[float], float]:
    """Linear interpolation in a table; beyond its end along the last segment."""
    xs, ys = x.tolist(), y.tolist()
    slopes = [(b - a) / (right - left) for left, right, a, b in zip(xs, xs[1:], ys, ys[1:], strict=False)] or [0.0]

    def at(value: float) -> float:  # scalar bisection: several times as fast as np.interp, and a replay asks 100,000 times
        if value <= xs[0]:
            return float(ys[0])
        left = min(bisect.bisect_right(xs, value) - 1, len(slopes) - 1)
        return float(ys[left] + slopes[left] * (value - xs[left]))

    return at


def decode_curve(machine: Machine, row: Rows, workload: Workload, most: float) -> Callable[[float], float]:
    """Sequences in one decode worker -> seconds per token, at the workload's mean context.

    row : one candidate row; its batch is replaced. Below one sequence per rank the step is that of one.
    """
    ranks = float(row.dp[0])
    batch = np.unique(np.rint(np.geomspace(1, max(most / ranks, 2), GRID)))
    cost = decode_step(machine, row.replace(batch=batch.astype(np.int64)), workload.context_tokens, workload.mtp_acceptance)
    return curve(batch * ranks, cost.tpot_s)


@dataclass(frozen=True, slots=True)
class PrefillCurves:
    """A prefill step's time in parts, by tokens per rank."""

    busiest: Callable[[float], float]
    """What follows the tokens of the busiest rank [s]."""
    shared: Callable[[float], float]
    """What follows the mean [s]."""
    step_start_s: float
    """What every step costs on top, whatever its tokens [s]."""
    gaps: Callable[[float], float]
    """Eager-launch gaps inside `busiest`: time that a decode step in the same pass would fill [s]."""

    def step_s(self, busy_tokens: float, mean_tokens: float) -> float:
        return self.step_start_s + self.busiest(busy_tokens) + self.shared(mean_tokens)

    def extra_s(self, busy_tokens: float, mean_tokens: float, decode_s: float, mixed: bool) -> float:
        """Seconds that running sequences lose: the whole step, or what it adds to the decode step it joins."""
        whole = self.step_s(busy_tokens, mean_tokens)
        if not mixed or not decode_s:
            return whole
        gaps = self.gaps(busy_tokens)
        return max(whole, decode_s + whole - gaps) - decode_s


def prefill_kernels(rows: Rows) -> Rows:
    """Rows with the all-to-all that they prefill with: DeepEP's low-latency kernels are for decode, the normal ones step in."""
    low_latency, normal = BACKENDS.index("deepep_low_latency"), BACKENDS.index("deepep_normal")
    return rows.replace(backend=np.where(rows.backend == low_latency, normal, rows.backend))


def split_step(cost: PrefillCost) -> tuple[Floats, Floats, Floats]:
    """(busiest, shared, gaps) of costed prefill steps: what follows the busiest rank, what the mean, and launch gaps [s]."""
    shared, gaps = (_part(cost, names) for names in (MOE_OPERATORS, frozenset({"launch_gaps"})))
    return cost.step_s - shared, shared, gaps


def prefill_curves(
    machine: Machine, row: Rows, workload: Workload, budget_tokens: float, step_start_s: float = 0.0
) -> PrefillCurves:
    """Tabulate prefill steps of up to `budget_tokens` per rank; longer prompts are priced as one long step."""
    tokens = np.unique(np.rint(np.geomspace(16, max(budget_tokens, workload.isl_tokens, 32), GRID)))
    cost = prefill_step(machine, row.replace(batched_tokens=tokens.astype(np.int64), graph_tokens=0), workload)
    busiest, shared, gaps = split_step(cost)
    return PrefillCurves(curve(tokens, busiest), curve(tokens, shared), step_start_s, curve(tokens, gaps))


def _part(cost: PrefillCost, names: frozenset[str]) -> Floats:
    chosen = [timing.time_s for name, timing in cost.operators.items() if name in names]
    return np.sum(chosen, axis=0) if chosen else np.zeros(len(cost.step_s))
