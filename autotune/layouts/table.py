"""Every candidate row with its cost, memory and limits: what selection works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.documents.knobs import VARIANT_COLUMNS
from autotune.layouts.enumerate import layout_rows, rule_subject, token_limits
from autotune.layouts.phases import PHASES, PhaseModel
from autotune.resolving import ResolvedProblem
from cost_models.arrays import Floats, Ints, as_floats, distinct_rows
from cost_models.dispatch import BACKENDS
from cost_models.rows import Rows
from search_spaces.rules import SIZED_RULES, legal


@dataclass(frozen=True, slots=True)
class LayoutTable:
    """Costed candidate rows; all arrays are (rows,)."""

    rows: Rows
    layout: Ints
    """Id of the row's layout (tp, dp, ep, pp, dcp): distinct plans differ in it."""
    latency_s: Floats
    """Time per output token (decode), or of one prompt (prefill)."""
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
            self.latency_s[index],
            self.instance_tokens_per_s[index],
            self.instance_sequences[index],
            self.memory_bytes[index],
            self.max_instances[index],
        )

    def within(self, resolved: ResolvedProblem, gpus: int) -> LayoutTable:
        """The table of a smaller GPU budget."""
        part = self.take(self.rows.gpus <= gpus)
        return dataclasses.replace(part, max_instances=max_instances(resolved, part.rows.gpus, gpus))

    @staticmethod
    def concatenate(parts: list[LayoutTable]) -> LayoutTable:
        names = ("layout", "latency_s", "instance_tokens_per_s", "instance_sequences", "memory_bytes", "max_instances")
        merged = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
        return LayoutTable(Rows.concatenate([part.rows for part in parts]), *merged)


def phase_of(resolved: ResolvedProblem) -> PhaseModel:
    """The phase that a problem's pool runs."""
    return PHASES[resolved.pool]


def build_table(resolved: ResolvedProblem, gpus: int | None = None) -> LayoutTable:
    """Enumerate and cost: a grid of step sizes, then for every layout the largest step each limit allows.

    The second pass adds, per layout, the size that just fits the memory and the one that just
    meets the latency limit, so the answer does not hang on the grid.
    """
    phase = phase_of(resolved)
    layouts = layout_rows(resolved, gpus)
    if not len(layouts):
        return cost_rows(resolved, layouts, gpus)
    repeated = layouts.take(np.repeat(np.arange(len(layouts)), len(phase.grid)))
    gridded = _within_kernel_limits(resolved, phase.sized(repeated, np.tile(phase.grid, len(layouts))))
    coarse = cost_rows(resolved, gridded, gpus)
    fitting = cost_rows(resolved, phase.sized(layouts, largest_fitting_size(resolved, layouts)), gpus)
    meeting = cost_rows(resolved, _rows_at_latency_limit(resolved, LayoutTable.concatenate([coarse, fitting])), gpus)
    return LayoutTable.concatenate([coarse, fitting, meeting])


def kept_free_bytes(resolved: ResolvedProblem, rows: Rows) -> Floats:
    """Memory that rows leave alone within the problem's margin, for what grows once an engine has taken its share, (rows,) [B].

    Nothing where the margin was asked for.
    """
    margin = resolved.memory_fraction
    if resolved.problem.memory_fraction is not None:
        return np.zeros(len(rows))
    highest = np.full(len(BACKENDS), resolved.engine.highest_memory_fraction)
    for choice in resolved.engine.backend_choices(resolved.version):
        code = BACKENDS.index(choice.model_in(resolved.phase))
        highest[code] = min(highest[code], choice.highest_memory_fraction or 1.0)
    visible = resolved.hardware.gpu.hbm_visible_bytes.value
    return as_floats(np.maximum(margin - highest[rows.backend], 0.0) * visible)


def cost_rows(resolved: ResolvedProblem, rows: Rows, gpus: int | None = None) -> LayoutTable:
    """Cost and memory of complete rows."""
    phase, workload = phase_of(resolved), resolved.problem.workload
    budget = gpus or resolved.gpus
    if not len(rows):
        empty = np.zeros(0)
        ints = np.zeros(0, dtype=np.int64)
        return LayoutTable(rows, ints, empty, empty, ints, empty, ints)
    cost = phase.cost(resolved.machine, rows, workload)
    memory = phase.memory(resolved.machine, rows, workload)
    return LayoutTable(
        rows=rows,
        layout=layout_id(rows),
        latency_s=cost.latency_s,
        instance_tokens_per_s=cost.tokens_per_s_per_gpu * rows.gpus,
        instance_sequences=rows.batch * rows.dp,
        memory_bytes=memory.total_bytes + kept_free_bytes(resolved, rows),
        max_instances=max_instances(resolved, rows.gpus, budget),
    )


