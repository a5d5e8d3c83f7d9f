"""Problem -> ranked plans: enumerate, cost, prune, select, tune flags."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autotune.documents.candidates import Candidates
from autotune.documents.deployment import Deployment, Pool
from autotune.documents.knobs import pool_rows
from autotune.documents.plan import FlagSummary, Plan, SearchResult, SearchStatistics
from autotune.documents.planned_placement import PlannedPlacement
from autotune.documents.prediction import PlanOdds, Prediction, PrefillPrediction
from autotune.documents.problem import Problem
from autotune.errors import NoFeasiblePlan, ProblemError
from autotune.flags.decode import DecodeFlagEvaluator
from autotune.flags.evaluate import FlagEvaluator
from autotune.flags.prefill import PrefillFlagEvaluator
from autotune.flags.rebalancing import rebalancing_curve
from autotune.flags.space import flag_space
from autotune.flags.study import FlagResult, TrialRow, tune_flags
from autotune.layouts.candidates import candidates_of
from autotune.layouts.explain import alternatives, explain_infeasible, instance_sizes_compared, row_label
from autotune.layouts.families import Limits, feasible
from autotune.layouts.prune import prune
from autotune.layouts.select import Selection, instance_of, select_top
from autotune.layouts.table import LayoutTable, build_table, largest_fitting_size
from autotune.predicting.step import predict
from autotune.predicting.uncertainty import compare, measurement_values, step_factors
from autotune.progress import Progress
from autotune.resolving import ResolvedProblem, resolve_problem
from autotune.searching.confident import confidence_note, quantile, search_until_sure
from autotune.searching.realising import deployment_of
from cost_models.arrays import Ints, distinct_values
from cost_models.rows import Rows

EVALUATORS: dict[str, type[FlagEvaluator]] = {"decode": DecodeFlagEvaluator, "prefill": PrefillFlagEvaluator}
RUNNER_UP_TRIALS = 0
"""Runners-up take their analytic flags; the study is spent on the winner."""


@dataclass(frozen=True, slots=True)
class SearchRun:
    """A search result with the trials behind it (for trials.csv)."""

    result: SearchResult
    trials: dict[int, tuple[TrialRow, ...]]
    """By plan rank."""
    resolved: ResolvedProblem
    table: LayoutTable

    @property
    def candidates(self) -> Candidates:
        """What was weighed, for charts and questions; computed when it is asked for."""
        return candidates_of(self.resolved, self.table, self.result.best.prediction.operators)


def search(problem: Problem, progress: Progress | None = None) -> SearchResult:
    """Best plans for a problem.

    Raises NoFeasiblePlan (exit 2) with the clash and the smallest changes that fit, and
    AutotuneError (exit 1) for input that makes no sense.
    """
    return run_search(problem, progress).result


def run_search(problem: Problem, progress: Progress | None = None) -> SearchRun:
    """`search` with the flag trials kept."""
    if problem.target == "serve":
        raise ProblemError("a service has several pools: use autotune.search_services")
    progress = progress or Progress()
    if problem.confidence is not None:
        return _sure(problem, problem.confidence, progress)
    return _run(problem, progress)


def _sure(problem: Problem, confidence: float, progress: Progress) -> SearchRun:
    """The search whose plans all hold their limits with a probability; odds are those of the limits that were asked."""

    def needed(run: SearchRun) -> tuple[float, float, float]:
        factor = max(quantile(step_factors(plan.prediction), confidence) for plan in run.result.plans)
        return factor, factor if problem.min_tokens_per_s else 1.0, factor

    run, factors = search_until_sure(problem, lambda tight: _run(tight, progress), needed)
    plans, limit_s = run.result.plans, resolve_problem(problem).latency_limit_s
    odds = compare([plan.prediction for plan in plans], limit_s, problem.objective)
    told = tuple(plan.model_copy(update={"odds": found}) for plan, found in zip(plans, odds, strict=True))
    notes = (*run.result.notes, confidence_note(problem, factors))
    return dataclasses.replace(run, result=run.result.model_copy(update={"plans": told, "notes": notes}))


def _run(problem: Problem, progress: Progress) -> SearchRun:
    with progress.stage("load"):
        resolved = resolve_problem(problem)
    with progress.stage("cost layouts"):
        table = build_table(resolved)
        ok = feasible(table, Limits.of(resolved)) if len(table) else np.zeros(0, dtype=bool)
    if not ok.any():
        raise NoFeasiblePlan(explain_infeasible(resolved, table).message())
    with progress.stage("select layouts"):
        kept, selections = _select(resolved, table, np.flatnonzero(ok))
        candidates = table.take(kept)
        first = selections[0].row
        progress.found(row_label(candidates, first), float(candidates.tokens_per_s_per_gpu[first]))
    with progress.stage("tune flags"):
        plans, trials = _plans(resolved, candidates, selections, progress.on_trial)
    others = alternatives(resolved, table, int(kept[selections[0].row]))
    statistics = SearchStatistics(
        layouts=len(distinct_values(table.layout)),
        rows=len(table),
        feasible_rows=int(ok.sum()),
        rows_after_pruning=len(candidates),
        seconds=dict(progress.seconds),
    )
    result = SearchResult(
        plans=tuple(plans),
        alternatives=others,
        sizes=instance_sizes_compared(resolved, table) if resolved.phase == "prefill" else (),
        rebalancing=tuple(rebalancing_curve(resolved, pool_rows(plans[0].deployment.pool))),
        statistics=statistics,
        assumed=resolved.assumed,
        notes=(*resolved.model.flags, *resolved.engine.notes),
        measurements=tuple(measurement_values([plan.prediction for plan in plans])),
    )
    return SearchRun(result, trials, resolved, table)


def _select(resolved: ResolvedProblem, table: LayoutTable, feasible_rows: Ints) -> tuple[Ints, list[Selection]]:
    """Prune exactly, then choose the k best distinct layouts.

    Returns the rows kept (positions in the table) and the selections, whose `row` is a position among those.
    """
    problem = resolved.problem
    kept = prune(
        table.take(feasible_rows),
        keep_layouts=problem.top_k,
        sequences_matter=problem.min_concurrency > 0,
        latency_matters=problem.objective in ("tpot", "ttft"),
    )
    kept = feasible_rows[kept]
    candidates = table.take(kept)
    instance = instance_of(candidates, Limits.of(resolved), problem.objective)
    selections = select_top(instance, candidates.layout, problem.top_k)
    if not selections:
        raise NoFeasiblePlan(
            "no feasible plan: every row that satisfies the limits fails once rates are rounded down; loosen one limit slightly"
        )
    return kept, selections


def _plans(
    resolved: ResolvedProblem, table: LayoutTable, selections: list[Selection], on_trial: Callable[[], None] | None
) -> tuple[list[Plan], dict[int, tuple[TrialRow, ...]]]:
    deployments, results = [], []
    for rank, selection in enumerate(selections, start=1):
        row = table.rows.take(np.array([selection.row]))
        budget = resolved.problem.trials if rank == 1 else RUNNER_UP_TRIALS
        evaluator, found = _tuned(resolved, row, selection.instances, budget, rank, on_trial)
        deployments.append(
            deployment_of(resolved, evaluator.effective_row(found.params, found.size), selection.instances, found.params)
        )
        results.append(found)
    predictions = [predict(deployment) for deployment in deployments]
    odds = compare(predictions, resolved.latency_limit_s, resolved.problem.objective)
    parts = zip(deployments, predictions, results, selections, odds, strict=True)
    plans = [_plan(rank, *part) for rank, part in enumerate(parts, start=1)]
    plans[0] = plans[0].model_copy(update={"placement": _placement(resolved, plans[0].deployment.pool)})
    return plans, {rank: found.trials for rank, found in enumerate(results, start=1)}


def _placement(resolved: ResolvedProblem, pool: Pool) -> PlannedPlacement | None:
    """The best plan's experts, where its engine starts from a map of recorded loads."""
    if resolved.skew is None or pool.expert_balance.kind != "static":
        return None
    node = min(resolved.hardware.gpus_per_node, pool.ep)
    return resolved.skew.placement_of(resolved.model, pool.ep, pool.redundant_experts, node)


