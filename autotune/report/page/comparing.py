"""Several runs side by side: what they found, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autotune.documents.plan import Plan
from autotune.documents.prediction import Prediction
from autotune.documents.service_plan import ServicePlan
from autotune.report.page.charts import HIDDEN, SHOWN, Chart, bars
from autotune.report.page.page import RunPage, filled
from cost_models.specs.base import Spec


class Comparison(Spec):
    """Rows of a table with one column per run."""

    names: tuple[str, ...]
    figures: tuple[tuple[str, ...], ...]
    """Name, then the value of every run."""
    settings: tuple[tuple[str, ...], ...]
    """Fields of the deployments in which the runs differ."""


def compare_runs(pages: Sequence[RunPage]) -> Comparison:
    """The best plans of several runs, figure by figure and setting by setting."""
    best = [page.result.best for page in pages]
    figures = [_figures(plan) for plan in best]
    names = list(dict.fromkeys(name for row in figures for name in row))
    flat = [_flat(plan.deployment.model_dump(mode="json", exclude_none=True)) for plan in best]
    keys = sorted({key for row in flat for key in row})
    differ = [key for key in keys if len({row.get(key, "-") for row in flat}) > 1]
    return Comparison(
        names=tuple(page.title for page in pages),
        figures=tuple((name, *(row.get(name, "-") for row in figures)) for name in names),
        settings=tuple((key, *(row.get(key, "-") for row in flat)) for key in differ),
    )


def _figures(plan: Plan | ServicePlan) -> dict[str, str]:
    prediction = plan.prediction
    found = {
        "plan": plan.label,
        "tokens/s/GPU": f"{prediction.tokens_per_s_per_gpu:,.0f}",
        "tokens/s": f"{prediction.tokens_per_s:,.0f}",
        "GPUs": f"{prediction.gpus}",
    }
    if isinstance(plan, ServicePlan):
        rate = plan.prediction.intervals.tokens_per_s_per_gpu
        return found | {
            "80 % interval": f"{rate.low:,.0f} to {rate.high:,.0f}",
            "mean TTFT": f"{plan.prediction.ttft_s.mean * 1e3:,.0f} ms",
            "TTFT P99": f"{plan.prediction.ttft_s.p99 * 1e3:,.0f} ms",
            "mean TPOT": f"{plan.prediction.tpot_s.mean * 1e3:,.1f} ms",
            "limits": ", ".join(f"{o.name} met with {o.probability:.0%}" for o in plan.objectives) or "none",
        }
    bars = plan.odds.uncertainty.tokens_per_s_per_gpu
    name = "TPOT" if isinstance(plan.prediction, Prediction) else "one prompt alone"
    return found | {
        "80 % interval": f"{bars.low:,.0f} to {bars.high:,.0f}",
        name: f"{plan.prediction.latency_s * 1e3:,.1f} ms",
        "meets the limit": f"{plan.odds.latency_probability:.0%}",
        "bottleneck": plan.prediction.bottleneck,
        "memory": f"{plan.prediction.memory_total_bytes / 1e9:,.1f} GB",
    }


def _flat(data: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names."""
    if not isinstance(data, dict):
        return {prefix: str(data)}
    found: dict[str, str] = {}
    for key, value in data.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def steps_compared(pages: Sequence[RunPage]) -> Chart | None:
    """Steps of several best plans, stacked by group of operators; none where a run plans a service."""
    plans = [page.result.best for page in pages]
    if not all(isinstance(plan, Plan) for plan in plans):
        return None
    sums: list[dict[str, float]] = []
    for plan in plans:
        row: dict[str, float] = {}
        for line in plan.prediction.operators if isinstance(plan, Plan) else ():
            group = HIDDEN if line.time_s < 0 else line.group
            row[group] = row.get(group, 0.0) + line.time_s * 1e3
        sums.append(row)
    labels = [f"run {i}" for i in range(1, len(pages) + 1)]
    groups = [g for g in (*SHOWN, HIDDEN) if any(row.get(g) for row in sums)]
    return Chart(
        id="steps",
        title="Where their steps go",
        says="One step of each best plan; what overlap hides is drawn to the left.",
        option=bars(
            labels,
            "ms",
            [{"name": g, "stack": "step", "data": [round(row.get(g, 0.0), 3) for row in sums]} for g in groups],
            legend=True,
        ),
        columns=("group", *labels),
        rows=tuple((g, *(f"{row.get(g, 0.0):,.2f} ms" for row in sums)) for g in groups),
        height_px=90 + 60 * len(pages),
    )


def render_comparison(pages: Sequence[RunPage]) -> str:
    """HTML of several runs side by side."""
    chart = steps_compared(pages)
    return filled(
        "compare.html.j2",
        data={"charts": {chart.id: chart.option} if chart else {}, "candidates": None},
        comparison=compare_runs(pages),
        charts=[chart] if chart else [],
    )
