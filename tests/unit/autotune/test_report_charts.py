"""Charts that only some runs have: price of a service, load of experts before and after placement."""

from __future__ import annotations

import re

import numpy as np
import pytest

from autotune.documents.plan import Plan, SearchResult
from autotune.documents.problem import Problem
from autotune.documents.service_plan import ServiceResult
from autotune.exporters.folders import launches_of
from autotune.placement.placing import place
from autotune.placement.skew import planned
from autotune.placement.solve import gpu_loads, in_order, normalised
from autotune.placement.synthetic import synthetic_loads
from autotune.report.page.charts import Chart, expert_load, pool_charts
from autotune.report.page.folder import page_of
from autotune.report.page.page import render_page
from autotune.report.page.service_charts import charts_of_service, cost_by_pool
from autotune.searching.pools import search
from autotune.searching.services.searching import search_services
from cost_models.catalog import load_model

GPUS, SPARES = 16, 16
LOAD = {"rate_per_s": 2}


@pytest.fixture(scope="module")
def asked() -> Problem:
    prices = {"gpu_hour_usd": 3.5, "prefill_gpu_hour_usd": 2.0, "prefill_hardware": "hgx-h20", "prefill_gpus": 16}
    return Problem.model_validate({"hardware": "hgx-h200", "target": "serve", "gpus": 16, "load": LOAD, **prices})


@pytest.fixture(scope="module")
def service(asked: Problem) -> ServiceResult:
    return search_services(asked)


def chart_of(charts: list[Chart], name: str) -> Chart:
    return next(chart for chart in charts if chart.id == name)


@pytest.mark.slow
def test_the_price_of_a_million_tokens_is_that_of_its_pools(asked: Problem, service: ServiceResult) -> None:
    prices = asked.gpu_hour_usd_by_phase
    assert prices == {"prefill": 2.0, "decode": 3.5, "serve": 3.5}
    for plan in service.plans:
        cost = cost_by_pool(plan, prices)
        # GPUs x USD per GPU hour, over the million tokens that an hour brings
        for pool in plan.pools:
            assert cost[pool.phase] == pytest.approx(pool.gpus * prices[pool.phase] / (plan.prediction.tokens_per_s * 3600 / 1e6))
        assert sum(cost.values()) == pytest.approx(plan.usd_per_million_tokens)


@pytest.mark.slow
def test_the_chart_of_the_price_says_the_same_as_its_table(asked: Problem, service: ServiceResult) -> None:
    chart = chart_of(charts_of_service(service, 2000, asked.gpu_hour_usd_by_phase), "cost")
    drawn = [sum(series["data"][::-1][i] for series in chart.option["series"]) for i in range(len(service.plans))]
    for row, plan, bar in zip(chart.rows, service.plans, drawn, strict=True):
        assert row[0] == f"{plan.rank}: {plan.label}"
        assert row[1] == f"{plan.usd_per_million_tokens:,.2f}"
        assert bar == pytest.approx(plan.usd_per_million_tokens, abs=2e-4)
        low, high = (float(end) for end in row[2].split(" to "))
        assert low < float(row[1]) < high


@pytest.mark.slow
def test_a_service_without_a_price_has_no_chart_of_it(service: ServiceResult) -> None:
    unpriced = tuple(plan.model_copy(update={"usd_per_million_tokens": None}) for plan in service.plans)
    result = service.model_copy(update={"plans": unpriced})
    assert "cost" not in {chart.id for chart in charts_of_service(result, 2000, {})}


@pytest.fixture(scope="module")
def placed() -> Plan:
    """A plan with experts placed for made-up loads."""
    model = load_model("deepseek-v3")
    loads = synthetic_loads(model, 1.0)
    found = planned(place(loads, model, GPUS, SPARES, 8), loads)
    best = search(Problem(hardware="hgx-h200", gpus=8, trials=0)).best
    return best.model_copy(update={"placement": found})


def test_the_busiest_gpu_is_that_of_the_loads(placed: Plan) -> None:
    model = load_model("deepseek-v3")
    loads = synthetic_loads(model, 1.0)
    placement = placed.placement
    assert placement is not None
    assert len(placement.busiest) == 58  # DeepSeek-V3: 61 layers, the first 3 dense
    for i in (0, 20, 57):
        entry, share = placement.busiest[i], normalised(loads.layer(i))
        assert entry.layer == 3 + i
        assert entry.in_order == pytest.approx(gpu_loads(share, in_order(256, 272, GPUS)).max() * GPUS)
        assert entry.placed == pytest.approx(gpu_loads(share, np.array(placement.experts[i])).max() * GPUS)
        assert 1.0 <= entry.bound <= entry.placed + 1e-9
        assert entry.placed < entry.in_order
    # balancedness is mean / max, averaged over layers
    assert np.mean([1 / entry.placed for entry in placement.busiest]) == pytest.approx(placement.balanced)


def test_expert_load_is_drawn_before_and_after(placed: Plan) -> None:
    chart = expert_load(placed)
    assert chart is not None
    assert placed.placement is not None
    assert [series["name"] for series in chart.option["series"]] == ["experts in order", "EPLB", "this placement", "at best"]
    assert len(chart.rows) == 58
    before, after = (np.mean([getattr(e, name) for e in placed.placement.busiest]) for name in ("in_order", "placed"))
    assert f"carries {before:.3f} x the mean with experts in order, {after:.3f} x as placed" in chart.says


def test_plans_without_recorded_loads_have_no_such_chart(placed: Plan) -> None:
    assert placed.placement is not None
    assert expert_load(placed.model_copy(update={"placement": None})) is None
    older = placed.placement.model_copy(update={"busiest": ()})
    assert expert_load(placed.model_copy(update={"placement": older})) is None


@pytest.mark.slow
def test_the_pages_have_them(asked: Problem, service: ServiceResult, placed: Plan) -> None:
    page = page_of(asked, service, None, [], launches_of(service.plans))
    assert re.search(r'<section id="cost".*?USD per million', render_page(page), re.DOTALL)
    problem = Problem(hardware="hgx-h200", gpus=8, trials=0)
    result = search(problem)
    with_map: SearchResult = result.model_copy(update={"plans": (placed, *result.plans[1:])})
    html = render_page(page_of(problem, with_map, None, [], launches_of(result.plans)))
    assert '<section id="experts"' in html
    assert "experts" in {chart.id for chart in pool_charts(with_map)}