def _tuned(
    resolved: ResolvedProblem, row: Rows, instances: int, trials: int | None, rank: int, on_trial: Callable[[], None] | None
) -> tuple[FlagEvaluator, FlagResult]:
    space = flag_space(resolved, row, int(largest_fitting_size(resolved, row)[0]))
    evaluator = EVALUATORS[resolved.phase](resolved, row, space, instances)
    problem = resolved.problem
    name = f"{study_prefix(resolved)}/plan-{rank}"
    storage = None if trials == 0 else problem.storage
    found = tune_flags(evaluator, trials=trials, seed=problem.seed, storage=storage, study_name=name, on_trial=on_trial)
    return evaluator, found


def study_prefix(resolved: ResolvedProblem) -> str:
    """Names a study by everything its scores depend on: only the same problem resumes it."""
    asked = resolved.problem.model_dump_json(exclude={"trials", "seed", "storage", "top_k"})
    digest = hashlib.sha256(f"{asked} {resolved.machine.calibration.model_dump_json()}".encode()).hexdigest()[:8]
    return f"{resolved.hardware.name}/{resolved.model.name}/{resolved.engine.name}-{resolved.version}/{digest}"


def _plan(
    rank: int,
    deployment: Deployment,
    prediction: Prediction | PrefillPrediction,
    found: FlagResult,
    selection: Selection,
    odds: PlanOdds,
) -> Plan:
    pool = deployment.pool
    backend = "" if pool.all2all_backend == "none" else f", {pool.all2all_backend.replace('_', ' ')}"
    return Plan(
        rank=rank,
        label=f"{pool.instances} x {pool.layout.label()}{backend}",
        deployment=deployment,
        prediction=prediction,
        odds=odds,
        flags=FlagSummary(
            origin=found.origin,
            tuned=found.tokens_per_s_per_gpu,
            defaults=found.defaults,
            defaults_latency_s=found.defaults_latency_s,
            defaults_violate=found.defaults_violate,
            random=found.random,
            study=found.study,
            exact=found.exact,
            space_size=found.space_size,
            trials=len(found.trials),
            feasible_trials=found.feasible_trials,
            settings=found.settings,
        ),
        solver=selection.summary(),
    )
