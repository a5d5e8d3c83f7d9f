"""Terminal reports of verdicts and sensitivities."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.auditing.checking import Verdict
from autotune.auditing.goals import GoalLine
from autotune.auditing.sensitivity import Sensitivity
from autotune.auditing.verifying import VerifiedPoint
from autotune.report.tables import new_table, paragraph

GOAL_NAMES = {
    "tpot_s": "TPOT",
    "ttft_s": "time of one prompt",
    "tokens_per_s": "tokens/s",
    "concurrency": "sequences at once",
    "context_tokens": "context per sequence",
}


def verdict_report(verdict: Verdict) -> RenderableType:
    """Works or not, memory, goals, what bounds it, remarks, smallest changes."""
    head = Text("works" if verdict.works else "does not work", style="bold green" if verdict.works else "bold red")
    memory = f"{verdict.memory_total_bytes / 1e9:.1f} of {verdict.memory_limit_bytes / 1e9:.1f} GB per GPU"
    if not verdict.fits:
        largest = verdict.memory[0]
        memory += f": {verdict.over_bytes / 1e9:.1f} GB too much; largest: {largest.name} {largest.bytes / 1e9:.1f} GB"
    parts: list[RenderableType] = [
        head,
        Text(memory),
        Text(f"{verdict.tokens_per_s_per_gpu:,.0f} tokens/s/GPU on {verdict.gpus} GPUs, {verdict.latency_s * 1e3:,.1f} ms"),
        Text(f"bottleneck: {verdict.bottleneck}"),
        "",
        _memory_table(verdict),
    ]
    if verdict.goals:
        parts += ["", _goals_table(verdict.goals)]
    if verdict.remarks:
        parts += ["", paragraph("Remarks", "\n".join(verdict.remarks))]
    if not verdict.works:
        parts += ["", _changes(verdict)]
    return Group(*parts)


def _memory_table(verdict: Verdict) -> Table:
    table = new_table("Memory of one GPU")
    table.add_column("line")
    table.add_column("GB", justify="right")
    for line in verdict.memory:
        if line.bytes:
            table.add_row(line.name, f"{line.bytes / 1e9:.2f}")
    table.add_row("total", f"{verdict.memory_total_bytes / 1e9:.2f}", style="bold")
    table.add_row("limit", f"{verdict.memory_limit_bytes / 1e9:.2f}")
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
    missing = verdict.changes[0].missing if verdict.changes else ()
    title = "Smallest changes that make it work" if not missing else "No change or pair of changes makes it work; nearest"
    table = new_table(f"{title} ({verdict.looked_at} looked at)")
    for name in ("changes", "GPUs", "tokens/s/GPU", "ms", *(["still missing"] if missing else [])):
        table.add_column(name, justify="left" if name == "changes" else "right")
    for change in verdict.changes:
        values = (str(change.gpus), f"{change.tokens_per_s_per_gpu:,.0f}", f"{change.latency_s * 1e3:,.1f}")
        still = ", ".join(GOAL_NAMES.get(name, name) for name in change.missing)
        table.add_row("; ".join(change.changes), *values, *([still] if missing else []))
    return table


def verification_report(points: tuple[VerifiedPoint, ...]) -> RenderableType:
    """Measured beside predicted, and what misses point at."""
    table = new_table("Time per output token, measured against predicted")
    for name in ("sequences", "input", "output", "measured, ms", "predicted, ms", "80 % interval", "error", "", "limit"):
        table.add_column(name, justify="right")
    misses = []
    for point in points:
        low, high = point.interval.low * 1e3, point.interval.high * 1e3
        limit = "" if point.within_limit is None else "pass" if point.within_limit else "fail"
        table.add_row(
            f"{point.sequences:,.0f}",
            f"{point.isl_tokens:,.0f}",
            f"{point.osl_tokens:,.0f}",
            f"{point.measured_tpot_s * 1e3:.2f}",
            f"{point.predicted_tpot_s * 1e3:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{point.error:+.1%}",
            "inside" if point.inside else "outside",
            limit,
        )
        misses += [f"{point.sequences:,.0f} sequences: {suspect}" for suspect in point.suspects]
    return Group(table, *(["", paragraph("A miss points at", "\n".join(misses))] if misses else []))


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
    return Group(Text(f"{found.tokens_per_s:,.0f} tokens/s as planned"), "", table)


def _needed(factor: float | None) -> str:
    return "cannot" if factor is None else "met" if factor == 1.0 else f"x {factor:,.2f}" if factor < 10 else f"x {factor:,.0f}"
