"""Window and interval of expert rebalancing: fresh estimates against noise and moves, priced for one layout."""

from __future__ import annotations

import numpy as np

from autotune.documents.plan import RebalancingPoint
from autotune.layouts.table import phase_of
from autotune.resolving import ResolvedProblem
from cost_models.moe_layer import imbalance
from cost_models.rows import Rows
from search_spaces.schema import Value

WINDOWS_STEPS = (100, 300, 1000, 3000)
INTERVALS_STEPS = (300, 1000, 3000, 10000, 30000, 100000)


def rebalancing_curve(resolved: ResolvedProblem, row: Rows) -> list[RebalancingPoint]:
    """The best window of every interval; empty where nothing is rebalanced."""
    if not row.eplb[0] or not row.eplb_interval_steps[0]:
        return []
    windows, intervals = (grid.ravel() for grid in np.meshgrid(WINDOWS_STEPS, INTERVALS_STEPS))
    allowed = windows <= intervals
    chosen = {"eplb_window_steps": windows[allowed], "eplb_interval_steps": intervals[allowed]}
    rows = row.take(np.zeros(int(allowed.sum()), dtype=np.int64)).replace(**chosen)
    phase, workload = phase_of(resolved), resolved.problem.workload
    rate = phase.cost(resolved.machine, rows, workload).tokens_per_s_per_gpu
    ratio = imbalance(resolved.machine, rows, phase.size_of(rows) * (1.0 + rows.drafts) / rows.pp)
    points = [
        RebalancingPoint(window_steps=int(w), interval_steps=int(i), max_over_mean=float(r), tokens_per_s_per_gpu=float(t))
        for w, i, r, t in zip(rows.eplb_window_steps, rows.eplb_interval_steps, ratio, rate, strict=True)
    ]
    return [max((p for p in points if p.interval_steps == i), key=_rate) for i in INTERVALS_STEPS]


def best_rebalancing(resolved: ResolvedProblem, row: Rows) -> dict[str, Value]:
    """Window and interval with the highest throughput, as knob values."""
    curve = rebalancing_curve(resolved, row)
    if not curve:
        return {}
    best = max(curve, key=_rate)
    return {"eplb_window_steps": best.window_steps, "eplb_interval_steps": best.interval_steps}


def _rate(point: RebalancingPoint) -> float:
    return point.tokens_per_s_per_gpu
