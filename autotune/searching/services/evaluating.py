"""A candidate service as a deployment, replayed, and the largest load with which its limits hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from autotune.documents.deployment import Deployment, EngineChoice, Load, Pool, PoolRole
from autotune.documents.prediction import Interval, ServicePrediction
from autotune.documents.service_plan import LimitOutcome
from autotune.errors import ProblemError
from autotune.flags.space import Params, analytic_params
from autotune.resolving import ResolvedProblem
from autotune.searching.realising import pool_of, precision_of
from autotune.searching.services.choosing import Candidate, Chosen
from autotune.searching.services.sides import Pools
from autotune.serving.errors import QUANTILE_SIGMAS, probability_below
from autotune.serving.predicting import Service, service_of
from cost_models.rows import UNLIMITED

SEARCHED = (0.5, 1.2)
"""Share of the candidate's own rate between which the goodput is looked for."""
HALVINGS = 4


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A service at one load."""

    candidate: Candidate
    deployment: Deployment
    prediction: ServicePrediction
    objectives: tuple[LimitOutcome, ...]

    @property
    def holds(self) -> bool:
        """Whether every limit is met and the load carried."""
        return all(objective.met for objective in self.objectives) and not self.prediction.overloaded


def goodput(pools: Pools, candidate: Candidate, halvings: int = HALVINGS) -> Evaluated | None:
    """The candidate at the largest load with which its limits hold; at the asked load where there is one.

    None when the pools do not fit their memory after all, or when no load is small enough.
    """
    load = pools.traffic.load
    deployment = service_deployment(pools, candidate, load or Load(rate_per_s=candidate.requests_per_s))
    try:
        service = service_of(deployment)
        if load is not None:
            return _evaluated(pools, candidate, service, load, service.at(load))
        return _largest(pools, candidate, service, halvings)
    except ProblemError:
        return None


def _largest(pools: Pools, candidate: Candidate, service: Service, halvings: int) -> Evaluated | None:
    """Bisection in the rate, starting from the candidate's own; its pools are priced once."""
    low, high = SEARCHED
    share, best = 1.0, None
    for _ in range(halvings + 1):
        load = Load(rate_per_s=candidate.requests_per_s * share)
        prediction = service.unless_full(load)
        found = _evaluated(pools, candidate, service, load, prediction) if prediction else None
        if found and found.holds:
            low, best = share, found
        else:
            high = share
        share = (low + high) / 2
    return best


def _evaluated(pools: Pools, candidate: Candidate, service: Service, load: Load, prediction: ServicePrediction) -> Evaluated:
    """The candidate under a load, held against the limits."""
    deployment = service.deployment.model_copy(update={"load": load})
    return Evaluated(candidate, deployment, prediction, objectives_of(pools.decode, prediction))


def service_deployment(pools: Pools, candidate: Candidate, load: Load) -> Deployment:
    """A candidate as a service deployment, with the analytic flags of each pool."""
    problem = pools.decode.problem
    chosen = {pool.resolved.pool: pool for pool in candidate.pools}
    params = {phase: _params(pool) for phase, pool in chosen.items()}
    phase: PoolRole = "decode" if "decode" in chosen else "serve"
    main = chosen[phase]
    built = {name: _pool(pools, pool, params[name]) for name, pool in chosen.items()}
    if "prefill" in built:  # both sides of a pair run the same drafter, or neither
        drafts = built["decode"].draft_tokens
        built["prefill"] = built["prefill"].model_copy(update={"draft_tokens": drafts})
    return Deployment(
        hardware=problem.hardware,
        model=problem.model,
        precision=precision_of(main.resolved, params[phase]),
        engine=EngineChoice(name=main.resolved.engine.name, version=main.resolved.version),
        calibration=problem.calibration,
        phase="serve",
        workload=pools.traffic.asked,
        pools=built,
        load=load,
    )


def _params(chosen: Chosen) -> Params:
    params = analytic_params(chosen.resolved, chosen.row)
    if chosen.resolved.pool == "serve" and "max_num_batched_tokens" in params:
        params["max_num_batched_tokens"] = int(chosen.row.batched_tokens[0])
    return params


def _pool(pools: Pools, chosen: Chosen, params: Params) -> Pool:
    row = chosen.row.replace(output_chunk=int(params.get("output_proc_chunk", UNLIMITED)))  # no layout is chosen by it
    pool = pool_of(chosen.resolved, row, chosen.instances, params)
    if chosen.resolved.pool == "prefill" and pools.own_hardware:
        changes = {"hardware": chosen.resolved.problem.hardware, "precision": precision_of(chosen.resolved, params)}
        return pool.model_copy(update=changes)
    return pool


def objectives_of(resolved: ResolvedProblem, prediction: ServicePrediction) -> tuple[LimitOutcome, ...]:
    """Each limit with the probability of meeting it."""
    bands = prediction.intervals
    found = [
        LimitOutcome(
            name=f"TTFT {name.upper()}",
            predicted=getattr(prediction.ttft_s, name),
            limit=limit,
            probability=_probability(getattr(prediction.ttft_s, name), limit, bands.of_ttft(name)),
        )
        for name, limit in resolved.ttft_limits_s.items()
    ]
    mean_s, limit_s = prediction.tpot_s.mean, resolved.problem.tpot_limit_s
    chance = _probability(mean_s, limit_s, bands.tpot_s)
    return (*found, LimitOutcome(name="mean TPOT", predicted=mean_s, limit=limit_s, probability=chance))


def _probability(predicted: float, limit: float, band: Interval) -> float:
    """Of staying under a limit."""
    if predicted <= 0:
        return 1.0
    return probability_below(predicted, limit, band.low / predicted, band.high / predicted)


def room_for_errors(prediction: ServicePrediction, confidence: float) -> tuple[float, float, float]:
    """Factors by which measured times and rates stay within their limits with a probability: TPOT, rate, TTFT."""
    bands = prediction.intervals
    found = {"tpot": (bands.tpot_s, prediction.tpot_s.mean)}
    for name in ("p50", "p95", "p99"):
        found[name] = (bands.of_ttft(name), getattr(prediction.ttft_s, name))
    ratios = {name: (band.low / value, band.high / value) for name, (band, value) in found.items() if value > 0}
    above = {name: _above(*ratios[name], confidence) if name in ratios else 1.0 for name in found}
    rate, served = bands.tokens_per_s_per_gpu, prediction.tokens_per_s_per_gpu
    below = _above(served / rate.high, served / rate.low, confidence)
    return above["tpot"], below, max(above[name] for name in ("p50", "p95", "p99"))


def _above(low: float, high: float, confidence: float) -> float:
    """What a log-normal ratio between its 10 % and 90 % quantiles stays below with a probability, at least 1."""
    centre, spread = (math.log(low) + math.log(high)) / 2, (math.log(high) - math.log(low)) / QUANTILE_SIGMAS
    return max(math.exp(centre + spread * NormalDist().inv_cdf(confidence)), 1.0)
