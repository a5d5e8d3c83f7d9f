"""Every candidate row with its cost, memory and limits: what selection works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.layouts.enumerate import batch_grid, layout_rows, token_limits
from autotune.problem import ResolvedProblem
from cost_models.arrays import Floats, Ints
from cost_models.memory import decode_memory
from cost_models.rows import Rows
from cost_models.step import decode_step

LARGEST_BATCH = 2**14


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
    meets the TPOT limit, so the answer does not depend on the grid.
    """
    layouts = layout_rows(resolved, gpus)
    if not len(layouts):
        return cost_rows(resolved, layouts, gpus)
    grid = batch_grid()
    repeated = layouts.take(np.repeat(np.arange(len(layouts)), len(grid)))
    gridded = _within_kernel_limits(resolved, repeated.replace(batch=np.tile(grid, len(layouts))))
    coarse = cost_rows(resolved, gridded, gpus)
    fitting = largest_fitting_batch(resolved, layouts)
    meeting = _largest_batch_at_tpot(resolved, layouts, fitting)
    edges = [cost_rows(resolved, layouts.replace(batch=batch), gpus) for batch in (fitting, meeting)]
    return LayoutTable.concatenate([coarse, *edges])


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
    return ((rows.tp * 100_003 + rows.dp) * 100_003 + rows.ep) * 97 + rows.pp


def max_instances(resolved: ResolvedProblem, gpus_per_instance: Ints, budget: int) -> Ints:
    """Instances that fit: whole ones inside each scale-up domain, or whole domains per instance."""
    domain = resolved.hardware.scale_up.domain_gpus
    full, rest = divmod(budget, domain)
    inside = full * (domain // gpus_per_instance) + rest // gpus_per_instance
    return np.where(gpus_per_instance <= domain, inside, budget // gpus_per_instance)


def kernel_batch_limit(resolved: ResolvedProblem, rows: Rows) -> Ints:
    """Largest batch per DP rank that the all-to-all kernels accept, at least 1."""
    limit = token_limits(resolved)[rows.backend] // (1 + rows.drafts) * rows.pp
    return np.maximum(limit, 1)


def largest_fitting_batch(resolved: ResolvedProblem, layouts: Rows) -> Ints:
    """Largest batch of each layout that fits memory and kernels, by bisection; at least 1."""

    def fits(batch: Ints) -> NDArray[np.bool_]:
        memory = decode_memory(resolved.machine, layouts.replace(batch=batch), resolved.problem.workload)
        return memory.total_bytes <= resolved.memory_limit_bytes

    high = np.minimum(kernel_batch_limit(resolved, layouts), LARGEST_BATCH)
    return _bisect(fits, high)


def _largest_batch_at_tpot(resolved: ResolvedProblem, layouts: Rows, fitting: Ints) -> Ints:
    """Largest batch of each layout, up to the fitting one, that meets the TPOT limit; at least 1."""
    workload = resolved.problem.workload

    def meets(batch: Ints) -> NDArray[np.bool_]:
        step = decode_step(resolved.machine, layouts.replace(batch=batch), workload.context_tokens, workload.mtp_acceptance)
        return step.tpot_s <= resolved.problem.tpot_limit_s

    return _bisect(meets, fitting)


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
