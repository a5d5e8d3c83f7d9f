"""The candidates a search weighed, thinned to the best variant of each layout and step size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.documents.candidates import Candidates
from autotune.documents.prediction import OperatorLine
from autotune.layouts.explain import row_label
from autotune.layouts.families import FAMILIES, TOLERANCE, Limits, excess
from autotune.layouts.table import LayoutTable, phase_of
from autotune.predicting.uncertainty import BALANCE_SIGMA, BALANCED, SHARED_SIGMA, own_sigma
from autotune.resolving import ResolvedProblem
from cost_models.arrays import Floats, Ints, alike_rows, as_floats
from cost_models.dispatch import BACKENDS
from cost_models.operator_groups import operator_groups
from cost_models.overlap import OVERLAPS
from cost_models.prefill import prefill_step
from cost_models.step import decode_step

SIGNIFICANT = 4
POWERS = np.array([float(f"1e{exponent}") for exponent in range(23)])
"""Those that floating point holds exactly."""
MOST = 5000
"""Candidates kept; the slowest are dropped first."""


def candidates_of(resolved: ResolvedProblem, table: LayoutTable, lines: Sequence[OperatorLine]) -> Candidates:
    """Columns for charts, best throughput first.

    lines : operators of the best plan, whose errors stand in for those of every candidate.
    """
    limits = Limits.of(resolved)
    violated = excess(table, limits) > TOLERANCE
    chosen = _best_variants(resolved, table, np.asarray(violated.any(axis=1)))
    kept, violated = table.take(chosen), violated[chosen]
    _, first, alike = np.unique(kept.layout, return_index=True, return_inverse=True)
    labels = [row_label(kept, int(i)) for i in first]
    names = [labels[i] for i in alike]
    layouts = tuple(dict.fromkeys(names))
    index = {name: i for i, name in enumerate(layouts)}
    operators = _operators(resolved, kept)
    groups = operator_groups(resolved.machine.model, resolved.machine.recipe)
    return Candidates(
        phase=resolved.phase,
        latency_limit_s=limits.latency_s,
        memory_limit_bytes=limits.memory_bytes,
        layouts=layouts,
        layout=tuple(index[name] for name in names),
        size=tuple(phase_of(resolved).size_of(kept.rows).tolist()),
        gpus=tuple(kept.rows.gpus.tolist()),
        variant=_variants(kept),
        latency_s=_rounded(kept.latency_s),
        tokens_per_s_per_gpu=_rounded(kept.tokens_per_s_per_gpu),
        memory_bytes=_rounded(kept.memory_bytes),
        chance=_rounded(chance_of(operators, lines, kept.latency_s, limits.latency_s)),
        violates=_violated(violated),
        operators={name: _rounded(values) for name, values in operators.items() if np.any(values)},
        groups={name: groups[name] for name, values in operators.items() if np.any(values)},
    )


def _best_variants(resolved: ResolvedProblem, table: LayoutTable, infeasible: NDArray[np.bool_]) -> Ints:
    """Rows with the most tokens/s/GPU of each layout and size, feasible ones first; at most MOST of them."""
    size = phase_of(resolved).size_of(table.rows)
    order = np.lexsort((-table.tokens_per_s_per_gpu, infeasible, size, table.layout))
    layout, sized = table.layout[order], size[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (layout[1:] != layout[:-1]) | (sized[1:] != sized[:-1])
    best = order[first]
    ranked = best[np.lexsort((-table.tokens_per_s_per_gpu[best], infeasible[best]))]
    return np.asarray(ranked[:MOST], dtype=np.int64)


def _operators(resolved: ResolvedProblem, table: LayoutTable) -> dict[str, Floats]:
    """Seconds per step of every candidate by operator."""
    workload = resolved.problem.workload
    if resolved.phase == "prefill":
        timings = prefill_step(resolved.machine, table.rows, workload).operators
    else:
        timings = decode_step(resolved.machine, table.rows, workload.context_tokens, workload.mtp_acceptance).operators
    return {name: as_floats(np.broadcast_to(t.time_s, len(table))) for name, t in timings.items()}


def chance_of(operators: Mapping[str, Floats], lines: Sequence[OperatorLine], latency_s: Floats, limit_s: float) -> Floats:
    r"""Probability that a candidate's latency stays under its limit, (rows,).

    Errors are log-normal: :math:`\sigma^2 = \sum_f (\sum_{o \in f} s_o \sigma_f)^2 + \sum_o (s_o \sigma_o)^2`, with s_o the
    operator's share of the step, sigma_f the error that a calibration family shares and sigma_o the operator's own; both are
    those of the best plan's operators. P = Phi(ln(limit / latency) / sigma).
    """
    known = {line.name: line for line in lines}
    total = as_floats(sum(operators.values()))
    families: dict[str, Floats] = {}
    variance = np.zeros_like(total)
    for name in operators.keys() & known.keys():
        line = known[name]
        share = operators[name] / total
        family = line.family or name
        families[family] = families.get(family, np.zeros_like(total)) + share * SHARED_SIGMA[line.status]
        if name in BALANCED:
            families["balance"] = families.get("balance", np.zeros_like(total)) + share * BALANCE_SIGMA
        variance = variance + (share * own_sigma(line)) ** 2
    variance = variance + as_floats(sum(s**2 for s in families.values()))
    z = np.log(limit_s / latency_s) / np.sqrt(np.maximum(variance, 1e-12))
    normal = NormalDist()
    return as_floats(np.array([normal.cdf(value) for value in z.tolist()]))


def _variants(table: LayoutTable) -> tuple[str, ...]:
    """All-to-all backend, overlap, drafts, spares and EPLB of each row in words."""
    rows = table.rows
    columns = (rows.backend, rows.ep > 1, rows.overlap, rows.drafts, rows.redundant_experts, rows.eplb > 0)
    return _in_words(columns, _variant)


def _variant(backend: int, spread: bool, overlap: int, drafts: int, spare: int, eplb: bool) -> str:
    words = [BACKENDS[backend].replace("_", " ")] if spread else []
    words += [f"overlap {OVERLAPS[overlap].replace('_', ' ')}"] if OVERLAPS[overlap] != "none" else []
    words += [f"{drafts} drafts"] if drafts else []
    words += [f"{spare} redundant experts"] if spare else []
    words += ["EPLB"] if eplb else []
    return ", ".join(words)


def _violated(violated: NDArray[np.bool_]) -> tuple[str, ...]:
    """Names of the families that each row breaks. violated : (rows, families)."""
    return _in_words(tuple(violated.T), lambda *row: " ".join(f.__name__ for f, bad in zip(FAMILIES, row, strict=True) if bad))


def _in_words(columns: Sequence[NDArray[Any]], words: Callable[..., str]) -> tuple[str, ...]:
    """What `words` says of each row, once of each distinct combination of the columns."""
    found = np.empty(len(columns[0]), dtype=object)
    for values, those in alike_rows(*columns):
        found[those] = words(*values)
    return tuple(found.tolist())


def _rounded(values: Floats) -> tuple[float, ...]:
    """Four significant digits: what a chart shows. Powers of ten are exact, so that what is left has no more digits."""
    usual = np.isfinite(values) & (values != 0)
    digits = np.zeros(len(values), dtype=np.int64)
    digits[usual] = SIGNIFICANT - 1 - np.floor(np.log10(np.abs(values[usual]))).astype(np.int64)
    up, down = (POWERS[np.clip(d, 0, len(POWERS) - 1)] for d in (digits, -digits))
    return tuple(np.where(usual, np.rint(values / down * up) / up * down, values).tolist())
