"""Problem -> ranked services."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from autotune.documents.plan import SearchStatistics
from autotune.documents.problem import Problem
from autotune.documents.service_plan import PoolSummary, ServicePlan, ServiceResult
from autotune.errors import NoFeasiblePlan, ProblemError
from autotune.layouts.explain import explain_infeasible, row_layout
from autotune.progress import Progress
from autotune.resolving import resolve_problem
from autotune.searching.confident import confidence_note, search_until_sure
from autotune.searching.services.choosing import Candidate, Chosen, aggregated, disaggregated
from autotune.searching.services.comparing import bound_by, pareto, service_kind_of, verdict
from autotune.searching.services.evaluating import Evaluated, goodput, most_share, objectives_of, room_for_errors
from autotune.searching.services.sides import (
    Pools,
    SideCandidates,
    aggregated_candidates,
    decode_candidates,
    pools_of,
    prefill_candidates,
)

RUNNER_UP_RESOLUTION = 0.15
HEADROOM = (1.0, 1.3, 1.7, 2.2, 3.0, 4.0)
"""Capacities over the asked mean rate that are tried until the limits hold: traces come in bursts."""
SECONDS_PER_HOUR = 3600.0


def search_services(problem: Problem, progress: Progress | None = None) -> ServiceResult:
    """Best services for a problem with target `serve`.

    Raises NoFeasiblePlan (exit 2) with what is missing, and AutotuneError (exit 1) for input that makes no sense.
    """
    if problem.target != "serve":
        raise ProblemError(f"target {problem.target} is one pool: use autotune.search")
    progress = progress or Progress()
    if problem.confidence is not None:
        return _sure(problem, problem.confidence, progress)
    return _search(problem, progress)


def _sure(problem: Problem, confidence: float, progress: Progress) -> ServiceResult:
    """The search whose best service holds its limits with a probability; what is said of limits is of those that were asked."""
    asked = resolve_problem(problem)
    limits = {f"ttft_{name}_limit_s": limit for name, limit in asked.ttft_limits_s.items()}
    problem = problem.model_copy(update=limits)  # the limit that holds where none is given is one as well

    def needed(found: ServiceResult) -> tuple[float, float, float]:
        return room_for_errors(found.plans[0].prediction, confidence)

    found, factors = search_until_sure(problem, lambda tight: _search(tight, progress), needed)
    plans = tuple(p.model_copy(update={"objectives": objectives_of(asked, p.prediction)}) for p in found.plans)
    return found.model_copy(update={"plans": plans, "notes": (*found.notes, confidence_note(problem, factors))})


def _search(problem: Problem, progress: Progress) -> ServiceResult:
    with progress.stage("load"):
        resolved = resolve_problem(problem)
        pools = pools_of(resolved)
    with progress.stage("cost layouts"), ThreadPoolExecutor() as threads:  # numpy works outside the interpreter lock
        costed = [threads.submit(cost, pools) for cost in (prefill_candidates, decode_candidates, aggregated_candidates)]
        prefill, decode, together = (future.result() for future in costed)
    with progress.stage("select and replay"):
        kinds = [
            _first_that_holds(pools, progress, lambda headroom: disaggregated(pools, prefill, decode, problem.top_k, headroom)),
            _first_that_holds(pools, progress, lambda headroom: aggregated(pools, together, problem.top_k, headroom)),
        ]
        ranked = _evaluated(pools, kinds)
    if not ranked or not ranked[0].holds:
        raise NoFeasiblePlan(_why_none(pools, prefill, decode, together, ranked))
    plans = tuple(_plan(pools, rank, e) for rank, e in enumerate(ranked[: problem.top_k], start=1))
    tables = (prefill, decode, together)
    best = [
        next((e for e in ranked if e.holds and service_kind_of(e.candidate) == kind), None)
        for kind in ("aggregated", "disaggregated")
    ]
    return ServiceResult(
        plans=plans,
        verdict=verdict(pools, *best),
        pareto=pareto(pools, prefill, decode, together),
        statistics=SearchStatistics(
            layouts=sum(len(np.unique(c.table.layout)) for c in tables),
            rows=sum(len(c.table) for c in tables),
            feasible_rows=sum(len(c.rows) for c in tables),
            rows_after_pruning=sum(len(candidates) for candidates, _ in kinds),
            seconds=dict(progress.seconds),
        ),
        assumed=resolved.assumed,
        notes=(*resolved.model.flags, *resolved.engine.notes),
    )


Tried = tuple[list[Candidate], Evaluated | None]


def _first_that_holds(pools: Pools, progress: Progress, choose: Callable[[float], list[Candidate]]) -> Tried:
    """Candidates of one kind with the least headroom at which the best of them meets the limits, and that one evaluated."""
    tried: Tried = ([], None)
    for headroom in HEADROOM if pools.traffic.rate_per_s else HEADROOM[:1]:
        candidates = choose(headroom)
        if not candidates:
            break
        tried = candidates, goodput(pools, candidates[0])
        if tried[1] and tried[1].holds:
            progress.found(_label(candidates[0]), tried[1].prediction.tokens_per_s_per_gpu)
            break
    return tried


def _evaluated(pools: Pools, kinds: list[Tried]) -> list[Evaluated]:
    """Candidates at their largest loads, best first: the best of each kind, then all that might still be among the plans."""
    found = [best for _, best in kinds if best]
    rest = sorted((c for candidates, _ in kinds for c in candidates[1:]), key=lambda c: -_claimed(pools, c))
    for candidate in rest:
        worths = sorted((_worth(pools, e) for e in found if e.holds), reverse=True)
        wanted = pools.decode.problem.top_k
        if len(worths) >= wanted and _claimed(pools, candidate) * most_share(pools, candidate) < worths[wanted - 1]:
            break
        evaluated = goodput(pools, candidate, RUNNER_UP_RESOLUTION)
        found += [evaluated] if evaluated else []
    return sorted(found, key=lambda e: (not e.holds, -_worth(pools, e)))


def _claimed(pools: Pools, candidate: Candidate) -> float:
    """What a candidate is worth before it is replayed."""
    tokens_per_s = candidate.requests_per_s * pools.traffic.osl_tokens
    if pools.decode.problem.objective == "tokens_per_s":
        return tokens_per_s
    return tokens_per_s / (usd_per_hour(pools, candidate) or sum(p.gpus for p in candidate.pools))


def _worth(pools: Pools, evaluated: Evaluated) -> float:
    """What plans are ranked by: output per GPU, per dollar, or in all."""
    prediction = evaluated.prediction
    if pools.decode.problem.objective == "tokens_per_s":
        return prediction.tokens_per_s
    cost = usd_per_hour(pools, evaluated.candidate)
    return prediction.tokens_per_s / cost if cost else prediction.tokens_per_s_per_gpu


def usd_per_hour(pools: Pools, candidate: Candidate) -> float | None:
    """Price of a candidate's GPUs; none where no price is given."""
    prices = pools.decode.problem.gpu_hour_usd_by_phase
    return sum(p.gpus * prices[p.resolved.pool] for p in candidate.pools) if prices else None


