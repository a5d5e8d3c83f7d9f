"""Drop rows that another row dominates, without losing any of the k best distinct layouts."""

from __future__ import annotations

import numpy as np

from autotune.layouts.table import LayoutTable
from cost_models.arrays import Floats, Ints, distinct_values


def criteria(table: LayoutTable, *, sequences_matter: bool, latency_matters: bool) -> Floats:
    """(rows, criteria), larger is better: what the objective and the remaining constraints see."""
    columns = [table.instance_tokens_per_s]
    if sequences_matter:
        columns.append(table.instance_sequences.astype(float))
    if latency_matters:
        columns.append(-table.latency_s)
    return np.stack(columns, axis=1)


def prune(table: LayoutTable, *, keep_layouts: int, sequences_matter: bool, latency_matters: bool) -> Ints:
    """Indices of the rows worth giving to the solver.

    Rows must already satisfy the per-row limits (memory, TPOT). Among rows of one instance size the
    instance counts are interchangeable, so a row is useless for the k best distinct layouts once k
    other layouts of that size hold a row at least as good in every criterion, or its own layout does.
    """
    values = criteria(table, sequences_matter=sequences_matter, latency_matters=latency_matters)
    kept: list[int] = []
    for size in distinct_values(table.rows.gpus):
        members = np.flatnonzero(table.rows.gpus == size)
        layouts = table.layout[members]
        fronts = [members[layouts == layout] for layout in distinct_values(layouts)]
        fronts = [front[_pareto(values[front])] for front in fronts]
        for own, front in enumerate(fronts):
            beaten = np.zeros(len(front), dtype=np.int64)
            for other, rival in enumerate(fronts):
                if other != own:
                    beaten += _dominated(values[front], values[rival], strict=other > own)
            kept.extend(front[beaten < keep_layouts].tolist())
    return np.array(sorted(kept), dtype=np.int64)


def _pareto(values: Floats) -> Ints:
    """Positions of non-dominated rows; of equal rows the first stays."""
    if values.shape[1] == 1:
        return np.array([int(np.argmax(values[:, 0]))], dtype=np.int64)
    order = np.lexsort(tuple(-values[:, column] for column in reversed(range(values.shape[1]))))
    left, front = order, []
    while len(left):  # the first of what nothing so far dominates is dominated by nothing after it
        front.append(left[0])
        left = left[np.any(values[left] > values[left[0]], axis=1)]
    return np.array(front, dtype=np.int64)


def _dominated(values: Floats, rivals: Floats, *, strict: bool) -> Ints:
    """1 where some rival is at least as good in everything (and better in something, if strict)."""
    better = np.all(rivals[None, :, :] >= values[:, None, :], axis=2)
    if strict:
        better &= np.any(rivals[None, :, :] > values[:, None, :], axis=2)
    return np.asarray(better.any(axis=1), dtype=np.int64)
