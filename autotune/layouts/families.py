"""Constraint families of layout selection, and the naive validator that specifies them.

One plan is one row run as n identical instances. Each family is stated once, here, as a vectorised
check at a given number of instances; the CP-SAT model in `select` states the same inequalities.
Docstrings are the sentences shown to people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.layouts.table import LayoutTable
from autotune.resolving import ResolvedProblem
from cost_models.arrays import Floats, Ints


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers that constraints compare with."""

    gpus: int
    memory_bytes: float
    latency_s: float
    sequences: int
    tokens_per_s: float

    @classmethod
    def of(cls, resolved: ResolvedProblem, gpus: int | None = None) -> Limits:
        problem = resolved.problem
        return cls(
            gpus or resolved.gpus,
            resolved.memory_limit_bytes,
            resolved.latency_limit_s,
            problem.min_concurrency,
            problem.min_tokens_per_s,
        )


def gpu_budget(table: LayoutTable, n: Ints, limits: Limits) -> Floats:
    """An instance fits the GPU budget and its scale-up domain."""
    return np.maximum(table.rows.gpus * np.maximum(n, 1) / limits.gpus, np.where(table.max_instances < 1, 2.0, 0.0)) - 1


def gpu_memory(table: LayoutTable, _n: Ints, limits: Limits) -> Floats:
    """Weights, KV cache, buffers and runtime fit each GPU's memory."""
    return table.memory_bytes / limits.memory_bytes - 1


def latency_limit(table: LayoutTable, _n: Ints, limits: Limits) -> Floats:
    """The time per output token, or of one prompt, stays under its limit."""
    return table.latency_s / limits.latency_s - 1


def concurrency(table: LayoutTable, n: Ints, limits: Limits) -> Floats:
    """All instances together decode the required number of sequences at once."""
    return _shortage(limits.sequences, table.instance_sequences * n)


def throughput(table: LayoutTable, n: Ints, limits: Limits) -> Floats:
    """All instances together reach the required tokens per second."""
    return _shortage(limits.tokens_per_s, table.instance_tokens_per_s * n)


def _shortage(required: float, available: Floats | Ints) -> Floats:
    if required <= 0:
        return np.full(len(available), -1.0)
    return required / np.maximum(available, 1e-9) - 1


Family = Callable[[LayoutTable, Ints, Limits], Floats]
FAMILIES: tuple[Family, ...] = (gpu_budget, gpu_memory, latency_limit, concurrency, throughput)
TOLERANCE = 1e-9


def excess(table: LayoutTable, limits: Limits, families: tuple[Family, ...] = FAMILIES) -> Floats:
    """Relative violation of each family (columns) by each row at its largest number of instances.

    Every requirement loosens or stays as instances are added within the budget, so a row is feasible
    iff it is feasible at its largest number.
    """
    n = np.maximum(table.max_instances, 1)
    return np.stack([family(table, n, limits) for family in families], axis=1)


def feasible(table: LayoutTable, limits: Limits, families: tuple[Family, ...] = FAMILIES) -> NDArray[np.bool_]:
    """Rows that satisfy every given family."""
    if not families:
        return np.ones(len(table), dtype=bool)
    return np.asarray((excess(table, limits, families) <= TOLERANCE).all(axis=1))