def _plan(pools: Pools, rank: int, evaluated: Evaluated) -> ServicePlan:
    candidate = evaluated.candidate
    cost = usd_per_hour(pools, candidate)
    tokens_per_hour = evaluated.prediction.tokens_per_s * SECONDS_PER_HOUR
    summaries = tuple(_pool_summary(chosen) for chosen in candidate.pools)
    return ServicePlan(
        rank=rank,
        kind=service_kind_of(candidate),
        label=_label(candidate),
        deployment=evaluated.deployment,
        prediction=evaluated.prediction,
        objectives=evaluated.objectives,
        pools=summaries,
        bound_by=bound_by(pools, evaluated),
        usd_per_million_tokens=None if cost is None else cost / tokens_per_hour * 1e6,
        solver=candidate.solver,
    )


def _label(candidate: Candidate) -> str:
    return " + ".join(f"{summary.label} {summary.phase}" for summary in map(_pool_summary, candidate.pools))


def _pool_summary(chosen: Chosen) -> PoolSummary:
    row = chosen.row
    layout = row_layout(row, 0)
    finite = np.isfinite(chosen.transfer_per_s)
    return PoolSummary(
        phase=chosen.resolved.pool,
        label=f"{chosen.instances} x {layout.label()}",
        hardware=chosen.resolved.hardware.name,
        gpus=chosen.gpus,
        planned_requests_per_s=chosen.requests_per_s,
        transfer_requests_per_s=chosen.transfer_per_s if finite else None,
    )


def _why_none(
    pools: Pools, prefill: SideCandidates, decode: SideCandidates, together: SideCandidates, ranked: list[Evaluated]
) -> str:
    """Every kind with what keeps it from working."""
    parts = []
    for name, candidates in (("Prefill pool", prefill), ("Decode pool", decode), ("Aggregated", together)):
        if not len(candidates.rows):
            explained = explain_infeasible(candidates.resolved, candidates.table).message()
            parts.append(f"{name}: {explained.removeprefix('no feasible plan: ')}")
    if ranked:
        closest = min(ranked, key=lambda e: max(o.predicted / o.limit for o in e.objectives))
        missed = [f"{o.name} {o.predicted * 1e3:,.0f} ms, limit {o.limit * 1e3:,.0f} ms" for o in closest.objectives if not o.met]
        overload = closest.prediction.notes[-1:] if closest.prediction.overloaded else ()
        parts.append(f"Closest is {_plan(pools, 1, closest).label}: {'; '.join((*missed, *overload))}.")
    elif not parts:
        parts.append(_too_much(pools, prefill, decode, together))
    return f"no feasible service. {' '.join(parts)}"


def _too_much(pools: Pools, prefill: SideCandidates, decode: SideCandidates, together: SideCandidates) -> str:
    """The load is more than the GPUs carry: how much they carry at most."""
    traffic = pools.traffic
    if not traffic.rate_per_s:
        gpus = min(int(c.rows.rows.gpus.min()) for c in (together, decode) if len(c.rows))
        return f"No load meets the limits in a replay, although single steps do; loosen the TTFT limit ({gpus} GPUs would do)."
    most = max((float((c.requests_per_s * c.rows.max_instances).max()) for c in (together,) if len(c.rows)), default=0.0)
    if len(prefill.rows) and len(decode.rows):
        per_gpu = [float((c.requests_per_s / c.rows.rows.gpus).max()) for c in (prefill, decode)]
        most = max(most, pools.decode.gpus / (1 / per_gpu[0] + 1 / per_gpu[1]))
    return (
        f"{traffic.rate_per_s:,.1f} requests/s were asked for, at most {most:,.1f} are served on {pools.decode.gpus} GPUs within "
        f"the limits: use {int(np.ceil(pools.decode.gpus * traffic.rate_per_s / max(most, 1e-9))):,} GPUs, or looser limits."
    )
