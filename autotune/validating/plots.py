"""Pictures of a validation (extra `plots`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from autotune.files import save_figure
from autotune.validating.cases import CaseResult

mpl.use("agg")
COLOURS = {"decode": "tab:blue", "prefill": "tab:orange", "serve": "tab:green"}
BAND = 0.15


def scatter_plot(results: Sequence[CaseResult], path: Path) -> None:
    """Predicted against measured throughput with 80 % intervals, log-log, and the band of +-15 %."""
    figure = Figure(figsize=(6.5, 6), layout="constrained")
    axes = figure.add_subplot()
    for phase, colour in COLOURS.items():
        group = [r for r in results if r.case.deployment.phase == phase]
        if not group:
            continue
        measured = [r.case.measured.tokens_per_s_per_gpu for r in group]
        predicted = [r.prediction.tokens_per_s_per_gpu for r in group]
        bars = [r.interval for r in group]
        below = [p - bar.low for p, bar in zip(predicted, bars, strict=True)]
        above = [bar.high - p for p, bar in zip(predicted, bars, strict=True)]
        axes.errorbar(measured, predicted, yerr=[below, above], fmt="o", ms=4, lw=0.8, color=colour, label=phase, alpha=0.7)
    values = [r.case.measured.tokens_per_s_per_gpu for r in results]
    low, high = min(values) * 0.7, max(values) * 1.4
    axes.plot([low, high], [low, high], color="black", lw=0.8)
    edges = ([low * (1 - BAND), high * (1 - BAND)], [low * (1 + BAND), high * (1 + BAND)])
    axes.fill_between([low, high], *edges, color="grey", alpha=0.15, label=f"within {BAND:.0%}")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.set(xlabel="measured tokens/s/GPU", ylabel="predicted tokens/s/GPU (80 % interval)")
    axes.legend()
    save_figure(figure, path, 130)


def residual_plot(results: Sequence[CaseResult], path: Path) -> None:
    """Errors by tokens per rank and step, by context or prompt, and by expert-parallel ranks."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    axes_of = {"tokens per rank and step": _tokens, "context or prompt [token]": _context, "expert-parallel ranks": _ranks}
    for axes, (label, value) in zip(panels, axes_of.items(), strict=True):
        for phase, colour in COLOURS.items():
            group = [r for r in results if r.case.deployment.phase == phase]
            errors = [100 * r.throughput_error for r in group]
            axes.plot([value(r) for r in group], errors, "o", ms=4, color=colour, label=phase, alpha=0.7)
        axes.axhline(0, color="black", lw=0.8)
        axes.axhspan(-100 * BAND, 100 * BAND, color="grey", alpha=0.15)
        axes.set(xscale="log", xlabel=label)
    panels[0].set_ylabel("predicted - measured, % of measured")
    panels[0].legend()
    save_figure(figure, path, 130)


def _tokens(result: CaseResult) -> float:
    pool, load = result.case.deployment.pool, result.case.deployment.load
    if load is not None:
        return (load.concurrency or 0) / pool.dp / pool.instances
    decode = result.case.deployment.phase == "decode"
    return pool.batch_per_dp_rank * (1 + pool.draft_tokens) if decode else pool.max_batched_tokens


def _context(result: CaseResult) -> float:
    workload = result.case.deployment.workload
    return workload.isl_tokens if result.case.deployment.phase == "prefill" else workload.context_tokens


def _ranks(result: CaseResult) -> float:
    return result.case.deployment.pool.ep
