"""Searching whole services: rates, limits, kinds, prices, loads and what cannot be had."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autotune.documents.deployment import Load
from autotune.documents.problem import Problem
from autotune.documents.service_plan import ServiceResult
from autotune.errors import NoFeasiblePlan, ProblemError
from autotune.layouts.phases import AGGREGATED
from autotune.resolving import resolve_problem
from autotune.searching.pools import search
from autotune.searching.services.choosing import aggregated, disaggregated
from autotune.searching.services.evaluating import service_deployment
from autotune.searching.services.searching import search_services
from autotune.searching.services.sides import (
    aggregated_candidates,
    decode_candidates,
    pools_of,
    prefill_candidates,
    transfer_per_s,
)
from autotune.serving.predicting import predict_service

SMALL = {"model": "qwen3-30b-a3b", "gpus": 4}
"""For claims that hold of any model: a quarter of the layouts of DeepSeek-V3 on 16 GPUs."""


def service(hardware: str = "hgx-h200", gpus: int = 16, **changes) -> Problem:
    return Problem(**{"hardware": hardware, "target": "serve", "gpus": gpus, "top_k": 2, **changes})


@pytest.fixture(scope="module")
def default() -> ServiceResult:
    return search_services(service(gpus=32))


@pytest.mark.slow
def test_the_best_plan_meets_its_limits_on_the_gpus_there_are(default):
    best = default.best
    assert best.meets_limits
    assert best.prediction.gpus <= 32
    assert {o.name for o in best.objectives} == {"TTFT P99", "mean TPOT"}
    assert all(0 <= o.probability <= 1 for o in best.objectives)
    rates = [plan.prediction.tokens_per_s_per_gpu for plan in default.plans]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.slow
def test_predict_gives_a_plan_its_own_prediction(default):
    for plan in default.plans:
        assert predict_service(plan.deployment) == plan.prediction


@pytest.mark.slow
def test_the_service_serves_what_its_slower_pool_takes(default):
    for plan in (p for p in default.plans if p.kind == "disaggregated"):
        slower = min(pool.planned_requests_per_s for pool in plan.pools)
        assert (
            0.5 * slower <= plan.prediction.requests_per_s <= 1.5 * slower
        )  # a replay may find the margin for fluctuations too careful
        assert plan.solver.gap == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hardware", "model", "tpot_limit_s"), [("hgx-h100", "llama-3.1-8b", 0.01), ("hgx-h200", "qwen3-30b-a3b", 0.012)]
)
def test_a_small_service_is_planned_for_all_that_it_carries(hardware, model, tpot_limit_s):
    """With a dozen sequences the margin for fluctuations is most of the batch, so the planned rate says little."""
    problem = service(
        hardware, 1, model=model, tpot_limit_s=tpot_limit_s, top_k=1, workload={"isl_tokens": 1024, "osl_tokens": 256}
    )
    (plan,) = search_services(problem).plans
    assert plan.meets_limits
    assert plan.prediction.requests_per_s > 1.2 * plan.pools[0].planned_requests_per_s
    more = predict_service(plan.deployment.model_copy(update={"load": Load(rate_per_s=1.15 * plan.prediction.requests_per_s)}))
    limits = {o.name: o.limit for o in plan.objectives}
    assert more.overloaded or more.tpot_s.mean > limits["mean TPOT"] or more.ttft_s.p99 > limits["TTFT P99"]


def test_slots_are_half_as_many_again_as_a_planned_step_holds_where_they_fit():
    pools = pools_of(resolve_problem(service("hgx-h100", 1, model="llama-3.1-8b", tpot_limit_s=0.01)))
    (candidate,) = aggregated(pools, aggregated_candidates(pools), 1)
    batch = int(candidate.pools[0].row.batch[0])
    open_loop = service_deployment(pools, candidate, Load(rate_per_s=1.0)).pools["serve"]
    closed_loop = service_deployment(pools, candidate, Load(concurrency=batch)).pools["serve"]
    assert open_loop.batch_per_dp_rank == open_loop.flags["max_num_seqs"] == -(-3 * batch // 2)
    assert closed_loop.batch_per_dp_rank == batch


@pytest.mark.slow
def test_both_kinds_are_compared(default):
    assert default.verdict.startswith(("Disaggregated serves", "Aggregated serves"))
    assert {p.kind for p in default.pareto} == {"aggregated", "disaggregated"}
    for kind in ("aggregated", "disaggregated"):
        points = [p for p in default.pareto if p.kind == kind]
        speeds = [p.tokens_per_s_per_user for p in points]
        rates = [p.tokens_per_s_per_gpu for p in points]
        assert speeds == sorted(speeds, reverse=True)
        assert rates == sorted(rates)


@pytest.mark.slow
def test_short_answers_to_long_prompts_take_more_prefill():
    def share(isl: int, osl: int) -> float:
        pools = pools_of(resolve_problem(service(gpus=64, workload={"isl_tokens": isl, "osl_tokens": osl})))
        found = disaggregated(pools, prefill_candidates(pools), decode_candidates(pools), 1)[0]
        gpus = [int(p.row.gpus[0]) * p.instances for p in found.pools]
        return gpus[0] / sum(gpus)

    assert share(8000, 500) > share(2000, 2000) > share(500, 4000)


@pytest.mark.slow
def test_a_rate_is_carried_on_as_few_gpus_as_it_takes():
    few, many = (search_services(service(**SMALL | {"gpus": 16}, load={"rate_per_s": rate})).best for rate in (4.0, 30.0))
    assert few.prediction.gpus < many.prediction.gpus <= 16
    assert few.prediction.requests_per_s == pytest.approx(4.0)
    assert few.bound_by == "the load asked for"


@pytest.mark.slow
def test_a_closed_loop_fixes_the_batch():
    best = search_services(service(load={"concurrency": 64})).best
    in_flight = best.prediction.requests_per_s * (best.prediction.ttft_s.mean + 2000 * best.prediction.tpot_s.mean)
    assert in_flight == pytest.approx(64, rel=0.15)  # Little's law; the start and end of the run are not full
    assert [o.name for o in best.objectives] == ["mean TPOT"]


@pytest.mark.slow
def test_a_trace_is_planned_for_with_its_own_lengths(tmp_path):
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for i in range(400):
        second = i * 0.25
        lines.append(f"2023-11-16 18:{int(second // 60):02d}:{second % 60:09.6f},{1000 + 2000 * (i % 2)},{100 + i % 7}")
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(lines))
    best = search_services(service(load={"trace": str(trace)})).best
    assert best.prediction.requests == 400
    assert best.prediction.requests_per_s == pytest.approx(4.0, rel=0.25)


@pytest.mark.slow
def test_tighter_limits_serve_less():
    found = [search_services(service(**SMALL, top_k=1, tpot_limit_s=limit)).best for limit in (0.1, 0.02)]
    assert found[0].prediction.tokens_per_s_per_gpu > found[1].prediction.tokens_per_s_per_gpu


@pytest.mark.slow
def test_a_price_ranks_by_cost_and_cheap_prefill_is_taken():
    prices = {"prefill_hardware": "hgx-h20", "prefill_gpus": 32, "gpu_hour_usd": 4.0, "prefill_gpu_hour_usd": 1.0}
    best = search_services(service(gpus=32, **prices)).best
    prefill = next(pool for pool in best.pools if pool.phase == "prefill")
    assert prefill.hardware == "hgx-h20"
    assert best.deployment.pools["prefill"].hardware == "hgx-h20"
    decode_gpus = next(pool.gpus for pool in best.pools if pool.phase == "decode")
    dollars_per_s = (prefill.gpus * 1.0 + decode_gpus * 4.0) / 3600
    assert best.usd_per_million_tokens == pytest.approx(dollars_per_s / best.prediction.tokens_per_s * 1e6)


def test_links_bound_the_requests():
    # an FP8 latent cache of 576 B x 61 layers = 35,136 B per token makes 70.3 MB per prompt of 2,000 tokens: one 400 Gb/s NIC per
    # GPU hands over 711 prompts a second, 569 at the 80 % of its rate that large transfers reach
    pools = pools_of(resolve_problem(service(gpus=16)))
    rows = decode_candidates(pools)
    one = np.flatnonzero((rows.rows.rows.dp == 8) & (rows.rows.rows.tp == 1))[0]
    bytes_per_token = float(pools.decode.model.state_bytes(1, pools.decode.machine.recipe))
    expected = 8 * 0.8 * 50e9 / (2000 * bytes_per_token)
    assert transfer_per_s(pools, pools.decode, rows.rows)[one] == pytest.approx(expected)


def test_an_aggregated_engine_is_slower_than_its_decode_steps_alone():
    resolved = dataclasses.replace(resolve_problem(service()), pool="serve")
    pools = pools_of(resolve_problem(service()))
    rows = aggregated_candidates(pools).rows.rows
    cost = AGGREGATED.cost(resolved.machine, rows, pools.traffic.decoded)
    from cost_models.step import decode_step

    alone = decode_step(resolved.machine, rows, pools.traffic.decoded.context_tokens)
    assert (cost.latency_s > alone.tpot_s).all()


@pytest.mark.slow
def test_the_closed_form_of_an_aggregated_engine_agrees_with_its_replay():
    pools = pools_of(resolve_problem(service()))
    found = aggregated(pools, aggregated_candidates(pools), 3)
    for candidate in found:
        load = Load(rate_per_s=candidate.requests_per_s)
        replayed = predict_service(service_deployment(pools, candidate, load))
        chosen = candidate.pools[0]
        full = AGGREGATED.cost(chosen.resolved.machine, chosen.row, pools.traffic.decoded).latency_s[0]
        assert not replayed.overloaded
        assert replayed.tpot_s.mean < 1.1 * full  # the candidate keeps room for fluctuations, so it runs a smaller batch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({**SMALL, "tpot_limit_s": 0.001}, NoFeasiblePlan, r"Decode pool: latency_limit cannot hold.*over the 1\.0 ms limit"),
        ({"ttft_p99_limit_s": 0.02}, ProblemError, r"TTFT P99 limit of 20 ms.*before anything is computed"),
        ({**SMALL, "ttft_p99_limit_s": 0.06}, NoFeasiblePlan, r"Prefill pool: latency_limit cannot hold"),
        (
            {"load": {"rate_per_s": 5000.0}},
            NoFeasiblePlan,
            r"5,000\.0 requests/s were asked for, at most .* are served on 16 GPUs",
        ),
        ({"prefill_hardware": "ascend-910c"}, ProblemError, r"cannot reach each other|does not run on"),
        ({"prefill_hardware": "hgx-b300"}, ProblemError, r"cannot reach each other: hgx-b300 has Ethernet"),
        ({"prefill_gpus": 8}, ProblemError, r"name it as well"),
        ({"workload": {"isl_tokens": 100, "osl_tokens": 1}}, ProblemError, r"plan a prefill pool"),
        ({"min_concurrency": 8}, ProblemError, r"a service is asked for a load"),
        ({"objective": "tpot"}, ProblemError, r"does not fit target serve"),
    ],
)
def test_what_cannot_be_had_says_why(changes, error, message):
    with pytest.raises(error, match=message):
        search_services(service(**changes))


def test_only_a_service_has_a_load():
    with pytest.raises(ProblemError, match="load belong to --target serve"):
        resolve_problem(Problem(hardware="hgx-h200", load={"rate_per_s": 1.0}))


def test_each_search_names_the_other():
    with pytest.raises(ProblemError, match=r"use autotune\.search_services"):
        search(service())
    with pytest.raises(ProblemError, match=r"use autotune\.search"):
        search_services(Problem(hardware="hgx-h200"))
