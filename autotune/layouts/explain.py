"""Why there is no plan, how much is missing and what would fit; and why other layouts lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autotune.documents.plan import AlternativeSummary, SizeSummary
from autotune.documents.problem import by_latency
from autotune.layouts.enumerate import refused_whole
from autotune.layouts.families import FAMILIES, Family, Limits, excess, feasible
from autotune.layouts.table import LayoutTable, build_table, kept_free_bytes, kernel_size_limit, phase_of
from autotune.resolving import ResolvedProblem, resolve_problem, usable_recipes
from cost_models.arrays import Floats, as_floats, distinct_values
from cost_models.operator_groups import COMMUNICATION_GROUPS, WAITING_GROUPS, Group, operator_groups
from cost_models.prefill import prefill_step
from cost_models.rows import Rows
from cost_models.specs.layout import Layout

GB = 1e9
NEAR_LIMIT = 0.97
GPU_MULTIPLES = (2, 3, 4, 6, 8, 12, 16, 32)


@dataclass(frozen=True, slots=True)
class Infeasibility:
    """Which constraint families clash, by how much, and the smallest changes that fit."""

    clash: tuple[str, ...]
    missing: tuple[str, ...]
    changes: tuple[str, ...]

    def message(self) -> str:
        clash = " and ".join(self.clash) + (" cannot all hold" if len(self.clash) > 1 else " cannot hold")
        options = "; or ".join(self.changes) if self.changes else "none found among more GPUs, other precisions and looser limits"
        return f"no feasible plan: {clash}. {' '.join(self.missing)} Smallest changes that fit: {options}."


def clashing_families(table: LayoutTable, limits: Limits) -> tuple[Family, ...]:
    """A minimal set of families that no row satisfies together (deletion filter)."""
    kept = FAMILIES
    for family in FAMILIES:
        rest = tuple(f for f in kept if f is not family)
        if not feasible(table, limits, rest).any():
            kept = rest
    return kept


def explain_infeasible(resolved: ResolvedProblem, table: LayoutTable) -> Infeasibility:
    """Explain a problem for which no row is feasible; table may be empty."""
    limits = Limits.of(resolved)
    if not len(table):
        return Infeasibility(("layout",), (_no_layout(resolved),), tuple(_changes(resolved, table)))
    clash = clashing_families(table, limits)
    missing = tuple(text for family in clash if (text := _missing(resolved, table, limits, family, clash)))
    return Infeasibility(tuple(f.__name__ for f in clash), missing, tuple(_changes(resolved, table)))


def _no_layout(resolved: ResolvedProblem) -> str:
    model, hardware = resolved.model, resolved.hardware
    if refused := refused_whole(resolved):
        return f"No layout is offered: {refused}."
    experts = f", {model.moe.experts} experts" if model.moe else ""
    return (
        f"No layout of {model.name} ({model.heads} heads{experts}) divides over up to "
        f"{resolved.gpus} GPUs in nodes of {hardware.gpus_per_node}."
    )


def _missing(resolved: ResolvedProblem, table: LayoutTable, limits: Limits, family: Family, clash: tuple[Family, ...]) -> str:
    """How much the row that comes closest to one family lacks, the rest of the clash satisfied."""
    others = tuple(f for f in clash if f is not family)
    candidates = np.flatnonzero(feasible(table, limits, others))
    if not len(candidates):
        return ""
    over = excess(table.take(candidates), limits, (family,))[:, 0]
    row = int(candidates[int(np.argmin(over))])
    return DESCRIBE[family.__name__](resolved, table, row, limits)


def _describe_memory(resolved: ResolvedProblem, table: LayoutTable, row: int, limits: Limits) -> str:
    one = table.rows.take(np.array([row]))
    memory = phase_of(resolved).memory(resolved.machine, one, resolved.problem.workload)
    kept = float(kept_free_bytes(resolved, one)[0])
    lines = sorted([(kept, "kept free"), *((float(v[0]), name) for name, v in memory.lines.items())], reverse=True)
    parts = " + ".join(f"{name} {value / GB:.1f} GB" for value, name in lines[:5] if value > 0)
    total = float(memory.total_bytes[0]) + kept
    return (
        f"Closest is {_sized_label(resolved, table, row)}: {parts} + rest = "
        f"{total / GB:.1f} GB per GPU exceeds {limits.memory_bytes / GB:.1f} GB by {(total - limits.memory_bytes) / GB:.1f} GB."
    )


def _describe_latency(resolved: ResolvedProblem, table: LayoutTable, row: int, limits: Limits) -> str:
    found, limit = table.latency_s[row], limits.latency_s
    return (
        f"Closest is {_sized_label(resolved, table, row)} at {phase_of(resolved).latency} {found * 1e3:,.1f} ms, "
        f"{(found - limit) * 1e3:,.1f} ms over the {limit * 1e3:,.1f} ms limit."
    )


def _describe_concurrency(_resolved: ResolvedProblem, table: LayoutTable, row: int, limits: Limits) -> str:
    n = int(max(table.max_instances[row], 1))
    have = int(table.instance_sequences[row]) * n
    short = limits.sequences - have
    return f"At most {have:,} sequences at once ({n} x {row_label(table, row)}), {short:,} short of {limits.sequences:,}."


def _describe_throughput(_resolved: ResolvedProblem, table: LayoutTable, row: int, limits: Limits) -> str:
    n = int(max(table.max_instances[row], 1))
    have = table.instance_tokens_per_s[row] * n
    return (
        f"At most {have:,.0f} tokens/s ({n} x {row_label(table, row)}), "
        f"{limits.tokens_per_s - have:,.0f} short of {limits.tokens_per_s:,.0f}."
    )


def _describe_budget(_resolved: ResolvedProblem, table: LayoutTable, row: int, limits: Limits) -> str:
    return f"The smallest instance, {row_label(table, row)}, needs {int(table.rows.gpus[row])} GPUs; the budget is {limits.gpus}."


DESCRIBE: dict[str, Callable[[ResolvedProblem, LayoutTable, int, Limits], str]] = {
    "gpu_budget": _describe_budget,
    "gpu_memory": _describe_memory,
    "latency_limit": _describe_latency,
    "concurrency": _describe_concurrency,
    "throughput": _describe_throughput,
}


def _sized_label(resolved: ResolvedProblem, table: LayoutTable, row: int) -> str:
    """Layout and step of a row, e.g. DP48 EP48 with 512 sequences per DP rank."""
    phase = phase_of(resolved)
    return f"{row_label(table, row)} with {int(phase.size_of(table.rows)[row]):,} {phase.unit}"


def row_label(table: LayoutTable, row: int) -> str:
    """Layout of a row, e.g. DP48 EP48."""
    return row_layout(table.rows, row).label()


def row_layout(rows: Rows, row: int) -> Layout:
    """Layout of one of the rows."""
    return Layout(**{name: int(getattr(rows, name)[row]) for name in ("tp", "dp", "ep", "pp", "dcp")})


def _changes(resolved: ResolvedProblem, table: LayoutTable) -> list[str]:
    """Single changes of the problem that make it feasible, each searched."""
    found = [_with_more_gpus(resolved), *_with_other_precision(resolved)]
    if len(table):
        found += _with_looser_limits(resolved, table, Limits.of(resolved))
    return [text for text in found if text]


def _with_more_gpus(resolved: ResolvedProblem) -> str | None:
    """The smallest multiple of the budget that fits. The layouts of the largest hold those of all: they are costed once."""
    most = resolved.hardware.max_gpus or resolved.gpus * GPU_MULTIPLES[-1]
    budgets = [resolved.gpus * multiple for multiple in GPU_MULTIPLES if resolved.gpus * multiple <= most]
    if not budgets:
        return None
    table = build_table(resolved, budgets[-1])
    fitting = (gpus for gpus in budgets if feasible(table.within(resolved, gpus), Limits.of(resolved, gpus)).any())
    found = next(fitting, None)
    return None if found is None else f"{found} GPUs"


def _with_other_precision(resolved: ResolvedProblem) -> list[str]:
    machine = resolved.machine
    texts = []
    for name in usable_recipes(machine.model, machine.hardware, machine.calibration):
        if name == machine.recipe.name:
            continue
        changed = resolve_problem(resolved.problem.model_copy(update={"precision": name}))
        table = build_table(changed)
        if len(table) and feasible(table, Limits.of(changed)).any():
            texts.append(f"precision {name}")
    return texts


def _with_looser_limits(resolved: ResolvedProblem, table: LayoutTable, limits: Limits) -> list[str]:
    """The tightest value of one SLO at which the others can hold."""
    problem = resolved.problem
    texts = []
    kept = {f.__name__: f for f in FAMILIES}

    def best(dropped: str) -> LayoutTable:
        return table.take(feasible(table, limits, tuple(f for name, f in kept.items() if name != dropped)))

    if len(rows := best("latency_limit")) and rows.latency_s.min() > limits.latency_s:
        texts.append(f"{phase_of(resolved).latency} limit {np.ceil(rows.latency_s.min() * 1e4) / 10:.1f} ms")
    if problem.min_concurrency and len(rows := best("concurrency")):
        most = int((rows.instance_sequences * np.maximum(rows.max_instances, 1)).max())
        if most < problem.min_concurrency:
            texts.append(f"concurrency {most:,}")
    if problem.min_tokens_per_s and len(rows := best("throughput")):
        most_rate = float((rows.instance_tokens_per_s * np.maximum(rows.max_instances, 1)).max())
        if most_rate < problem.min_tokens_per_s:
            texts.append(f"{np.floor(most_rate):,.0f} tokens/s")
    return texts


KINDS: tuple[tuple[str, Callable[[LayoutTable], np.ndarray]], ...] = (
    ("DP attention, EP experts", lambda t: (t.rows.dp > 1) & (t.rows.tp == 1) & (t.rows.ep > 1)),
    ("TP attention, EP experts", lambda t: (t.rows.tp > 1) & (t.rows.ep > 1) & (t.rows.pp == 1) & (t.rows.dcp == 1)),
    ("TP attention, TP experts", lambda t: (t.rows.dp == 1) & (t.rows.ep == 1) & (t.rows.pp == 1) & (t.rows.dcp == 1)),
    ("DP attention, TP experts", lambda t: (t.rows.dp > 1) & (t.rows.ep == 1) & (t.rows.dcp == 1)),
    ("pipeline stages", lambda t: (t.rows.pp > 1) & (t.rows.dcp == 1)),
    ("contexts shared by ranks", lambda t: t.rows.dcp > 1),
)


def alternatives(resolved: ResolvedProblem, table: LayoutTable, chosen: int) -> tuple[AlternativeSummary, ...]:
    """Best feasible row of each other kind of layout, with the reason it lost.

    chosen : row of `table` that was selected.
    """
    ok = feasible(table, Limits.of(resolved))
    result = []
    for kind, members in KINDS:
        mask = members(table)
        if mask[chosen] or not mask.any():
            continue
        if not (mask & ok).any():
            closest = _why_none(resolved, table.take(mask))
            result.append(_summary(kind, "-", 0.0, 0.0, f"no feasible row: {closest}"))
            continue
        rows = np.flatnonzero(mask & ok)
        best = int(rows[int(np.argmax(_worth(resolved, table)[rows]))])
        result.append(_alternative(resolved, table, chosen, best, kind))
    return tuple(result)


def instance_sizes_compared(resolved: ResolvedProblem, table: LayoutTable) -> tuple[SizeSummary, ...]:
    """Prefill: the best feasible row of every instance size, and where its step goes."""
    rows = np.flatnonzero(feasible(table, Limits.of(resolved)))
    sizes = table.rows.gpus[rows]
    best = [int(rows[sizes == n][np.argmax(table.tokens_per_s_per_gpu[rows[sizes == n]])]) for n in distinct_values(sizes)]
    chosen = table.take(np.array(best))
    cost = prefill_step(resolved.machine, chosen.rows, resolved.problem.workload)

    kind_of = operator_groups(resolved.machine.model, resolved.machine.recipe)

    def share(groups: tuple[Group, ...]) -> Floats:
        return as_floats(sum(t.time_s for n, t in cost.operators.items() if kind_of[n] in groups) / cost.step_s)

    communication, waiting = share(COMMUNICATION_GROUPS), share(WAITING_GROUPS)
    return tuple(
        SizeSummary(
            gpus=int(chosen.rows.gpus[i]),
            label=row_label(chosen, i),
            tokens_per_rank=int(chosen.rows.batched_tokens[i]),
            tokens_per_s_per_gpu=float(chosen.tokens_per_s_per_gpu[i]),
            compute_share=float(1 - communication[i] - waiting[i]),
            communication_share=float(communication[i]),
            waiting_share=float(waiting[i]),
            memory_bytes=float(chosen.memory_bytes[i]),
        )
        for i in range(len(chosen))
    )


def _why_none(resolved: ResolvedProblem, table: LayoutTable) -> str:
    limits = Limits.of(resolved)
    clash = clashing_families(table, limits)
    texts = [_missing(resolved, table, limits, family, clash) for family in clash]
    return " ".join(text for text in texts if text) or "unknown"


def _alternative(resolved: ResolvedProblem, table: LayoutTable, chosen: int, row: int, kind: str) -> AlternativeSummary:
    rows, phase = table.rows, phase_of(resolved)
    rate = float(table.tokens_per_s_per_gpu[row])
    per_gpu = phase.size_of(rows) * rows.dp / rows.gpus
    noun = phase.unit.split(maxsplit=1)[0]
    sizes = f"{_amount(per_gpu[row])} {noun} per GPU against {_amount(per_gpu[chosen])}"
    if by_latency(resolved.problem.objective):
        longer = float(table.latency_s[row] / table.latency_s[chosen]) - 1
        ours, best = (_amount(latency_s * 1e3) for latency_s in (table.latency_s[row], table.latency_s[chosen]))
        reason = f"{longer:.0%} more {phase.latency}: {ours} against {best} ms, at {sizes}"
        return _summary(kind, row_label(table, row), rate, float(table.latency_s[row]), reason)
    loss = 1 - rate / float(table.tokens_per_s_per_gpu[chosen])
    reason = f"{loss:.0%} slower per GPU: {sizes}"
    cause = _what_caps(resolved, table, row)
    reason += f", {cause}" if cause else ""
    reason += f"; {phase.latency} {table.latency_s[row] * 1e3:,.0f} against {table.latency_s[chosen] * 1e3:,.0f} ms"
    return _summary(kind, row_label(table, row), rate, float(table.latency_s[row]), reason)


def _worth(resolved: ResolvedProblem, table: LayoutTable) -> Floats:
    """What the objective makes of rows, larger is better."""
    return as_floats(-table.latency_s) if by_latency(resolved.problem.objective) else table.tokens_per_s_per_gpu


def _amount(value: float) -> str:
    """A number with at least two digits that say something."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _summary(kind: str, label: str, rate: float, latency_s: float, reason: str) -> AlternativeSummary:
    return AlternativeSummary(kind=kind, label=label, tokens_per_s_per_gpu=rate, latency_s=latency_s, reason=reason)


def _what_caps(resolved: ResolvedProblem, table: LayoutTable, row: int) -> str:
    """What keeps the step of a row from growing."""
    phase = phase_of(resolved)
    one = table.rows.take(np.array([row]))
    tp = int(one.tp[0])
    limit = int(kernel_size_limit(resolved, one)[0])
    if int(phase.size_of(one)[0]) >= limit:
        return f"the most that its all-to-all kernel takes ({limit:,} per DP rank)"
    if table.memory_bytes[row] > NEAR_LIMIT * resolved.memory_limit_bytes:
        dcp = int(one.dcp[0])
        kinds = resolved.model.attentions
        copies = max(kind.state_copies(tp) / (dcp if kind.shared_context else 1) for kind in kinds)
        duplicated = copies > 1 and phase.name == "decode"
        return f"because TP{tp} keeps {copies:.0f} copies of each KV cache" if duplicated else "the most that fit in memory"
    if table.latency_s[row] > NEAR_LIMIT * resolved.latency_limit_s:
        return f"the most that the {phase.latency} limit allows"
    return ""
