"""A recipe beside our plan for the same problem: what both reach, in what they differ, and what each difference is worth."""

from __future__ import annotations

import math
from typing import Any

from autotune.auditing.capacity import as_it_runs
from autotune.auditing.checking import PlanOutcome, answer_of, outcome
from autotune.auditing.commands import ReadCommand
from autotune.auditing.goals import GoalLine, Goals
from autotune.auditing.verdict import Answer
from autotune.documents.deployment import Deployment
from autotune.documents.problem import Problem
from autotune.errors import NoFeasiblePlan, ProblemError
from autotune.recipes.collecting import UnreadRecipe
from autotune.recipes.differing import Step, sequences_of, steps_between
from autotune.recipes.written_options import OptionDifference, option_differences
from autotune.searching.pools import search
from autotune.searching.services.searching import search_services
from cost_models.catalog import validated
from cost_models.errors import AutotuneError
from cost_models.specs.base import Spec

ADDS_UP = 0.02
"""How far the differences' worths together may lie from the whole and still be said to add up, relative."""
LIMITS = {"tpot_s": "tpot_limit_s", "ttft_s": "ttft_limit_s", "ttft_p50_s": "ttft_p50_limit_s", "ttft_p95_s": "ttft_p95_limit_s",
          "ttft_p99_s": "ttft_p99_limit_s"}  # fmt: skip
"""Goal -> the problem's limit."""
LONGEST_LIMIT_S = {"tpot_limit_s": 60.0}
"""That a problem takes; 3,600 s of the others."""
SLACK = 1e-9
"""Relative, on limits that are the recipe's own figures."""


class ComparedFigures(Spec):
    """What one side reaches."""

    label: str
    gpus: int
    answer: Answer
    tokens_per_s_per_gpu: float | None
    """None where it cannot be priced."""
    tokens_per_s: float | None
    latency_s: float | None
    """Mean time per output token; of a prefill pool, of one prompt."""
    ttft_s: float | None
    """Mean, of a service."""
    ttft_p99_s: float | None
    goals: tuple[GoalLine, ...]
    """Each limit with the odds of meeting it."""
    conflicts: tuple[str, ...]
    unmodelled: tuple[str, ...]


class Worth(Spec):
    """One difference, made alone on the recipe."""

    what: str
    recipe: str
    ours: str
    gain: float | None
    """Relative change of tokens/s/GPU; none where the recipe with this change alone cannot be priced."""
    latency_s: float | None
    ttft_p99_s: float | None
    note: str = ""
    """Why it cannot be priced alone; or how many sequences then fit, where those of the recipe do not."""


class RecipeComparison(Spec):
    """One recipe and our plan."""

    name: str
    problem: dict[str, Any]
    """What our plan was searched for."""
    same_speed: bool
    """No limit was asked for: ours must be no slower for a user than the recipe is predicted to be."""
    recipe: ComparedFigures
    ours: ComparedFigures | None
    no_plan: str
    """Why there is none of ours."""
    deployment: Deployment | None
    """Ours."""
    gain: float | None
    """Relative change of tokens/s/GPU from the recipe to ours."""
    differences: tuple[Worth, ...]
    alone: float | None
    """What the differences would gain together if each were worth what it is alone; none where one cannot be priced."""
    adds_up: bool | None
    """Whether that is the gain; where not, the differences work on each other."""
    options: tuple[OptionDifference, ...]
    remarks: tuple[str, ...]


class RecipeComparisons(Spec):
    """Everything that was compared."""

    compared: tuple[RecipeComparison, ...]
    unread: tuple[UnreadRecipe, ...]


def compare_recipe(name: str, read: ReadCommand, goals: Goals) -> RecipeComparison:
    """The recipe as it was read, beside the best plan for its model, hardware, GPUs, engine, precision and load.

    goals : limits that both are held against; without any, ours may not be slower than the recipe. Raises AutotuneError where the
    recipe makes no problem.
    """
    recipe = read.deployment
    problem_of_pools(recipe)
    plan = outcome(recipe, goals, aggregated=read.aggregated, written=read.written)
    theirs = _figures(plan, _label(recipe), read)
    limits, same_speed = _limits(goals, plan)
    asked = problem_of_pools(recipe, limits)
    problem = asked.model_dump(mode="json", exclude_none=True)
    empty: dict[str, Any] = {"deployment": None, "ours": None, "gain": None, "alone": None, "adds_up": None}
    found = {"name": name, "problem": problem, "same_speed": same_speed, "recipe": theirs, "remarks": _remarks(read)}
    try:
        best = (search_services(asked) if asked.target == "serve" else search(asked)).best
    except NoFeasiblePlan as error:
        return RecipeComparison(**found, **empty, no_plan=str(error), differences=(), options=())
    made = best.deployment.model_copy(update={"load": recipe.load}) if recipe.load else best.deployment
    ours = outcome(made, goals)
    gain = _relative(ours.tokens_per_s_per_gpu, plan.tokens_per_s_per_gpu)
    worths = tuple(_worth(step, plan, goals) for step in steps_between(recipe, made))
    alone = _together(worths)
    return RecipeComparison(
        **found,
        ours=_figures(ours, best.label, None),
        no_plan="",
        deployment=made,
        gain=gain,
        differences=worths,
        alone=alone,
        adds_up=None if gain is None or alone is None else abs((1 + alone) / (1 + gain) - 1) <= ADDS_UP,
        options=option_differences(read, made),
    )


