"""Terminal report of a fleet."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.documents.fleet import FleetProblem, FleetResult
from autotune.documents.plan import SolverSummary
from autotune.report.printing import ms, new_table


def fleet_report(problem: FleetProblem, result: FleetResult) -> RenderableType:
    """What to buy, what runs where, and what the next rack would buy."""
    bought = [f"{c.bought} x {c.name}" for c in result.clusters if c.bought]
    head = Text(
        "no racks to buy" if not bought else f"buy {', '.join(bought)} for {result.purchase_usd:,.0f} USD", style="bold green"
    )
    used = sum(c.used_gpus for c in result.clusters)
    hourly = f", {result.usd_per_hour:,.2f} USD an hour" if result.usd_per_hour is not None else ""
    head.append(f"   {used:,} of {sum(c.gpus for c in result.clusters):,} GPUs in use{hourly}", style="default")
    lines = Text(
        f"proof: racks {_proof(result.purchase)}; use {_proof(result.running)}; {result.options} services to choose from\n"
        f"all loads could grow {result.growth:.2f} times with these racks"
    )
    for rack in result.next_racks:
        lines.append(f"\none more rack of {rack.cluster}: {rack.growth:.2f} times")
    return Group(head, lines, Text(), _services(problem, result), Text(), _clusters(result))


def _proof(summary: SolverSummary) -> str:
    return f"{summary.status.lower()}, gap {summary.gap:.1%}"


def _services(problem: FleetProblem, result: FleetResult) -> Table:
    table = new_table("Services")
    for name in ("model", "requests/s", "cluster", "replicas", "GPUs", "each", "sent/carried", "TPOT", "TTFT P99", "P(limits)"):
        table.add_column(name, justify="left" if name in ("model", "cluster", "each") else "right")
    for model in problem.models:
        for at, p in enumerate(result.of(model.name)):
            first = (model.name, f"{model.rate_per_s:,.1f}") if not at else ("", "")
            load = f"{p.share_per_s_each:,.1f}/{p.requests_per_s_each:,.1f}"
            times = (ms(p.tpot_s), ms(p.ttft_p99_s), f"{p.probability:.0%}")
            table.add_row(*first, p.cluster, str(p.replicas), str(p.gpus), p.label, load, *times)
    return table


def _clusters(result: FleetResult) -> Table:
    table = new_table("Clusters")
    for name in ("cluster", "hardware", "racks", "bought", "GPUs", "in use"):
        table.add_column(name, justify="left" if name in ("cluster", "hardware") else "right")
    for c in result.clusters:
        table.add_row(c.name, c.hardware, str(c.racks), str(c.bought), f"{c.gpus:,}", f"{c.used_gpus:,}")
    return table
