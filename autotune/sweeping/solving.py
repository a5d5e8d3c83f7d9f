"""One problem of a sweep: what every worker runs, wherever it runs."""

from __future__ import annotations

from autotune.documents.plan import SearchResult
from autotune.documents.prediction import Prediction
from autotune.documents.problem import Problem
from autotune.documents.service_plan import ServicePlan
from autotune.documents.sweep import Found
from autotune.errors import NoFeasiblePlan
from autotune.searching.pools import search
from autotune.searching.services.searching import search_services
from cost_models.errors import AutotuneError


def solve(problem_json: str) -> str:
    """Solve one problem; text in, text out, so that it can be sent anywhere.

    problem_json : a Problem. Returns a Found. Faults of the program are an answer too: a thousand others wait.
    """
    try:
        found = _found(Problem.model_validate_json(problem_json))
    except NoFeasiblePlan as error:
        found = Found(status="infeasible", message=str(error))
    except AutotuneError as error:
        found = Found(status="bad", message=str(error))
    except Exception as error:  # reported as such, with exit code 1, and tried again by the next run
        found = Found(status="failed", message=f"a fault of autotune's: {type(error).__name__}: {error}")
    return found.model_dump_json()


def _found(problem: Problem) -> Found:
    if problem.target == "serve":
        return _of_service(search_services(problem).best)
    return _of_pool(search(problem), problem)


def _of_pool(result: SearchResult, problem: Problem) -> Found:
    plan, prediction = result.best, result.best.prediction
    band = plan.odds.uncertainty.tokens_per_s_per_gpu
    return Found(
        status="plan",
        kind=problem.target,
        label=plan.label,
        gpus=prediction.gpus,
        tokens_per_s_per_gpu=prediction.tokens_per_s_per_gpu,
        low_tokens_per_s_per_gpu=band.low,
        high_tokens_per_s_per_gpu=band.high,
        tokens_per_s=prediction.tokens_per_s,
        tpot_s=prediction.tpot_s if isinstance(prediction, Prediction) else None,
        prompt_s=None if isinstance(prediction, Prediction) else prediction.prompt_s,
        probability=plan.odds.latency_probability,
        deployment=plan.deployment,
    )


def _of_service(plan: ServicePlan) -> Found:
    prediction = plan.prediction
    return Found(
        status="plan",
        kind=plan.kind,
        label=plan.label,
        gpus=prediction.gpus,
        tokens_per_s_per_gpu=prediction.tokens_per_s_per_gpu,
        tokens_per_s=prediction.tokens_per_s,
        requests_per_s=prediction.requests_per_s,
        tpot_s=prediction.tpot_s.mean,
        ttft_p99_s=prediction.ttft_s.p99,
        probability=min((outcome.probability for outcome in plan.objectives), default=None),
        deployment=plan.deployment,
    )
