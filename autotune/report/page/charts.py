"""Charts of a report as data: options of Apache ECharts, built from typed results and drawn by page.js.

Every function returns a `Chart` or None where the result has nothing to draw; a chart carries the same numbers as a table, for
readers without eyes on a canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autotune.documents.plan import Plan, SearchResult
from autotune.documents.prediction import NOT_GROUPED, Prediction, StepPrediction
from cost_models.operator_groups import GROUPS
from cost_models.specs.base import Spec

if TYPE_CHECKING:
    from autotune.auditing.sensitivity import Sensitivity

GB = 1e9
SMALL_SHARE = 0.005
LEAST_SWING = 0.001
SHOWN = (*(group for group in GROUPS if group != "overlap"), NOT_GROUPED)
"""Groups of operators in the order of a chart; what overlap hides is drawn apart."""
HIDDEN = "hidden by overlap"


class Chart(Spec):
    """One chart and its numbers in words."""

    id: str
    title: str
    says: str
    """One sentence: what to see."""
    option: dict[str, Any]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    height_px: int = 320


SHADOW = {"trigger": "axis", "axisPointer": {"type": "shadow"}}
HEAD_PX = 30
"""Height that a legend takes."""


def bars(names: Sequence[str], unit: str, series: Sequence[dict[str, Any]], *, legend: bool = False) -> dict[str, Any]:
    """Option of a horizontal bar chart, first name on top; each series has its data in the order of the names."""
    drawn = [{"type": "bar", **one, "data": list(one["data"])[::-1]} for one in series]
    return {
        "grid": {"left": 8, "right": 48, "top": HEAD_PX if legend else 8, "bottom": 8, "containLabel": True},
        "tooltip": SHADOW,
        "xAxis": {"type": "value", "name": unit},
        "yAxis": {"type": "category", "data": list(names)[::-1]},
        "series": drawn,
        **({"legend": {"top": 0, "type": "scroll"}} if legend else {}),
    }


def rows_px(count: int, *, legend: bool = False) -> int:
    """Height of a bar chart with so many rows."""
    return max(160, 28 * count + 50 + (HEAD_PX if legend else 0))


def step_breakdown(plans: Sequence[Plan]) -> Chart:
    """Operators of the best plan's step beside their rooflines."""
    prediction = plans[0].prediction
    lines = [line for line in prediction.operators if abs(line.share) >= SMALL_SHARE]
    option = bars(
        [line.name.replace("_", " ") for line in lines],
        "ms",
        [
            {"name": "predicted", "data": [round(line.time_s * 1e3, 3) for line in lines]},
            {"name": "roofline", "data": [round(line.bound_s * 1e3, 3) for line in lines], "barGap": "-60%", "barWidth": "35%"},
        ],
        legend=True,
    )
    rows = tuple(
        (
            line.name.replace("_", " "),
            f"{line.time_s * 1e3:.3f} ms",
            f"{line.share:.1%}",
            f"{line.over_bound:.2f}" if line.over_bound else "-",
            line.status + (f" (outside: {'; '.join(line.outside_box)})" if line.outside_box else ""),
            line.family,
        )
        for line in prediction.operators
    )
    return Chart(
        id="breakdown",
        title="Where a step goes",
        says=f"A step of plan 1: {prediction.step_s * 1e3:,.1f} ms; {prediction.bottleneck} bounds it. Thin bars are rooflines.",
        option=option,
        columns=("operator", "time", "share", "x roofline", "coefficients", "priced by"),
        rows=rows,
        height_px=rows_px(len(lines), legend=True),
    )


def memory(plans: Sequence[Plan]) -> Chart:
    """Memory of one GPU of every plan, line by line, against the limit."""
    names = list(dict.fromkeys(line.name for plan in plans for line in plan.prediction.memory))
    labels = [f"{plan.rank}: {plan.label}" for plan in plans]
    by_plan = [{line.name: line.bytes for line in plan.prediction.memory} for plan in plans]
    limit = plans[0].prediction.memory_limit_bytes / GB
    series: list[dict[str, Any]] = [
        {"name": name.replace("_", " "), "stack": "memory", "data": [round(lines.get(name, 0.0) / GB, 3) for lines in by_plan]}
        for name in names
        if any(lines.get(name, 0.0) > 0 for lines in by_plan)
    ]
    series[0]["markLine"] = {
        "symbol": "none",
        "data": [{"xAxis": round(limit, 2)}],
        "label": {"formatter": f"limit {limit:,.1f} GB"},
    }
    option = bars([f"plan {plan.rank}" for plan in plans], "GB", series, legend=True)
    option["grid"]["top"] = 56
    option["xAxis"]["max"] = round(limit * 1.08, 1)
    rows = tuple((name.replace("_", " "), *(f"{lines.get(name, 0.0) / GB:,.2f} GB" for lines in by_plan)) for name in names)
    total = tuple(f"{plan.prediction.memory_total_bytes / GB:,.2f} GB" for plan in plans)
    return Chart(
        id="memory",
        title="Memory of one GPU",
        says=f"Plan 1 fills {total[0]} of {limit:,.1f} GB that a plan may use.",
        option=option,
        columns=("line", *labels),
        rows=(*rows, ("total", *total)),
        height_px=90 + 70 * len(plans),
    )


