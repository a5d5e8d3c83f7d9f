"""CP-SAT on the GPUs that matter: the busiest ones and some others packed again exactly, hinted with how they are.

Swaps stop where no single exchange helps; packing a few GPUs at once goes on from there. With a budget of moves the same
model keeps all but so many replicas where they are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autotune.cp_sat import load_cp_model
from autotune.placement.solve import counts_of, gpu_loads, lower_bound, normalised, worst_gpu
from cost_models.arrays import Floats, Ints

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

SCALE = 10**7
"""Integer units of a layer's whole load."""
NEIGHBOURS = 7
"""GPUs packed together with the busiest one."""
ROUND_SECONDS = 0.5
SETTLED = 1e-5
"""Relative relief that is not worth another round."""
STUCK_ROUNDS = 3
"""Rounds with other neighbours before the busiest GPU counts as settled."""
WORKERS = 2


@dataclass(frozen=True, slots=True)
class Held:
    """A placement that is in use, and how many replicas of it may move."""

    placed: Ints
    """(gpus, slots per GPU)."""
    max_moves: int

    def of(self, gpus: Ints, elsewhere: int) -> Held:
        """What some GPUs hold, with the moves that the others leave."""
        return Held(self.placed[gpus], self.max_moves - elsewhere)


def moves_between(held: Ints, placed: Ints) -> int:
    """Replicas that some GPU must receive, of placements (gpus, slots per GPU)."""
    experts = int(max(held.max(), placed.max())) + 1
    missing = [
        np.bincount(new, minlength=experts) - np.bincount(old, minlength=experts) for old, new in zip(held, placed, strict=True)
    ]
    return int(np.maximum(missing, 0).sum())


def repack(loads: Floats, placed: Ints, seconds: float, held: Held | None = None, seed: int = 0) -> Ints:
    """A placement (gpus, slots per GPU) whose busiest GPU carries no more in the worst scenario; replica counts stay.

    loads : (scenarios, experts). Stops at the lower bound, when the busiest GPU is settled, or after `seconds`.
    """
    shares = normalised(loads)
    bound = lower_bound(loads, placed.size, len(placed))
    rng = np.random.default_rng(seed)
    end = time.perf_counter() + seconds
    stuck = 0
    while stuck < STUCK_ROUNDS and time.perf_counter() < end and worst_gpu(shares, placed) > bound * (1 + SETTLED):
        better = _round(shares, placed, min(ROUND_SECONDS, end - time.perf_counter()), held, rng)
        stuck = stuck + 1 if better is None else 0
        placed = placed if better is None else better
    return placed


def _round(shares: Floats, placed: Ints, seconds: float, held: Held | None, rng: np.random.Generator) -> Ints | None:
    """The busiest GPU and some others packed again; None when that does not relieve the busiest of them."""
    carried = gpu_loads(shares, placed).max(axis=0)
    order = np.argsort(-carried, kind="stable")
    lighter = order[len(order) // 2 :]
    chosen = np.concatenate([order[:1], rng.choice(lighter, size=min(NEIGHBOURS, len(lighter)), replace=False)])
    others = np.setdiff1d(order, chosen)
    part = held.of(chosen, moves_between(held.placed[others], placed[others]) if len(others) else 0) if held else None
    found = packed(shares / counts_of(placed, shares.shape[1]), placed[chosen], seconds, part)
    if found is None:
        return None
    changed = placed.copy()
    changed[chosen] = found
    relieved = gpu_loads(shares, changed).max(axis=0)[chosen].max() < carried[order[0]] * (1 - SETTLED)
    return changed if relieved else None


def packed(share: Floats, placed: Ints, seconds: float, held: Held | None = None) -> Ints | None:
    """The replicas of some GPUs (gpus, slots) packed so that the busiest carries least; None when nothing was found.

    share : (scenarios, experts), load of one replica. held : what these GPUs hold now, and how much of it may move.
    """
    cp_model = load_cp_model()
    model = cp_model.CpModel()
    gpus, slots = placed.shape
    experts, counts = np.unique(placed, return_counts=True)
    units = np.rint(share[:, experts] * SCALE).astype(np.int64)
    if (counts > gpus).any():
        return None  # an expert more often than GPUs: two replicas on one, which only swaps handle
    holds = [[model.new_bool_var("") for _ in range(gpus)] for _ in experts]
    for row, count in zip(holds, counts.tolist(), strict=True):
        model.add(sum(row) == count)
    busiest = model.new_int_var(0, int(units.sum(axis=1).max() * slots), "")
    for gpu in range(gpus):
        model.add(sum(row[gpu] for row in holds) == slots)
        for scenario in units.tolist():
            model.add(sum(int(load) * row[gpu] for load, row in zip(scenario, holds, strict=True)) <= busiest)
    before = np.array([[(placed[gpu] == expert).any() for gpu in range(gpus)] for expert in experts])
    for row, there in zip(holds, before.tolist(), strict=True):
        for variable, value in zip(row, there, strict=True):
            model.add_hint(variable, value)
    if held is not None:
        index = {int(expert): row for expert, row in zip(experts, holds, strict=True)}
        kept = [index[e][gpu] for gpu, slots_held in enumerate(held.placed.tolist()) for e in set(slots_held) if e in index]
        model.add(sum(kept) >= placed.size - held.max_moves)
    model.minimize(busiest)
    solver = best_within(model, seconds)
    if solver is None:
        return None
    found = [[int(e) for e, row in zip(experts, holds, strict=True) if solver.boolean_value(row[gpu])] for gpu in range(gpus)]
    return np.array(found, dtype=np.int64).reshape(-1, slots)


def best_within(model: cp_model.CpModel, seconds: float) -> cp_model.CpSolver | None:
    """A solver that holds the best answer of that time; None where it found none. Nothing has to be proven."""
    cp_model = load_cp_model()
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(seconds, 0.01)
    solver.parameters.num_workers = WORKERS
    solver.parameters.random_seed = 0
    return solver if solver.solve(model) in (cp_model.OPTIMAL, cp_model.FEASIBLE) else None
