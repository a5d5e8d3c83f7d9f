"""A candidate service as a deployment, replayed, and the largest load with which its limits hold."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from autotune.documents.deployment import Deployment, EngineChoice, Load, Pool, PoolRole
from autotune.documents.prediction import ServicePrediction
from autotune.documents.service_plan import LimitOutcome
from autotune.errors import ProblemError
from autotune.flags.space import Params, analytic_params
from autotune.layouts.table import largest_fitting_size
from autotune.resolving import ResolvedProblem
from autotune.searching.realising import pool_of, precision_of
from autotune.searching.services.choosing import Candidate, Chosen
from autotune.searching.services.sides import Pools, planned_share
from autotune.serving.errors import probability_below, spread_of
from autotune.serving.predicting import Service, service_of
from cost_models.rows import UNLIMITED

LEAST = 0.5
"""Share of the candidate's own rate below which no load is tried."""
MARGIN = 1.3
"""How much more than its full pools were estimated at a service is thought to carry; one that does is tried with more."""
SLOTS = 1.5
"""Sequences that a decoding rank takes, as a multiple of those that its step was planned with. Of six services tried the largest
load grew by up to 30 % from 1 to 1.5, from there on by nothing."""
RESOLUTION = 0.0125
"""Of the largest load, as a share of the candidate's own rate."""


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


def goodput(pools: Pools, candidate: Candidate, resolution: float = RESOLUTION) -> Evaluated | None:
    """The candidate at the largest load with which its limits hold; at the asked load where there is one.

    None when the pools do not fit their memory after all, or when no load is small enough.
    """
    load = pools.traffic.load
    deployment = service_deployment(pools, candidate, load or Load(rate_per_s=candidate.requests_per_s))
    try:
        service = service_of(deployment)
        if load is not None:
            return _evaluated(pools, candidate, service, load, service.at(load))
        return _largest(pools, candidate, service, resolution)
    except ProblemError:
        return None


def _largest(pools: Pools, candidate: Candidate, service: Service, resolution: float) -> Evaluated | None:
    """Bisection in the rate, from the candidate's own upwards where it holds; its pools are priced once."""
    best = _at(pools, candidate, service, 1.0)
    low, high = (1.0, most_share(pools, candidate)) if best else (LEAST, 1.0)
    while best and (found := _at(pools, candidate, service, high)):
        best, low, high = found, high, MARGIN * high
    while high - low > resolution:
        share = (low + high) / 2
        if found := _at(pools, candidate, service, share):
            best, low = found, share
        else:
            high = share
    return best


def most_share(pools: Pools, candidate: Candidate) -> float:
    """Share of the candidate's own rate that it hardly exceeds: its pools with every step full, and MARGIN."""
    return MARGIN / min(float(planned_share(pools, chosen.resolved, chosen.row)[0]) for chosen in candidate.pools)


def _at(pools: Pools, candidate: Candidate, service: Service, share: float) -> Evaluated | None:
    """The candidate at a share of its own rate; None where a limit does not hold."""
    load = Load(rate_per_s=candidate.requests_per_s * share)
    prediction = service.unless_full(load)
    found = _evaluated(pools, candidate, service, load, prediction) if prediction else None
    return found if found and found.holds else None


def _evaluated(pools: Pools, candidate: Candidate, service: Service, load: Load, prediction: ServicePrediction) -> Evaluated:
    """The candidate under a load, held against the limits."""
    deployment = service.deployment.model_copy(update={"load": load})
    return Evaluated(candidate, deployment, prediction, objectives_of(pools.decode, prediction))


def service_deployment(pools: Pools, candidate: Candidate, load: Load) -> Deployment:
    """A candidate as a service deployment, with the analytic flags of each pool."""
    problem = pools.decode.problem
    chosen = {pool.resolved.pool: pool if load.concurrency else _with_slots(pool) for pool in candidate.pools}
    params = {phase: _params(pool) for phase, pool in chosen.items()}
    phase: PoolRole = "decode" if "decode" in chosen else "serve"
    main = chosen[phase]
    built = {name: _pool(pools, pool, params[name]) for name, pool in chosen.items()}
    if "prefill" in built:  # both sides of a pair run the same drafter, or neither
        drafts = built["decode"].draft_tokens
        built["prefill"] = built["prefill"].model_copy(update={"draft_tokens": drafts, "drafter": built["decode"].drafter})
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


def _with_slots(chosen: Chosen) -> Chosen:
    """The pool with slots for more sequences than a step within the limits holds, as far as memory goes.

    The limit is of a mean over requests: in a burst a longer step costs less than waiting for a slot.
    """
    if chosen.resolved.pool == "prefill":
        return chosen
    batch = chosen.row.batch
    most = np.minimum(np.ceil(batch * SLOTS).astype(np.int64), largest_fitting_size(chosen.resolved, chosen.row))
    return dataclasses.replace(chosen, row=chosen.row.replace(batch=np.maximum(batch, most)))


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
            probability=probability_below(getattr(prediction.ttft_s, name), limit, bands.of_ttft(name)),
        )
        for name, limit in resolved.ttft_limits_s.items()
    ]
    mean_s, limit_s = prediction.tpot_s.mean, resolved.problem.tpot_limit_s
    chance = probability_below(mean_s, limit_s, bands.tpot_s)
    return (*found, LimitOutcome(name="mean TPOT", predicted=mean_s, limit=limit_s, probability=chance))


def room_for_errors(prediction: ServicePrediction, confidence: float) -> tuple[float, float, float]:
    """Factors by which measured times and rates stay within their limits with a probability: TPOT, rate, TTFT."""
    bands = prediction.intervals
    found = {"tpot": (bands.tpot_s, prediction.tpot_s.mean)}
    for name in ("p50", "p95", "p99"):
        found[name] = (bands.of_ttft(name), getattr(prediction.ttft_s, name))
    spreads = {name: spread_of(band, value) for name, (band, value) in found.items() if value > 0}
    above = {name: max(spreads[name].quantile(confidence), 1.0) if name in spreads else 1.0 for name in found}
    rate = spread_of(bands.tokens_per_s_per_gpu, prediction.tokens_per_s_per_gpu)
    below = max(1 / rate.quantile(1 - confidence), 1.0)
    return above["tpot"], below, max(above[name] for name in ("p50", "p95", "p99"))
