"""Terminal reports of verdicts and sensitivities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.auditing.goals import GoalLine
from autotune.auditing.verdict import PoolMemory, Verdict
from autotune.report.printing import new_table, paragraph

if TYPE_CHECKING:
    from autotune.auditing.sensitivity import Sensitivity
    from autotune.auditing.verifying import VerifiedPoint

GOAL_NAMES = {
    "start": "start",
    "memory": "memory",
    "load": "load",
    "tpot_s": "TPOT",
    "ttft_s": "time to first token",
    "ttft_p50_s": "TTFT P50",
    "ttft_p95_s": "TTFT P95",
    "ttft_p99_s": "TTFT P99",
    "tokens_per_s": "tokens/s",
    "concurrency": "sequences at once",
    "context_tokens": "context per sequence",
}


STYLES = {"works": "bold green", "does not work": "bold red", "cannot say": "bold yellow"}


def verdict_report(verdict: Verdict) -> RenderableType:
    """Works or not, conflicts, memory, goals, what bounds it, remarks, smallest changes."""
    parts: list[RenderableType] = [
        Text(verdict.answer, style=STYLES[verdict.answer]),
        *(Text(f"not modelled: {line}") for line in verdict.unmodelled),
        *(Text(f"would not run: {conflict}") for conflict in verdict.conflicts),
        *(Text(_memory_line(pool, len(verdict.memory) > 1)) for pool in verdict.memory),
    ]
    if verdict.tokens_per_s_per_gpu is not None and verdict.latency_s is not None:
        first = "" if verdict.ttft_p99_s is None else f", TTFT P99 {verdict.ttft_p99_s:,.2f} s, TPOT"
        speed = f"{first or ','} {verdict.latency_s * 1e3:,.1f} ms"
        parts.append(Text(f"{verdict.tokens_per_s_per_gpu:,.0f} tokens/s/GPU on {verdict.gpus} GPUs{speed}"))
    if verdict.bottleneck:
        parts.append(Text(f"bottleneck: {verdict.bottleneck}"))
    parts += ["", *(_memory_table(pool) for pool in verdict.memory)]
    if verdict.goals:
        parts += ["", _goals_table(verdict.goals)]
    if verdict.remarks:
        parts += ["", paragraph("Remarks", "\n".join(verdict.remarks))]
    if not verdict.works and verdict.looked_at:
        parts += ["", _changes(verdict)]
    return Group(*parts)


def _memory_line(pool: PoolMemory, several: bool) -> str:
    text = f"{pool.phase}: " if several else ""
    text += f"{pool.total_bytes / 1e9:.1f} of {pool.limit_bytes / 1e9:.1f} GB per GPU"
    if pool.fits:
        return text
    return f"{text}: {pool.over_bytes / 1e9:.1f} GB too much; largest: {pool.lines[0].name} {pool.lines[0].bytes / 1e9:.1f} GB"


def _memory_table(pool: PoolMemory) -> Table:
    table = new_table(f"Memory of one GPU, {pool.phase}")
    table.add_column("line")
    table.add_column("GB", justify="right")
    for line in pool.lines:
        if line.bytes:
            table.add_row(line.name, f"{line.bytes / 1e9:.2f}")
    table.add_row("total", f"{pool.total_bytes / 1e9:.2f}", style="bold")
    table.add_row("limit", f"{pool.limit_bytes / 1e9:.2f}")
    return table


def _goals_table(goals: tuple[GoalLine, ...]) -> Table:
    table = new_table("Goals")
    for name in ("goal", "wanted", "predicted", "met", "probability"):
        table.add_column(name, justify="left" if name == "goal" else "right")
    for goal in goals:
        unit = 1e3 if goal.name.endswith("_s") and goal.name != "tokens_per_s" else 1
        odds = "" if goal.probability is None else f"{goal.probability:.0%}"
        name = GOAL_NAMES[goal.name] + (", ms" if unit == 1e3 else "")
        table.add_row(name, f"{goal.wanted * unit:,.0f}", f"{goal.predicted * unit:,.0f}", "yes" if goal.met else "no", odds)
    return table


def _changes(verdict: Verdict) -> RenderableType:
    if not verdict.changes:
        return Text(f"No change brings it nearer ({verdict.looked_at} looked at)")
    missing = verdict.changes[0].missing
    title = "Smallest changes that make it work" if not missing else "No change or pair of changes makes it work; nearest"
    table = new_table(f"{title} ({verdict.looked_at} looked at)")
    for name in ("changes", "GPUs", "tokens/s/GPU", "ms", *(["still missing"] if missing else [])):
        table.add_column(name, justify="left" if name == "changes" else "right")
    for change in verdict.changes:
        values = (str(change.gpus), f"{change.tokens_per_s_per_gpu:,.0f}", f"{change.latency_s * 1e3:,.1f}")
        still = ", ".join(GOAL_NAMES[name] for name in change.missing)
        table.add_row("; ".join(change.changes), *values, *([still] if missing else []))
    return table


def verification_report(points: tuple[VerifiedPoint, ...]) -> RenderableType:
    """Measured beside predicted, and what misses point at."""
    table = new_table("Measured against predicted")
    for name in ("sequences", "input", "output", "", "measured", "predicted", "80 % interval", "error", "", "limit"):
        table.add_column(name, justify="right")
    misses = []
    for point in points:
        where = (f"{point.sequences:,.0f}", f"{point.isl_tokens:,.0f}", f"{point.osl_tokens:,.0f}")
        for line in point.lines:
            time = line.name != "tokens_per_s"
            low, high = (_quantity(value, time) for value in (line.interval.low, line.interval.high))
            table.add_row(
                *where,
                GOAL_NAMES[line.name] + (", ms" if time else ""),
                _quantity(line.measured, time),
                _quantity(line.predicted, time),
                f"{low}-{high}",
                f"{line.error:+.1%}",
                "inside" if line.inside else "outside",
                "" if line.within_limit is None else "pass" if line.within_limit else "fail",
            )
            where = ("", "", "")
            misses += [f"{GOAL_NAMES[line.name]} at {point.sequences:,.0f} sequences: {suspect}" for suspect in line.suspects]
    return Group(table, *(["", paragraph("A miss points at", "\n".join(dict.fromkeys(misses)))] if misses else []))


def _quantity(value: float, time: bool) -> str:
    return f"{value * 1e3:,.2f}" if time else f"{value:,.0f}"


def sensitivity_report(found: Sensitivity) -> RenderableType:
    """Ranked table: throughput at each step, and what a goal would take."""
    table = new_table("Throughput when one thing changes, everything else as planned")
    table.add_column("what")
    for step in found.steps:
        table.add_column(f"{step:+.0%}", justify="right")
    goal = found.goal_tokens_per_s is not None or found.limit_latency_s is not None
    if goal:
        table.add_column("for the goal, alone", justify="right")
    for influence in found.influences:
        cells = [f"{effect:+.1%}" for effect in influence.effects]
        table.add_row(influence.name, *cells, *([_needed(influence.needed)] if goal else []))
    ways: list[RenderableType] = ["", _ways_table(found)] if found.ways else []
    return Group(Text(f"{found.tokens_per_s:,.0f} tokens/s as planned"), "", table, *ways)


def _ways_table(found: Sensitivity) -> Table:
    table = new_table("Precisions and GPUs for the goal")
    for name in ("change", "GPUs", "tokens/s", "ms", "fits", "reached"):
        table.add_column(name, justify="left" if name == "change" else "right")
    for way in found.ways:
        answers = ("yes" if way.fits else "no", "yes" if way.reached else "no")
        table.add_row(way.change, f"{way.gpus:,}", f"{way.tokens_per_s:,.0f}", f"{way.latency_s * 1e3:,.1f}", *answers)
    return table


def _needed(factor: float | None) -> str:
    return "cannot" if factor is None else "met" if factor == 1.0 else f"x {factor:,.2f}" if factor < 10 else f"x {factor:,.0f}"
