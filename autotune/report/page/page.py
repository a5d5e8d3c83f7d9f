"""The page itself: results, charts and scripts into one file that needs no network."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from autotune.documents.candidates import Candidates
from autotune.documents.plan import Plan
from autotune.documents.prediction import Prediction
from autotune.documents.results import Result
from autotune.documents.service_plan import ServicePlan, ServiceResult
from autotune.report.page.advice import first_checks, sizing
from autotune.report.page.charts import Chart, pool_charts, tornado_chart
from autotune.report.page.layer_charts import layer_charts
from autotune.report.page.service_charts import charts_of_service
from autotune.report.page.tradeoff import data_of, tradeoff

if TYPE_CHECKING:
    from autotune.auditing.sensitivity import Sensitivity


@dataclass(frozen=True, slots=True)
class ShownScript:
    """A launch script of a plan as the page shows it."""

    plan: int
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class RunPage:
    """Everything a page is made of."""

    title: str
    result: Result
    candidates: Candidates | None
    command: Sequence[str]
    """As it was typed; empty where a search was called from Python."""
    osl_tokens: float
    scripts: Sequence[ShownScript]
    made: str
    """When and with what."""
    gpu_hour_usd: Mapping[str, float] = field(default_factory=dict)
    """Of a service's pools, by phase; empty without a price."""
    sensitivity: Sensitivity | None = None
    """Of the best plan, where it was asked for."""


def render_page(page: RunPage) -> str:
    """HTML of one run: no outside request, all text escaped, charts and tables of the same numbers."""
    charts = _charts(page)
    data = {"charts": {c.id: c.option for c in charts}, "candidates": data_of(page.candidates) if page.candidates else None}
    return filled(
        "page.html.j2",
        page=page,
        service=isinstance(page.result, ServiceResult),
        headline=page_headline(page.result),
        cards=cards(page.result),
        plans=page.result.plans,
        charts=charts,
        sizing=sizing(page.result),
        checks=first_checks(page.result),
        command=shlex.join(page.command) if page.command else "",
        data=data,
    )


def filled(template: str, *, data: Any, **values: Any) -> str:
    """A template with the chart library, script and style in it; `data` is what the script reads. All other text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("autotune.report.page")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(
        **values,
        data=embedded(data),
        library=asset("vendor", "echarts.common.min.js"),
        script=asset("templates", "page.js"),
        style=asset("templates", "page.css"),
    )


def embedded(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return (
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def asset(*parts: str) -> str:
    """A file shipped beside this module."""
    return resources.files("autotune.report.page").joinpath(*parts).read_text(encoding="utf-8")


def _charts(page: RunPage) -> list[Chart]:
    result = page.result
    if isinstance(result, ServiceResult):
        return charts_of_service(result, page.osl_tokens, page.gpu_hour_usd)
    weighed = [tradeoff(result, page.candidates)] if page.candidates and len(page.candidates) else []
    layers = layer_charts(result.best.prediction)
    return [*weighed, *pool_charts(result), *layers, *([tornado_chart(page.sensitivity)] if page.sensitivity else [])]


def page_headline(result: Result) -> str:
    """The answer in one line."""
    best = result.best
    return best.label if isinstance(best, Plan) and " x " in best.label else f"Plan 1: {best.label}"


def cards(result: Result) -> list[tuple[str, str, str]]:
    """Name, value and range of the numbers people came for."""
    return _service_cards(result.best) if isinstance(result, ServiceResult) else _pool_cards(result.best)


def _pool_cards(plan: Plan) -> list[tuple[str, str, str]]:
    prediction, bars = plan.prediction, plan.odds.uncertainty
    rate = bars.tokens_per_s_per_gpu
    decode = isinstance(prediction, Prediction)
    latency = ("TPOT", prediction.latency_s) if decode else ("one prompt alone", prediction.latency_s)
    times = bars.tpot_s or bars.step_s
    word = "sequences at once" if decode else "GPUs in all"
    count = prediction.concurrency if isinstance(prediction, Prediction) else prediction.gpus
    return [
        (
            "tokens/s/GPU" if decode else "prompt tokens/s/GPU",
            f"{prediction.tokens_per_s_per_gpu:,.0f}",
            f"80 %: {rate.low:,.0f} to {rate.high:,.0f}",
        ),
        (
            latency[0],
            f"{latency[1] * 1e3:,.1f} ms",
            f"{'80 %' if decode else 'step, 80 %'}: {times.low * 1e3:,.1f} to {times.high * 1e3:,.1f} ms",
        ),
        (
            "meets its latency limit",
            f"{plan.odds.latency_probability:.0%}",
            f"best of these plans: {plan.odds.best_probability:.0%}",
        ),
        (word, f"{count:,}", f"{prediction.tokens_per_s:,.0f} tokens/s on {prediction.gpus} GPUs"),
    ]


def _service_cards(plan: ServicePlan) -> list[tuple[str, str, str]]:
    prediction, bars = plan.prediction, plan.prediction.intervals
    rate, first, each = bars.tokens_per_s_per_gpu, bars.ttft_s, bars.tpot_s
    cost = (
        f"{plan.usd_per_million_tokens:,.2f} USD per million tokens"
        if plan.usd_per_million_tokens
        else f"{prediction.tokens_per_s:,.0f} tokens/s in all"
    )
    return [
        ("output tokens/s/GPU", f"{prediction.tokens_per_s_per_gpu:,.0f}", f"80 %: {rate.low:,.0f} to {rate.high:,.0f}"),
        (
            "mean time to first token",
            f"{prediction.ttft_s.mean * 1e3:,.0f} ms",
            f"80 %: {first.low * 1e3:,.0f} to {first.high * 1e3:,.0f} ms",
        ),
        ("mean TPOT", f"{prediction.tpot_s.mean * 1e3:,.1f} ms", f"80 %: {each.low * 1e3:,.1f} to {each.high * 1e3:,.1f} ms"),
        ("requests/s", f"{prediction.requests_per_s:,.1f}", cost),
    ]
