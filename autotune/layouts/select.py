"""CP-SAT selection of one configuration and its number of instances."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autotune.documents.plan import SolverSummary
from autotune.documents.problem import Objective
from autotune.layouts.families import Limits
from autotune.layouts.table import LayoutTable
from cost_models.arrays import Ints

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

TIME_LIMIT_S = 20.0
MICRO = 1_000_000
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Instance:
    """Everything the model compares, as integers: demands rounded up, capacities down."""

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
    """The solver's answer and its proof."""

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


class Variables:
    """chosen[r] says that row r is the plan; instances[r] how many of it run."""

    def __init__(self, model: cp_model.CpModel, i: Instance) -> None:
        self.rows = range(len(i))
        self.chosen = [model.new_bool_var(f"chosen[{r}]") for r in self.rows]
        self.instances = [model.new_int_var(0, max(int(i.max_instances[r]), 0), f"instances[{r}]") for r in self.rows]

    def chosen_total(self, values: Ints) -> Any:
        """Value of the chosen row."""
        return sum(int(values[r]) * self.chosen[r] for r in self.rows)

    def total(self, values: Ints) -> Any:
        """Value summed over instances."""
        return sum(int(values[r]) * self.instances[r] for r in self.rows)


Named = tuple[str, Any]


def one_configuration(i: Instance, v: Variables) -> Iterable[Named]:
    """Exactly one row is chosen, and only its instances run."""
    yield "one_configuration", sum(v.chosen) == 1
    for r in v.rows:
        yield f"runs_only_if_chosen[{r}]", v.instances[r] <= int(max(i.max_instances[r], 0)) * v.chosen[r]
        yield f"chosen_runs[{r}]", v.instances[r] >= v.chosen[r]


def gpu_budget(i: Instance, v: Variables) -> Iterable[Named]:
    """Instances fit the GPU budget (their placement in domains bounds each count)."""
    yield "gpu_budget", v.total(i.gpus) <= i.gpu_budget


def gpu_memory(i: Instance, v: Variables) -> Iterable[Named]:
    """The chosen row fits each GPU's memory."""
    yield "gpu_memory", v.chosen_total(i.memory_mib) <= i.memory_limit_mib


def latency_limit(i: Instance, v: Variables) -> Iterable[Named]:
    """The chosen row meets the limit on the time per output token, or of one prompt."""
    yield "latency_limit", v.chosen_total(i.latency_us) <= i.latency_limit_us


def concurrency(i: Instance, v: Variables) -> Iterable[Named]:
    """All instances decode the required sequences at once."""
    if i.required_sequences:
        yield "concurrency", v.total(i.sequences) >= i.required_sequences


def throughput(i: Instance, v: Variables) -> Iterable[Named]:
    """All instances reach the required tokens per second."""
    if i.required_tokens_per_s:
        yield "throughput", v.total(i.tokens_per_s) >= i.required_tokens_per_s


MODEL_FAMILIES = (one_configuration, gpu_budget, gpu_memory, latency_limit, concurrency, throughput)


def select(i: Instance, *, seed: int = 0, excluded: Ints | None = None) -> Selection | None:
    """Best row and instance count, or None when CP-SAT proves that there is none.

    The primary objective is the row's score; ties go to the larger total throughput. excluded : rows
    of plans already returned (no-good cuts). Raises RuntimeError when the solver stops without an answer.
    """
    from ortools.sat.python import cp_model

    if not len(i):
        return None
    model = cp_model.CpModel()
    v = Variables(model, i)
    for family in MODEL_FAMILIES:
        for name, constraint in family(i, v):
            model.add(constraint).with_name(name)
    for row in () if excluded is None else excluded.tolist():
        model.add(v.chosen[row] == 0).with_name(f"no_good[{row}]")
    largest_total = int(np.max(i.tokens_per_s * np.maximum(i.max_instances, 0), initial=0)) + 1
    model.maximize(largest_total * v.chosen_total(i.score) + v.total(i.tokens_per_s))
    answer = solved(model, seed, TIME_LIMIT_S)
    if answer is None:
        return None
    solver, proof = answer
    row = next(r for r in v.rows if solver.value(v.chosen[r]))
    return Selection(
        row=row,
        instances=solver.value(v.instances[row]),
        status=proof.status,
        objective=proof.objective,
        bound=proof.bound,
    )


Answer = tuple["cp_model.CpSolver", Proof]


def solved(model: cp_model.CpModel, seed: int, time_limit_s: float, *, presolve: bool = True) -> Answer | None:
    """A solver that holds an answer and its proof, or None when CP-SAT proves that there is none.

    The same seed gives the same answer. Raises RuntimeError when the solver stops without either.
    """
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.cp_model_presolve = presolve
    solver.parameters.random_seed = seed
    solver.parameters.max_time_in_seconds = time_limit_s
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise RuntimeError(f"CP-SAT stopped with {solver.status_name(status)}: not proven either way")
    return solver, Proof(solver.status_name(status), solver.objective_value, solver.best_objective_bound)


def select_top(i: Instance, layout: Ints, k: int, *, seed: int = 0) -> list[Selection]:
    """The k best plans with distinct layouts, best first; fewer when there are no more."""
    selections: list[Selection] = []
    excluded = np.zeros(0, dtype=np.int64)
    while len(selections) < k:
        found = select(i, seed=seed, excluded=excluded)
        if found is None:
            break
        selections.append(found)
        excluded = np.flatnonzero(np.isin(layout, layout[[s.row for s in selections]]))
        if len(excluded) == len(i):
            break
    return selections
