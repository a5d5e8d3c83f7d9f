"""Terminal report of a service search."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.documents.service_plan import ServicePlan, ServiceResult
from autotune.report.printing import ms, new_table, paragraph

PARETO_KINDS = ("disaggregated", "aggregated")


def service_search_report(result: ServiceResult) -> RenderableType:
    """The whole report of a service search."""
    best, statistics = result.best, result.statistics
    searched = (
        f"{statistics.layouts} layouts, {statistics.rows:,} rows costed, {statistics.feasible_rows:,} feasible; "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in statistics.seconds.items())
    )
    parts: list[RenderableType] = [
        Text(best.label, style="bold"),
        _headline(best),
        _intervals(best),
        Text(f"bound by {best.bound_by}"),
        "",
        _limits_table(best),
        "",
        _pools_table(best),
        "",
        _plans_table(result),
        "",
        paragraph("Aggregated or disaggregated", result.verdict),
        "",
        _pareto_table(result),
        "",
        paragraph("Searched", searched),
        paragraph("Assumed", "; ".join(result.assumed) or "nothing"),
    ]
    if result.notes:
        parts.append(paragraph("Notes", " ".join(result.notes)))
    return Group(*parts)


def _headline(plan: ServicePlan) -> Text:
    prediction = plan.prediction
    text = Text()
    text.append(f"{prediction.tokens_per_s_per_gpu:,.0f} tokens/s/GPU", style="bold green")
    text.append(
        f"   {prediction.requests_per_s:,.1f} requests/s, {prediction.tokens_per_s:,.0f} tokens/s on {prediction.gpus} GPUs"
    )
    if plan.usd_per_million_tokens is not None:
        text.append(f"   {plan.usd_per_million_tokens:,.3f} USD per million output tokens")
    return text


def _intervals(plan: ServicePlan) -> Text:
    bars = plan.prediction.intervals
    rate = bars.tokens_per_s_per_gpu
    return Text(
        f"80 % interval {rate.low:,.0f}-{rate.high:,.0f} tokens/s/GPU, mean TTFT {ms(bars.ttft_s.low)} - {ms(bars.ttft_s.high)}, "
        f"mean TPOT {ms(bars.tpot_s.low)} - {ms(bars.tpot_s.high)}",
        style="dim",
    )


def _limits_table(plan: ServicePlan) -> Table:
    table = new_table("What requests see")
    for name in ("", "mean", "P50", "P95", "P99"):
        table.add_column(name, justify="right" if name else "left", style=None if name else "cyan")
    for name, seen in (("TTFT", plan.prediction.ttft_s), ("TPOT", plan.prediction.tpot_s)):
        table.add_row(name, *(ms(x) for x in (seen.mean, seen.p50, seen.p95, seen.p99)))
    for objective in plan.objectives:
        verdict = "met" if objective.met else "missed"
        table.add_row(f"{objective.name} limit", f"{ms(objective.limit)}", verdict, f"P(met) {objective.probability:.0%}")
    return table


def _pools_table(plan: ServicePlan) -> Table:
    table = new_table("Pools")
    for name in ("pool", "instances", "hardware", "GPUs", "requests/s planned", "requests/s its links take", "step"):
        table.add_column(name, justify="left" if name in ("pool", "instances", "hardware", "step") else "right")
    for pool in plan.pools:
        deployed = plan.deployment.pools[pool.phase]
        step = f"{deployed.max_batched_tokens:,} tokens per rank" if pool.phase == "prefill" else ""
        step = step or f"{deployed.batch_per_dp_rank:,} sequences per rank"
        links = "-" if pool.transfer_requests_per_s is None else f"{pool.transfer_requests_per_s:,.0f}"
        numbers = (str(pool.gpus), f"{pool.planned_requests_per_s:,.1f}", links)
        table.add_row(pool.phase, pool.label, pool.hardware, *numbers, step)
    return table


def _plans_table(result: ServiceResult) -> Table:
    table = new_table("Plans")
    for name in ("#", "service", "tokens/s/GPU", "requests/s", "GPUs", "TTFT P99", "TPOT", "solver"):
        table.add_column(name, justify="left" if name in ("service", "solver") else "right")
    for plan in result.plans:
        p = plan.prediction
        numbers = (f"{p.tokens_per_s_per_gpu:,.0f}", f"{p.requests_per_s:,.1f}", str(p.gpus), ms(p.ttft_s.p99), ms(p.tpot_s.mean))
        proof = f"{plan.solver.status.lower()}, gap {plan.solver.gap:.1%}"
        table.add_row(str(plan.rank), plan.label, *numbers, proof, style="bold" if plan.rank == 1 else None)
    return table


def _pareto_table(result: ServiceResult) -> Table:
    """Both kinds side by side, from fast to frugal."""
    table = new_table("Speed per user against tokens per GPU (steps only: no queues, no rounding to whole instances)")
    for name in ("kind", "tokens/s/user", "tokens/s/GPU", "decodes on"):
        table.add_column(name, justify="left" if name in ("kind", "decodes on") else "right")
    for kind in PARETO_KINDS:
        for point in (p for p in result.pareto if p.kind == kind):
            speed, rate = f"{point.tokens_per_s_per_user:,.1f}", f"{point.tokens_per_s_per_gpu:,.0f}"
            table.add_row(kind, speed, rate, point.label)
    return table
