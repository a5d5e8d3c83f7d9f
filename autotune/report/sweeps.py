"""Terminal report of a sweep."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.documents.sweep import SweepResult, SweptRow
from autotune.report.printing import ms, new_table

SHOWN = 12
"""Plans in the table; the file has all."""
PLAIN = {"plan": "with a plan", "infeasible": "without a feasible plan", "bad": "bad", "failed": "failed"}


def sweep_report(result: SweepResult) -> RenderableType:
    """Counts, and the plans with the highest throughput per GPU."""
    counts = [f"{len(found):,} {text}" for name, text in PLAIN.items() if (found := result.with_status(name))]  # type: ignore[arg-type]
    known = len(result.rows) - result.solved
    before = f", {known:,} known before, alike or bad" if known else ""
    text = Text(
        f"{len(result.rows):,} problems: {', '.join(counts)}\n{result.solved:,} solved in {result.seconds:,.1f} s{before}"
    )
    plans = sorted(result.with_status("plan"), key=lambda row: -(row.found.tokens_per_s_per_gpu or 0))
    return Group(text, Text(), _plans(plans[:SHOWN])) if plans else text


def _plans(rows: list[SweptRow]) -> Table:
    table = new_table("Highest tokens/s/GPU")
    for name in ("#", "problem", "plan", "tokens/s/GPU", "latency", "GPUs"):
        left = name in ("problem", "plan")
        table.add_column(name, justify="left" if left else "right", style="cyan" if name == "plan" else None)
    for row in rows:
        found, asked = row.found, row.problem
        names = (asked.get("model", "deepseek-v3"), asked.get("hardware"), asked.get("target", "decode"))
        latency_s = found.tpot_s or found.prompt_s or 0.0
        rate = f"{found.tokens_per_s_per_gpu or 0:,.0f}"
        table.add_row(str(row.number), ", ".join(map(str, names)), found.label, rate, ms(latency_s), str(found.gpus))
    return table


def complaints(result: SweepResult, where: str) -> list[str]:
    """One line for each fault, however many problems share it."""
    grouped: dict[tuple[int | None, str], list[SweptRow]] = {}
    for row in (*result.with_status("bad"), *result.with_status("failed")):
        grouped.setdefault((row.line, row.found.message), []).append(row)
    lines = []
    for (line, message), rows in grouped.items():
        place = f"{where}:{line}" if line else f"{where}: problem {rows[0].number}"
        lines.append(f"{place}: {message}" + (f" ({len(rows):,} problems)" if len(rows) > 1 else ""))
    return lines