def _remarks(read: ReadCommand) -> tuple[str, ...]:
    if not read.aggregated or read.deployment.phase != "decode":
        return read.remarks
    side = "the recipe's engine prefills too, ours would not: both are judged as they decode (--rate, --clients: as services)"
    return (side, *read.remarks)


def problem_of_pools(recipe: Deployment, limits: dict[str, float] | None = None) -> Problem:
    """The problem that a recipe is an answer to; raises ProblemError for one that is no whole problem."""
    if recipe.layers is not None:
        raise ProblemError("a model of another depth is compared with no plan: leave out `layers`")
    if len(recipe.pools) > 1 and recipe.phase != "serve":
        raise ProblemError("a prefill and a decode pool are compared as a service: say its load with --rate or --clients")
    pools, prefill = recipe.pools, recipe.pools.get("prefill")
    gpus = {role: pool.layout.gpus * pool.instances for role, pool in pools.items()}
    asked: dict[str, Any] = {
        "hardware": next((p.hardware for role, p in pools.items() if role != "prefill" and p.hardware), recipe.hardware),
        "model": recipe.model,
        "target": recipe.phase,
        "precision": _recipe_name(recipe.precision),
        "engine": recipe.engine.name,
        "engine_version": recipe.engine.version,
        "calibration": recipe.calibration,
        "workload": recipe.workload,
        "gpus": sum(gpus.values()),
        "load": recipe.load,
        **(limits or {}),
    }
    if recipe.phase == "serve" and prefill is not None and prefill.hardware:
        own = {"prefill_hardware": prefill.hardware, "prefill_gpus": gpus["prefill"], "gpus": gpus["decode"]}
        asked |= own | ({"prefill_precision": _recipe_name(prefill.precision)} if prefill.precision else {})
    return validated(Problem, {key: value for key, value in asked.items() if value is not None}, "the recipe's problem")


def _recipe_name(precision: object) -> str:
    return precision if isinstance(precision, str) else str(precision.recipe)  # type: ignore[attr-defined]


def _limits(goals: Goals, plan: PlanOutcome) -> tuple[dict[str, float], bool]:
    """(limits of the problem, whether they are the recipe's own figures)."""
    asked = goals.model_dump(exclude_none=True)
    serves = plan.deployment.phase == "serve"
    if "ttft_s" in asked and serves:
        raise ProblemError(
            "plans are searched by percentiles of the TTFT: --ttft-p50, --ttft-p95 or --ttft-p99 instead of --ttft"
        )
    if limits := {LIMITS[name]: float(asked[name]) for name in LIMITS if name in asked}:
        return limits, False
    if plan.latency_s is None or not plan.works:
        return {}, False
    name = "ttft_limit_s" if plan.deployment.phase == "prefill" else "tpot_limit_s"
    own = {name: plan.latency_s} | ({"ttft_p99_limit_s": plan.service.ttft_s.p99} if plan.service else {})
    return {key: min(value * (1 + SLACK), LONGEST_LIMIT_S.get(key, 3600.0)) for key, value in own.items() if value > 0}, True


def _figures(plan: PlanOutcome, label: str, read: ReadCommand | None) -> ComparedFigures:
    unknown = read.unmodelled if read else ()
    conflicts = (*(read.conflicts if read else ()), *plan.conflicts)
    rate = plan.tokens_per_s_per_gpu
    service = plan.service
    return ComparedFigures(
        label=label,
        gpus=plan.gpus,
        answer="does not work" if conflicts else answer_of(plan, unknown),
        tokens_per_s_per_gpu=rate,
        tokens_per_s=None if rate is None else rate * plan.gpus,
        latency_s=plan.latency_s,
        ttft_s=service.ttft_s.mean if service else None,
        ttft_p99_s=service.ttft_s.p99 if service else None,
        goals=plan.goals,
        conflicts=conflicts,
        unmodelled=tuple(option.line() for option in unknown),
    )


def _label(deployment: Deployment) -> str:
    several = len(deployment.pools) > 1
    parts = (f"{p.instances} x {p.layout.label()}" + (f" {role}" if several else "") for role, p in deployment.pools.items())
    return " + ".join(parts)


def _worth(step: Step, plan: PlanOutcome, goals: Goals) -> Worth:
    """The recipe with one difference."""
    said = {"what": step.edit.label, "recipe": step.before, "ours": step.after}
    try:
        deployment = validated(Deployment, step.edit.apply(plan.deployment).model_dump(mode="json"), step.edit.label)
        tried = outcome(deployment, goals, tried=True, aggregated=plan.aggregated)
        note = ""
        if not tried.fits and deployment.phase == "decode":
            fitting, _ = as_it_runs(deployment)
            tried = outcome(fitting, goals, tried=True, aggregated=plan.aggregated)
            note = f"with {sequences_of(fitting.pool):,} sequences, which fit"
    except AutotuneError as error:
        return Worth(**said, gain=None, latency_s=None, ttft_p99_s=None, note=str(error))
    fits = tried.fits and not tried.refusal
    return Worth(
        **said,
        gain=_relative(tried.tokens_per_s_per_gpu, plan.tokens_per_s_per_gpu) if fits else None,
        latency_s=tried.latency_s,
        ttft_p99_s=tried.service.ttft_s.p99 if tried.service else None,
        note=note if fits else tried.refusal or "alone it does not fit in memory",
    )


def _relative(value: float | None, base: float | None) -> float | None:
    return value / base - 1 if value is not None and base else None


def _together(worths: tuple[Worth, ...]) -> float | None:
    """Gains multiplied."""
    gains = [worth.gain for worth in worths]
    if any(gain is None for gain in gains):
        return None
    return math.prod(1 + gain for gain in gains if gain is not None) - 1
