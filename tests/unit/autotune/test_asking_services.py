"""Asking a service's run why not another, and its sizing in words."""

from __future__ import annotations

import pytest

from autotune.documents.problem import Problem
from autotune.documents.service_plan import ServiceResult
from autotune.errors import ProblemError
from autotune.exporters.folders import launches_of
from autotune.report.asking_services import explain_run, explain_service
from autotune.report.page.advice import sizing
from autotune.report.page.folder import page_of
from autotune.searching.services.searching import search_services

PROBLEM = Problem(hardware="hgx-h200", target="serve", gpus=16, top_k=2, trials=0, gpu_hour_usd=2.0)


@pytest.fixture(scope="module")
def result() -> ServiceResult:
    return search_services(PROBLEM)


@pytest.mark.slow
def test_every_ranked_kind_is_set_beside_the_best(result: ServiceResult) -> None:
    best = result.best.prediction.tokens_per_s_per_gpu
    for kind in {plan.kind for plan in result.plans}:
        first = next(plan for plan in result.plans if plan.kind == kind)
        answer = explain_service(result, kind)
        assert answer.layout == first.label
        assert answer.relative == pytest.approx(first.prediction.tokens_per_s_per_gpu / best - 1)
        assert first.bound_by in answer.text


def test_the_second_plan_is_told_by_its_differences(result: ServiceResult) -> None:
    slower = result.best.model_copy(
        update={
            "rank": 2,
            "kind": "aggregated" if result.best.kind == "disaggregated" else "disaggregated",
            "prediction": result.best.prediction.model_copy(
                update={"tokens_per_s_per_gpu": result.best.prediction.tokens_per_s_per_gpu * 0.75, "overloaded": True}
            ),
            "usd_per_million_tokens": result.best.usd_per_million_tokens + 0.25,
        }
    )
    two = result.model_copy(update={"plans": (result.best, slower)})
    answer = explain_service(two, slower.kind)
    assert not answer.feasible
    assert answer.breaks == ("carrying the load",)
    assert "-25.0% tokens/s/GPU" in answer.text
    assert "+0.250 USD" in answer.text


def test_a_kind_that_was_not_ranked_is_not_guessed(result: ServiceResult) -> None:
    only = result.model_copy(update={"plans": (result.best,)})
    other = "aggregated" if result.best.kind == "disaggregated" else "disaggregated"
    with pytest.raises(ProblemError, match="not known"):
        explain_service(only, other)


@pytest.mark.parametrize("asked", ["", "fast", "aggregated disaggregated", "tp8; rm -rf"])
def test_a_question_that_cannot_be_read_is_refused(result: ServiceResult, asked: str) -> None:
    with pytest.raises(ProblemError, match="cannot read"):
        explain_service(result, asked)


def test_a_page_of_a_service_is_asked_about_its_service(result: ServiceResult) -> None:
    page = page_of(PROBLEM, result, None, [], launches_of(result.plans))
    assert explain_run(page, result.best.kind) == explain_service(result, result.best.kind)


def test_a_fleet_costs_its_gpus_times_their_price(result: ServiceResult) -> None:
    assert any(f"{result.best.prediction.gpus * 2.0:,.2f} USD an hour" in line for line in sizing(result))


def test_sequences_of_an_instance_times_instances_are_those_of_the_service(result: ServiceResult) -> None:
    pool = next(pool for pool in result.best.pools if pool.phase != "prefill")
    each = result.best.prediction.decode_sequences / result.best.deployment.pools[pool.phase].instances
    assert any(f"{each:,.0f} sequences decode at once on each instance" in line for line in sizing(result))
