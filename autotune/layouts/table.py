"""Every candidate row with its cost, memory and limits: what selection works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.layouts.enumerate import batch_grid, layout_rows, token_limits
from autotune.problem import ResolvedProblem
from cost_models.arrays import Floats, Ints, distinct_rows
from cost_models.memory import decode_memory
from cost_models.rows import Rows
from cost_models.step import decode_step

LARGEST_BATCH = 2**14

VARIANT_COLUMNS = ("tp", "dp", "ep", "pp", "drafts", "redundant_experts", "backend", "overlap", "eplb")
"""Columns in which rows of an enumeration differ, besides the batch."""


@dataclass(frozen=True, slots=True)
class LayoutTable:
    """Costed candidate rows; all arrays are (rows,)."""

    rows: Rows
    layout: Ints
    """Id of the row's layout (tp, dp, ep, pp): distinct plans differ in it."""
    tpot_s: Floats
    instance_tokens_per_s: Floats
    instance_sequences: Ints
    memory_bytes: Floats
    max_instances: Ints
    """Instances that the GPU budget and the scale-up domains hold."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens_per_s_per_gpu(self) -> Floats:
        return self.instance_tokens_per_s / self.rows.gpus

    def take(self, index: NDArray[np.bool_] | Ints) -> LayoutTable:
        return LayoutTable(
            self.rows.take(index),
            self.layout[index],
            self.tpot_s[index],
            self.instance_tokens_per_s[index],
            self.instance_sequences[index],
            self.memory_bytes[index],
            self.max_instances[index],
        )

    @staticmethod
    def concatenate(parts: list[LayoutTable]) -> LayoutTable:
        names = ("layout", "tpot_s", "instance_tokens_per_s", "instance_sequences", "memory_bytes", "max_instances")
        merged = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
        return LayoutTable(Rows.concatenate([part.rows for part in parts]), *merged)


def build_table(resolved: ResolvedProblem, gpus: int | None = None) -> LayoutTable:
    """Enumerate and cost: a batch grid, then for every layout the largest batch each limit allows.

    The second pass adds, per layout, the batch that just fits the memory and the one that just
    meets the TPOT limit, so the answer does not hang on the grid.
    """
    layouts = layout_rows(resolved, gpus)
    if not len(layouts):
        return cost_rows(resolved, layouts, gpus)
    grid = batch_grid()
    repeated = layouts.take(np.repeat(np.arange(len(layouts)), len(grid)))
    gridded = _within_kernel_limits(resolved, repeated.replace(batch=np.tile(grid, len(layouts))))
    coarse = cost_rows(resolved, gridded, gpus)
    fitting = cost_rows(resolved, layouts.replace(batch=largest_fitting_batch(resolved, layouts)), gpus)
    meeting = cost_rows(resolved, _rows_at_tpot_limit(resolved, LayoutTable.concatenate([coarse, fitting])), gpus)
    return LayoutTable.concatenate([coarse, fitting, meeting])


def cost_rows(resolved: ResolvedProblem, rows: Rows, gpus: int | None = None) -> LayoutTable:
    """Cost and memory of complete rows."""
    workload = resolved.problem.workload
    budget = gpus or resolved.gpus
    if not len(rows):
        empty = np.zeros(0)
        ints = np.zeros(0, dtype=np.int64)
        return LayoutTable(rows, ints, empty, empty, ints, empty, ints)
    step = decode_step(resolved.machine, rows, workload.context_tokens, workload.mtp_acceptance)
    memory = decode_memory(resolved.machine, rows, workload)
    return LayoutTable(
        rows=rows,
        layout=layout_id(rows),
        tpot_s=step.tpot_s,
        instance_tokens_per_s=step.tokens_per_s_per_gpu * rows.gpus,
        instance_sequences=rows.batch * rows.dp,
        memory_bytes=memory.total_bytes,
        max_instances=max_instances(resolved, rows.gpus, budget),
    )


def layout_id(rows: Rows) -> Ints:
    """One integer per (tp, dp, ep, pp)."""
    return np.asarray(((rows.tp * 100_003 + rows.dp) * 100_003 + rows.ep) * 97 + rows.pp, dtype=np.int64)


def max_instances(resolved: ResolvedProblem, gpus_per_instance: Ints, budget: int) -> Ints:
    """Instances that fit: whole ones inside each scale-up domain, or whole domains per instance."""
    domain = resolved.hardware.scale_up.domain_gpus
    full, rest = divmod(budget, domain)
    inside = full * (domain // gpus_per_instance) + rest // gpus_per_instance
    return np.asarray(np.where(gpus_per_instance <= domain, inside, budget // gpus_per_instance), dtype=np.int64)


def kernel_batch_limit(resolved: ResolvedProblem, rows: Rows) -> Ints:
    """Largest batch per DP rank that the all-to-all kernels accept, at least 1."""
    limit = token_limits(resolved)[rows.backend] // (1 + rows.drafts) * rows.pp
    return np.asarray(np.maximum(limit, 1), dtype=np.int64)


def largest_fitting_batch(resolved: ResolvedProblem, layouts: Rows) -> Ints:
    """Largest batch of each layout that fits memory and kernels, by bisection; at least 1."""

    def fits(batch: Ints) -> NDArray[np.bool_]:
        memory = decode_memory(resolved.machine, layouts.replace(batch=batch), resolved.problem.workload)
        return memory.total_bytes <= resolved.memory_limit_bytes

    high = np.minimum(kernel_batch_limit(resolved, layouts), LARGEST_BATCH)
    return _bisect(fits, high)


def _rows_at_tpot_limit(resolved: ResolvedProblem, table: LayoutTable) -> Rows:
    """Rows between a grid batch that meets the TPOT limit and the next, which does not.

    Linear interpolation of TPOT in the batch, and one per cent below it in case the curve bends.
    """
    keys = [getattr(table.rows, name) for name in VARIANT_COLUMNS]
    _, variant = distinct_rows(*keys)
    order = np.lexsort((table.rows.batch, variant))
    low, high = order[:-1], order[1:]
    limit = resolved.problem.tpot_limit_s
    crossing = (variant[low] == variant[high]) & (table.tpot_s[low] <= limit) & (table.tpot_s[high] > limit)
    low, high = low[crossing], high[crossing]
    step = (limit - table.tpot_s[low]) / (table.tpot_s[high] - table.tpot_s[low])
    batch = table.rows.batch[low] + step * (table.rows.batch[high] - table.rows.batch[low])
    edges = [np.maximum(np.floor(batch * share), 1).astype(np.int64) for share in (1.0, 0.99)]
    base = table.rows.take(low)
    return Rows.concatenate([base.replace(batch=edge) for edge in edges])


def _bisect(holds: Callable[[Ints], NDArray[np.bool_]], high: Ints) -> Ints:
    """Largest value in 1..high for which a monotone condition holds, element-wise; 1 if none."""
    low = np.ones_like(high)
    while np.any(low < high):
        middle = (low + high + 1) // 2
        true = holds(middle)
        low, high = np.where(true, middle, low), np.where(true, high, np.maximum(middle - 1, low))
    return low


def _within_kernel_limits(resolved: ResolvedProblem, rows: Rows) -> Rows:
    """Drop rows whose batch the all-to-all kernels do not accept."""
    return rows.take(rows.batch <= kernel_batch_limit(resolved, rows))