def step_timeline(prediction: StepPrediction) -> Chart:
    """A step as a waterfall: operators one after another, what overlap hides taken back at the end."""
    positive = [line for line in prediction.operators if line.time_s > 0 and abs(line.share) >= SMALL_SHARE]
    order = {group: i for i, group in enumerate(SHOWN)}
    positive.sort(key=lambda line: order[line.group])
    rest_s = sum(line.time_s for line in prediction.operators if line.time_s > 0 and abs(line.share) < SMALL_SHARE)
    hidden_s = -sum(line.time_s for line in prediction.operators if line.time_s < 0)
    spans = [(line.name.replace("_", " "), line.time_s) for line in positive] + ([("others", rest_s)] if rest_s else [])
    starts, clock = [], 0.0
    for _, time_s in spans:
        starts.append(clock)
        clock += time_s
    spans_drawn = [(name, start, time_s) for (name, time_s), start in zip(spans, starts, strict=True)]
    if hidden_s:
        spans_drawn.append(("hidden by overlap", clock - hidden_s, hidden_s))
    option = bars(
        [name for name, _, _ in spans_drawn],
        "ms",
        [
            {
                "name": "before",
                "stack": "time",
                "silent": True,
                "itemStyle": {"color": "transparent"},
                "tooltip": {"show": False},
                "data": [round(start * 1e3, 3) for _, start, _ in spans_drawn],
            },
            {"name": "time", "stack": "time", "data": [round(t * 1e3, 3) for _, _, t in spans_drawn]},
        ],
    )
    kinds = ", ".join(
        f"{name.replace('_', ' ')} {time_s * 1e3:,.1f} ms" for name, time_s in prediction.layer_kinds.items() if time_s
    )
    return Chart(
        id="timeline",
        title="One step from start to end",
        says=f"All layers together, kinds of kernels one after another: {kinds}.",
        option=option,
        columns=("operator", "starts", "takes"),
        rows=tuple((name, f"{start * 1e3:,.3f} ms", f"{t * 1e3:,.3f} ms") for name, start, t in spans_drawn),
        height_px=rows_px(len(spans_drawn)),
    )


def flags(plan: Plan) -> Chart | None:
    """What each engine default would cost."""
    settings = [s for s in plan.flags.settings if s.chosen != s.default]
    if not settings:
        return None
    ordered = sorted(settings, key=lambda s: -s.loss)
    series = [{"name": "throughput lost with the default", "data": [round(s.loss * 100, 2) for s in ordered]}]
    option = bars([s.name.replace("_", " ") for s in ordered], "% lost", series)
    rows = tuple((s.name, str(s.chosen), str(s.default), f"{s.loss:.1%}", ", ".join(s.violates) or "-") for s in ordered)
    return Chart(
        id="flags",
        title="Engine flags, and what each default would cost",
        says="Throughput lost with the engine's own value, everything else as chosen.",
        option=option,
        columns=("flag", "chosen", "default", "lost", "default breaks"),
        rows=rows,
        height_px=rows_px(len(ordered)),
    )


def measurements(result: SearchResult) -> Chart | None:
    """What the error bars hang on."""
    if not result.measurements:
        return None
    values = sorted(result.measurements, key=lambda m: -m.variance_share)
    series = [{"name": "share of the variance", "data": [round(m.variance_share * 100, 1) for m in values]}]
    option = bars([m.family for m in values], "% of variance", series)
    rows = tuple((m.family, ", ".join(m.operators), f"{m.variance_share:.0%}", f"{m.regret_reduction:.2%}") for m in values)
    return Chart(
        id="measurements",
        title="What the error bars hang on",
        says=f"Timing {values[0].family} would tell most about this choice.",
        option=option,
        columns=("kernels", "operators", "share of the variance", "worth measuring"),
        rows=rows,
        height_px=rows_px(len(values)),
    )


