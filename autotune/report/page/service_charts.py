"""Charts of a service: its trade-off, its limits, its price and one request, as options of Apache ECharts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.documents.service_plan import ServicePlan, ServiceResult
from autotune.report.page.advice import SECONDS_PER_HOUR
from autotune.report.page.charts import Chart, bars


def charts_of_service(result: ServiceResult, osl_tokens: float, gpu_hour_usd: Mapping[str, float]) -> list[Chart]:
    """All charts that a service's result has numbers for, in reading order.

    gpu_hour_usd : by phase of a pool; empty where no price was given.
    """
    found = [
        service_pareto(result),
        service_limits(result.plans),
        service_cost(result.plans, gpu_hour_usd),
        request_timeline(result.best, osl_tokens),
    ]
    return [chart for chart in found if chart]


def service_pareto(result: ServiceResult) -> Chart:
    """Tokens/s/GPU against tokens/s per user, aggregated and disaggregated."""
    kinds = list(dict.fromkeys(point.kind for point in result.pareto))
    series = [
        {
            "name": kind,
            "type": "line",
            "symbolSize": 8,
            "data": [
                {"value": [round(p.tokens_per_s_per_user, 2), round(p.tokens_per_s_per_gpu, 1)], "name": p.label}
                for p in sorted(result.pareto, key=lambda p: p.tokens_per_s_per_user)
                if p.kind == kind
            ],
        }
        for kind in kinds
    ]
    return Chart(
        id="tradeoff",
        title="Throughput against speed per user",
        says=result.verdict,
        option={
            "grid": {"left": 8, "right": 24, "top": 48, "bottom": 40, "containLabel": True},
            "legend": {"top": 0},
            "tooltip": {"trigger": "item"},
            "xAxis": {"type": "value", "name": "tokens/s per user", "nameLocation": "middle", "nameGap": 28},
            "yAxis": {"type": "value", "name": "output tokens/s/GPU"},
            "series": series,
        },
        columns=("kind", "tokens/s per user", "tokens/s/GPU", "pools"),
        rows=tuple((p.kind, f"{p.tokens_per_s_per_user:,.1f}", f"{p.tokens_per_s_per_gpu:,.0f}", p.label) for p in result.pareto),
    )


def service_limits(plans: Sequence[ServicePlan]) -> Chart | None:
    """Predicted latencies as shares of their limits, with odds."""
    names = [objective.name for objective in plans[0].objectives]
    if not names:
        return None
    series: list[dict[str, Any]] = [
        {"name": f"plan {plan.rank}", "data": [round(100 * o.predicted / o.limit, 1) for o in plan.objectives]} for plan in plans
    ]
    series[0]["markLine"] = {"symbol": "none", "data": [{"xAxis": 100}], "label": {"formatter": "limit"}}
    rows = tuple(
        (str(plan.rank), o.name, f"{o.predicted * 1e3:,.0f} ms", f"{o.limit * 1e3:,.0f} ms", f"{o.probability:.0%}")
        for plan in plans
        for o in plan.objectives
    )
    return Chart(
        id="limits",
        title="Latencies against their limits",
        says="Predicted latency in per cent of its limit; the odds of meeting it stand in the table.",
        option=bars(names, "% of limit", series, legend=True),
        columns=("plan", "latency", "predicted", "limit", "met with"),
        rows=rows,
        height_px=60 * len(names) + 90,
    )


def request_timeline(plan: ServicePlan, osl_tokens: float) -> Chart:
    """One mean request: waiting and prefill up to the first token, then decoding."""
    prediction = plan.prediction
    ttft_s, decode_s = prediction.ttft_s.mean, prediction.tpot_s.mean * max(osl_tokens - 1, 0)
    series = [
        {"name": "to the first token", "stack": "request", "data": [round(ttft_s, 4)]},
        {"name": f"{osl_tokens:,.0f} tokens", "stack": "request", "data": [round(decode_s, 4)]},
    ]
    return Chart(
        id="request",
        title="One request",
        says=f"The mean request waits {ttft_s * 1e3:,.0f} ms for its first token and is done after {ttft_s + decode_s:,.1f} s.",
        option=bars(["request"], "s", series, legend=True),
        columns=("part", "mean", "P50", "P95", "P99"),
        rows=(
            ("time to first token", *(f"{v * 1e3:,.0f} ms" for v in _points(prediction.ttft_s))),
            ("time per output token", *(f"{v * 1e3:,.1f} ms" for v in _points(prediction.tpot_s))),
        ),
        height_px=130,
    )


def _points(percentiles: Any) -> tuple[float, ...]:
    return percentiles.mean, percentiles.p50, percentiles.p95, percentiles.p99


def service_cost(plans: Sequence[ServicePlan], gpu_hour_usd: Mapping[str, float]) -> Chart | None:
    """Price of a million output tokens, by the pool whose GPUs it pays for.

    USD per million tokens of a pool = GPUs x USD per GPU hour / (tokens/s x 3600 / 1e6). Its interval is that of the throughput.
    """
    priced = [plan for plan in plans if plan.usd_per_million_tokens]
    if not priced or not gpu_hour_usd:
        return None
    costs = [cost_by_pool(plan, gpu_hour_usd) for plan in priced]
    phases = list(dict.fromkeys(phase for cost in costs for phase in cost))
    names = ["one pool" if phase == "serve" else phase for phase in phases]
    series = [
        {"name": name, "stack": "cost", "data": [round(cost.get(phase, 0.0), 4) for cost in costs]}
        for name, phase in zip(names, phases, strict=True)
    ]
    rows = [_priced(plan, cost, phases) for plan, cost in zip(priced, costs, strict=True)]
    best = priced[0]
    return Chart(
        id="cost",
        title="Cost of a million output tokens",
        says=f"Plan {best.rank}: {best.usd_per_million_tokens:,.2f} USD at the prices given, for {rows[0][-1]} USD an hour.",
        option=bars([f"plan {plan.rank}" for plan in priced], "USD", series, legend=True),
        columns=("plan", "USD per million", "80 %", *names, "GPUs", "USD an hour"),
        rows=tuple(rows),
        height_px=90 + 50 * len(priced),
    )


def cost_by_pool(plan: ServicePlan, gpu_hour_usd: Mapping[str, float]) -> dict[str, float]:
    """USD per million output tokens that each pool's GPUs take, by phase."""
    millions_per_hour = plan.prediction.tokens_per_s * SECONDS_PER_HOUR / 1e6
    return {pool.phase: pool.gpus * gpu_hour_usd[pool.phase] / millions_per_hour for pool in plan.pools}


def _priced(plan: ServicePlan, cost: Mapping[str, float], phases: Sequence[str]) -> tuple[str, ...]:
    """A plan's row: as dear as its throughput is low."""
    total, rate, ends = sum(cost.values()), plan.prediction.tokens_per_s_per_gpu, plan.prediction.intervals.tokens_per_s_per_gpu
    return (
        f"{plan.rank}: {plan.label}",
        f"{total:,.2f}",
        f"{total * rate / ends.high:,.2f} to {total * rate / ends.low:,.2f}" if ends.low > 0 else "-",
        *(f"{cost[phase]:,.2f}" if phase in cost else "-" for phase in phases),
        f"{plan.prediction.gpus}",
        f"{total * plan.prediction.tokens_per_s * SECONDS_PER_HOUR / 1e6:,.2f}",
    )
