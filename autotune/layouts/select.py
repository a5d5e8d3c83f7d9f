"""Selection of one configuration and its number of instances, and what every solver proves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autotune.cp_sat import load_cp_model
from autotune.documents.plan import SolverSummary
from autotune.documents.problem import Objective
from autotune.layouts.families import Limits
from autotune.layouts.table import LayoutTable
from cost_models.arrays import Ints

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

MICRO = 1_000_000
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Instance:
    """Everything that is compared, as integers: demands rounded up, capacities down."""

    gpus: Ints
    max_instances: Ints
    memory_mib: Ints
    latency_us: Ints
    sequences: Ints
    tokens_per_s: Ints
    score: Ints
    """Primary objective of one row."""
    gpu_budget: int
    memory_limit_mib: int
    latency_limit_us: int
    required_sequences: int
    required_tokens_per_s: int

    def __len__(self) -> int:
        return len(self.gpus)


@dataclass(frozen=True, slots=True)
class Proof:
    """What the solver proved about its answer."""

    status: str
    objective: float
    bound: float

    @property
    def gap(self) -> float:
        """Relative distance between objective and bound; 0 is proven optimal."""
        return abs(self.bound - self.objective) / max(abs(self.objective), 1e-9)

    def summary(self) -> SolverSummary:
        """The same as plans store it."""
        return SolverSummary(status=self.status, objective=self.objective, bound=self.bound, gap=self.gap)


@dataclass(frozen=True, slots=True)
class Selection(Proof):
    """A row, how many instances of it run, and the proof."""

    row: int
    instances: int


def instance_of(table: LayoutTable, limits: Limits, objective: Objective) -> Instance:
    """Quantise once: what a plan gives is rounded down, what it takes up.

    Limits round up too: a row that meets a limit exactly stays feasible, and rows that miss one by less
    than the quantum were dropped before, on the unrounded numbers.
    """
    tokens = np.floor(table.instance_tokens_per_s).astype(np.int64)
    latency_us = np.ceil(table.latency_s * MICRO - 1e-6).astype(np.int64)
    per_gpu = np.floor(table.tokens_per_s_per_gpu * 100).astype(np.int64)
    scores = {"tokens_per_s_per_gpu": per_gpu, "tokens_per_s": np.zeros_like(tokens), "tpot": -latency_us, "ttft": -latency_us}
    return Instance(
        gpus=table.rows.gpus,
        max_instances=table.max_instances,
        memory_mib=np.ceil(table.memory_bytes / MIB).astype(np.int64),
        latency_us=latency_us,
        sequences=table.instance_sequences,
        tokens_per_s=tokens,
        score=scores[objective],
        gpu_budget=limits.gpus,
        memory_limit_mib=int(np.ceil(limits.memory_bytes / MIB)),
        latency_limit_us=int(np.ceil(limits.latency_s * MICRO)),
        required_sequences=limits.sequences,
        required_tokens_per_s=int(np.floor(limits.tokens_per_s)),
    )


Named = tuple[str, Any]
"""A constraint with its name."""
ModelAnswer = tuple["cp_model.CpSolver", Proof]


def solved(
    model: cp_model.CpModel, seed: int, time_limit_s: float, *, presolve: bool = True, linear: bool = False
) -> ModelAnswer | None:
    """A solver that holds an answer and its proof, or None when CP-SAT proves that there is none.

    linear : bound by the linear relaxation of every constraint, for models that are sums of integers and little else. The same
    seed gives the same answer. Raises RuntimeError when the solver stops without either.
    """
    cp_model = load_cp_model()
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.cp_model_presolve = presolve
    solver.parameters.random_seed = seed
    if linear:
        solver.parameters.linearization_level = 2
    solver.parameters.max_time_in_seconds = time_limit_s
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise RuntimeError(f"CP-SAT stopped with {solver.status_name(status)}: not proven either way")
    return solver, Proof(solver.status_name(status), solver.objective_value, solver.best_objective_bound)


def select_top(i: Instance, layout: Ints, k: int) -> list[Selection]:
    """The k best plans with distinct layouts, best first; fewer when there are no more.

    Best by the row's score, then by the throughput of all instances; of equals the first row. Every requirement loosens as
    instances are added within the budget, so the best number of instances of a row is the largest, and sorting the rows is exact.
    """
    instances = np.minimum(i.max_instances, i.gpu_budget // i.gpus)
    total = instances * i.tokens_per_s
    allowed = (
        (instances >= 1)
        & (i.memory_mib <= i.memory_limit_mib)
        & (i.latency_us <= i.latency_limit_us)
        & (instances * i.sequences >= i.required_sequences)
        & (total >= i.required_tokens_per_s)
    )
    rows = np.flatnonzero(allowed)
    order = rows[np.lexsort((-total[rows], -i.score[rows]))]
    _, first = np.unique(layout[order], return_index=True)
    chosen = order[np.sort(first)[:k]].tolist()
    return [_selection(int(row), int(instances[row]), int(i.score[row])) for row in chosen]


def _selection(row: int, instances: int, score: int) -> Selection:
    return Selection(row=row, instances=instances, status="ENUMERATED", objective=float(score), bound=float(score))