def rebalancing(result: SearchResult) -> Chart | None:
    """Throughput against the interval between rebalances."""
    points = sorted(result.rebalancing, key=lambda p: p.interval_steps)
    if not points:
        return None
    option = {
        "grid": {"left": 8, "right": 24, "top": 32, "bottom": 40, "containLabel": True},
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "log", "name": "steps between rebalances", "nameLocation": "middle", "nameGap": 28},
        "yAxis": {"type": "value", "name": "tokens/s/GPU", "scale": True},
        "series": [
            {
                "type": "line",
                "name": "tokens/s/GPU",
                "data": [[p.interval_steps, round(p.tokens_per_s_per_gpu, 1)] for p in points],
            }
        ],
    }
    best = max(points, key=lambda p: p.tokens_per_s_per_gpu)
    return Chart(
        id="rebalancing",
        title="How often to rebalance experts",
        says=(
            f"Best every {best.interval_steps:,} steps with a window of {best.window_steps:,}: "
            f"the busiest rank has {best.max_over_mean:.3f} x the mean."
        ),
        option=option,
        columns=("every", "window", "busiest rank / mean", "tokens/s/GPU"),
        rows=tuple(
            (
                f"{p.interval_steps:,} steps",
                f"{p.window_steps:,} steps",
                f"{p.max_over_mean:.3f}",
                f"{p.tokens_per_s_per_gpu:,.0f}",
            )
            for p in points
        ),
    )


def expert_load(plan: Plan) -> Chart | None:
    """Load of every layer's busiest GPU before and after placing experts."""
    layers = plan.placement.busiest if plan.placement else ()
    if not layers:
        return None
    names = ("experts in order", "EPLB", "this placement", "at best")
    values = [(entry.in_order, entry.eplb, entry.placed, entry.bound) for entry in layers]
    series = [
        {
            "name": name,
            "type": "line",
            "symbolSize": 4,
            **({"lineStyle": {"type": "dashed"}} if name == names[-1] else {}),
            "data": [[entry.layer, round(row[i], 4)] for entry, row in zip(layers, values, strict=True)],
        }
        for i, name in enumerate(names)
    ]
    before, eplb, after, _ = (sum(column) / len(layers) for column in zip(*values, strict=True))
    return Chart(
        id="experts",
        title="Expert load before and after placement",
        says=(
            f"The busiest GPU of a layer carries {before:.3f} x the mean with experts in order, {after:.3f} x as placed, "
            f"{eplb:.3f} x with EPLB: mean over {len(layers)} layers, each in its worst recorded workload."
        ),
        option={
            "grid": {"left": 8, "right": 24, "top": 56, "bottom": 40, "containLabel": True},
            "legend": {"top": 0, "type": "scroll"},
            "tooltip": {"trigger": "axis"},
            "xAxis": {"type": "value", "name": "layer", "nameLocation": "middle", "nameGap": 28, "scale": True},
            "yAxis": {"type": "value", "name": "busiest GPU / mean", "scale": True},
            "series": series,
        },
        columns=("layer", *names),
        rows=tuple((str(entry.layer), *(f"{value:.3f}" for value in row)) for entry, row in zip(layers, values, strict=True)),
    )


def tornado_chart(found: Sensitivity) -> Chart:
    """Throughput when one parameter is 20 % smaller or larger, most influential first."""
    low, high = found.steps.index(-0.2), found.steps.index(0.2)
    shown = [i for i in found.influences if i.swing > LEAST_SWING]
    series = [
        {"name": name, "stack": "change", "data": [round(100 * i.effects[step], 2) for i in shown]}
        for name, step in (("20 % smaller", low), ("20 % larger", high))
    ]
    return Chart(
        id="sensitivity",
        title="What throughput hangs on",
        says=f"Change of tokens/s when one parameter is 20 % smaller or larger, all else equal; {shown[0].name} weighs most."
        if shown
        else "No single parameter moves throughput by more than a tenth of a per cent.",
        option=bars([i.name for i in shown], "% of tokens/s", series, legend=True),
        columns=("parameter", "20 % smaller", "20 % larger"),
        rows=tuple((i.name, f"{i.effects[low]:+.1%}", f"{i.effects[high]:+.1%}") for i in found.influences),
        height_px=rows_px(len(shown), legend=True),
    )


def pool_charts(result: SearchResult) -> list[Chart]:
    """All charts that a pool's result has numbers for, in reading order."""
    best = result.best
    found = [
        step_breakdown(result.plans),
        step_timeline(best.prediction),
        memory(result.plans),
        flags(best),
        expert_load(best),
        rebalancing(result) if isinstance(best.prediction, Prediction) else None,
        measurements(result),
    ]
    return [chart for chart in found if chart]