def layout_id(rows: Rows) -> Ints:
    """One integer per (tp, dp, ep, pp, dcp)."""
    spread = ((rows.tp * 100_003 + rows.dp) * 100_003 + rows.ep) * 97 + rows.pp
    return np.asarray(spread * 97 + rows.dcp, dtype=np.int64)


def max_instances(resolved: ResolvedProblem, gpus_per_instance: Ints, budget: int) -> Ints:
    """Instances that fit: whole ones inside each scale-up domain, or whole domains per instance."""
    domain = resolved.hardware.scale_up.domain_gpus
    full, rest = divmod(budget, domain)
    inside = full * (domain // gpus_per_instance) + rest // gpus_per_instance
    return np.asarray(np.where(gpus_per_instance <= domain, inside, budget // gpus_per_instance), dtype=np.int64)


def kernel_size_limit(resolved: ResolvedProblem, rows: Rows) -> Ints:
    """Largest step that the all-to-all kernels accept, at least 1."""
    return phase_of(resolved).kernel_size(rows, token_limits(resolved)[rows.backend])


def largest_fitting_size(resolved: ResolvedProblem, layouts: Rows) -> Ints:
    """Largest whole step of each layout that fits memory and kernels; at least the smallest."""
    phase, kept = phase_of(resolved), kept_free_bytes(resolved, layouts)

    def used_bytes(which: Ints, size: Ints) -> Floats:
        rows = phase.sized(layouts.take(which), size)
        return phase.memory(resolved.machine, rows, resolved.problem.workload).total_bytes + kept[which]

    most = np.minimum(kernel_size_limit(resolved, layouts), phase.largest)
    return phase.whole(largest_within(used_bytes, resolved.memory_limit_bytes, most))


def _rows_at_latency_limit(resolved: ResolvedProblem, table: LayoutTable) -> Rows:
    """Rows between a size that meets the latency limit and the next, which does not.

    Linear interpolation of the latency in the size, and one per cent below it in case the curve bends.
    """
    phase = phase_of(resolved)
    keys = [getattr(table.rows, name) for name in VARIANT_COLUMNS]
    _, variant = distinct_rows(*keys)
    sizes = phase.size_of(table.rows)
    order = np.lexsort((sizes, variant))
    low, high = order[:-1], order[1:]
    limit = resolved.latency_limit_s
    crossing = (variant[low] == variant[high]) & (table.latency_s[low] <= limit) & (table.latency_s[high] > limit)
    low, high = low[crossing], high[crossing]
    step = (limit - table.latency_s[low]) / (table.latency_s[high] - table.latency_s[low])
    size = sizes[low] + step * (sizes[high] - sizes[low])
    edges = [phase.whole(np.floor(size * share).astype(np.int64)) for share in (1.0, 0.99)]
    base = table.rows.take(low)
    return Rows.concatenate([phase.sized(base, edge) for edge in edges])


def largest_within(used: Callable[[Ints, Ints], Floats], limit: float, most: Ints) -> Ints:
    """Largest value in 1..most of which no more than `limit` is used, element-wise; 1 where none.

    used : (positions, values of them) -> what they use, which never falls as values grow. What is nearly linear takes about four
    questions: lines through the ends of what is left, and every third time its middle, so that any kind of growth ends.
    """
    every = np.arange(len(most))
    low, high = np.ones_like(most), most.copy()
    at_low, at_high = used(every, low), used(every, high)
    answer = np.where(at_high <= limit, high, low)
    left = every[(at_low <= limit) & (at_high > limit) & (high - low > 1)]
    turn = 0
    while len(left):
        turn += 1
        span, below = high[left] - low[left], limit - at_low[left]
        step = span // 2 if turn % 3 == 0 else np.floor(span * (below / (at_high[left] - at_low[left]))).astype(np.int64)
        middle = low[left] + np.clip(step, 1, span - 1)
        found = used(left, middle)
        within, beyond = left[found <= limit], left[found > limit]
        low[within], at_low[within] = middle[found <= limit], found[found <= limit]
        high[beyond], at_high[beyond] = middle[found > limit], found[found > limit]
        answer[within] = low[within]
        left = left[high[left] - low[left] > 1]
    return answer


def _within_kernel_limits(resolved: ResolvedProblem, rows: Rows) -> Rows:
    """Drop rows whose step the engine's kernels do not accept."""
    return rows.take(legal(SIZED_RULES, rule_subject(resolved, rows)))
