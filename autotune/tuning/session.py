"""A tuning session: the question, the workers' journal, the loop, and the folder that holds what came out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autotune.documents.deployment import Deployment, Load
from autotune.documents.plan import SearchStatistics, SolverSummary
from autotune.documents.results import dump_yaml, is_plan, load_plans
from autotune.documents.service_plan import LimitOutcome, PoolSummary, ServicePlan, ServiceResult
from autotune.documents.tuned import RATE, TunedTrial, TuneResult, dump_result, write_trials
from autotune.errors import ExportError, NoFeasiblePlan, ProblemError
from autotune.exporters.base import checkpoint, served_name
from autotune.exporters.folders import plan_scripts, write_scripts
from autotune.files import check_writable, write_whole
from autotune.serving.predicting import predict_service
from autotune.tuning.advising import Adviser
from autotune.tuning.drivers.base import Driver
from autotune.tuning.generators.base import LoadGenerator
from autotune.tuning.guessing import BANDS, Guesses
from autotune.tuning.journal import TuneJournal
from autotune.tuning.live import LiveBench
from autotune.tuning.outcomes import TuningError
from autotune.tuning.space import TuneSpace, tune_space
from autotune.tuning.tuner import Budget, Tuner, TuneWatch, said_quantities
from cost_models.catalog import load_model, read_yaml, validated
from cost_models.reading import is_folder
from search_spaces.schema import Value

JOURNAL = "study.journal"
TRIALS = "trials"
MEASURED_SOLVER = SolverSummary(status="MEASURED", objective=0.0, bound=0.0, gap=0.0)
OBJECTIVES = {"TTFT P50": "ttft_p50_s", "TTFT P95": "ttft_p95_s", "TTFT P99": "ttft_p99_s", "mean TPOT": "tpot_s"}
"""Limits of a service plan -> the quantity that they are on."""


@dataclass(frozen=True, slots=True)
class TuneQuestion:
    """What is tuned, for what."""

    deployment: Deployment
    limits: Mapping[str, float]
    """Quantity (ttft_s, ttft_p50_s, ttft_p95_s, ttft_p99_s, tpot_s) -> what it must not exceed [s]."""
    knobs: Mapping[str, Sequence[Value]] | None = None
    """Varied instead of the usual ones."""
    same_layout: bool = False
    fixed_load: bool = False
    rounds: int = 4
    engine_options: tuple[str, ...] = ()
    """Words for every command of the engine."""
    load_options: tuple[str, ...] = ()
    """Words for every command of the load generator."""

    def space(self, *, load_only: bool) -> TuneSpace:
        """What is tried; raises ProblemError as `tune_space`."""
        return tune_space(
            self.deployment,
            knobs=self.knobs,
            load_only=load_only,
            same_layout=self.same_layout,
            fixed_load=self.fixed_load,
            rounds=self.rounds,
        )

    def key(self, space: TuneSpace, tool: str) -> str:
        """The same for two sessions whose trials can be compared."""
        said = {
            "deployment": self.deployment.model_dump(mode="json"),
            "limits": dict(self.limits),
            "choices": {name: list(values) for name, values in space.choices().items()},
            "rounds": self.rounds,
            "words": [*self.engine_options, "--", *self.load_options],
            "tool": tool,
        }
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
        limits = " ".join(f"{name}<={limit:g}" for name, limit in self.limits.items())
        return f"{self.deployment.model} on {self.deployment.hardware}, {tool}, {limits or 'no limits'}, {digest}"


def question_of(path: Path, rank: int, limits: Mapping[str, float]) -> tuple[Deployment, dict[str, float]]:
    """A run folder, a plan.yaml or a deployment file, with the limits that its plan was made for where none are given.

    Raises ProblemError for what is none of them, and for limits on what is not measured.
    """
    if unknown := sorted(set(limits) - set(BANDS)):
        known = ", ".join(name.removesuffix("_s").replace("_", "-") for name in BANDS)
        raise ProblemError(f"no limit on {', '.join(unknown)}; limits are on {known}")
    if not is_folder(path) and not is_plan(data := read_yaml(path)):
        return validated(Deployment, data, str(path)), dict(limits)
    plans = load_plans(path).plans
    plan = next((plan for plan in plans if plan.rank == rank), None)
    if plan is None:
        raise ProblemError(f"{path} has plans 1..{len(plans)}, not {rank}")
    planned = (
        {OBJECTIVES[o.name]: o.limit for o in plan.objectives if o.name in OBJECTIVES} if isinstance(plan, ServicePlan) else {}
    )
    return plan.deployment, dict(limits) or planned


@dataclass
class TuneSession:
    """One worker's part in a study, in a folder."""

    question: TuneQuestion
    driver: Driver
    tool: LoadGenerator
    out: Path
    budget: Budget
    storage: str | None = None
    """An Optuna storage; a journal file in the folder where none is given."""
    resume: bool = False
    watch: TuneWatch | None = None
    tokenizer: str | None = None
    """What the load generator reads the tokenizer of; the served checkpoint where none is given."""
    served: str | None = None
    warm_up: bool = True
    notes: list[str] = field(default_factory=list)

    def run(self) -> TuneResult:
        """Tune until nothing is worth trying or the budget is spent, and write the folder.

        Raises TuningError where nothing can be measured here, with what was measured kept; NoFeasiblePlan where no trial meets
        the limits; ProblemError and OutputError for input and places that cannot be used.
        """
        check_writable(self.out)
        space = self.question.space(load_only=self.driver.load_only)
        bench = self._bench(space)
        key = self.question.key(space, self.tool.name)
        journal = TuneJournal(self.storage or str(self.out / JOURNAL), space, key, resume=self.resume)
        if self.resume:
            self.notes += [f"{folder}: ended what a killed tuner had left running" for folder in bench.clean()]
        adviser = Adviser(space, Guesses(space), self.question.limits)
        tuner = Tuner(adviser, journal, bench, self.budget, self.watch)
        stopped = "interrupted; go on with --resume"
        try:
            stopped = tuner.run()
        finally:
            result = tuner.result(stopped, self.notes)
            write_result(self.out, result, space)
        if not any(trial.state == "measured" for trial in result.trials):
            raise TuningError(none_measured(result, self.out))
        if result.best is None:
            raise NoFeasiblePlan(none_meets(result, self.out))
        return result

    def _bench(self, space: TuneSpace) -> LiveBench:
        model = load_model(self.question.deployment.model)
        own = checkpoint(self.question.deployment, model)
        served = self.served or served_name(self.question.deployment, model)
        return LiveBench(
            space=space,
            driver=self.driver,
            tool=self.tool,
            folder=self.out / TRIALS,
            model=self.tokenizer or own,
            served=served,
            engine_options=self.question.engine_options,
            load_options=self.question.load_options,
            warm_up=self.warm_up,
        )


def none_measured(result: TuneResult, out: Path) -> str:
    """Why nothing can be said, for exit 1."""
    failed = [trial for trial in result.trials if trial.state == "failed"]
    why = f"; the last one: {failed[-1].reason}: {failed[-1].detail}" if failed else ""
    return f"no trial of {len(result.trials)} could be measured{why}. {result.stopped}; what was tried is in {out}"


def none_meets(result: TuneResult, out: Path) -> str:
    """What came closest, for exit 2."""
    closest = result.trial(result.closest)
    assert closest is not None
    said = said_quantities(closest.measured, result.limits)
    return (
        f"no trial of {len(result.trials)} meets the limits. Closest is trial {closest.number} ({closest.layout}, level "
        f"{closest.level:g}): {said}. {result.stopped}; everything measured is in {out}"
    )


def write_result(out: Path, result: TuneResult, space: TuneSpace) -> None:
    """tune.json, trials.jsonl; of a winner plan.yaml, deployment.yaml and its scripts."""
    write_whole(out / "tune.json", dump_result(result))
    write_trials(out / "trials.jsonl", result.trials)
    best = result.trial(result.best)
    if best is None:
        return
    plan = winner_plan(best, result, space)
    write_whole(out / "deployment.yaml", dump_yaml(plan.deployment.model_dump(mode="json", exclude_defaults=True)))
    document = ServiceResult(
        plans=(plan,),
        verdict=f"Measured: {said_quantities(best.measured, result.limits)}.",
        pareto=(),
        statistics=SearchStatistics(layouts=len(space.layouts), rows=0, feasible_rows=0, rows_after_pruning=0, seconds={}),
        assumed=(),
        notes=(f"The winner of {len(result.trials)} trials on a live engine; tune.json has them all.",),
    )
    write_whole(out / "plan.yaml", dump_yaml(document.model_dump(mode="json")))
    try:
        write_scripts(out / "launch", plan, plan_scripts(plan))
    except ExportError:
        return  # the server's own script lies in the folder of its trial


def winner_plan(best: TunedTrial, result: TuneResult, space: TuneSpace) -> ServicePlan:
    """All instances of the winner under the whole load; times of the objectives are those that were measured."""
    deployment = whole_deployment(best, space)
    pool = deployment.pools["serve"]
    names = {quantity: name for name, quantity in OBJECTIVES.items()}
    return ServicePlan(
        rank=1,
        kind="aggregated",
        label=f"{pool.instances} x {pool.layout.label()} serve",
        deployment=deployment,
        prediction=predict_service(deployment),
        objectives=tuple(
            LimitOutcome(name=names.get(name, name), predicted=best.measured[name], limit=limit, probability=1.0)
            for name, limit in result.limits.items()
            if name in best.measured and name in BANDS
        ),
        pools=(
            PoolSummary(
                phase="serve",
                label=f"{pool.instances} x {pool.layout.label()}",
                hardware=deployment.hardware,
                gpus=pool.layout.gpus * pool.instances,
                planned_requests_per_s=best.measured[RATE] * pool.layout.gpus * pool.instances / deployment.workload.osl_tokens,
                transfer_requests_per_s=None,
            ),
        ),
        bound_by="the limits, as measured",
        usd_per_million_tokens=None,
        solver=MEASURED_SOLVER,
    )


def whole_deployment(best: TunedTrial, space: TuneSpace) -> Deployment:
    """All instances of a trial's configuration, under the whole level."""
    assert best.deployment is not None
    pool = best.deployment.pools["serve"]
    shortest = space.deployment.load.shortest if space.deployment.load else 1.0
    load = (
        Load(concurrency=round(best.level), shortest=shortest) if space.closed else Load(rate_per_s=best.level, shortest=shortest)
    )
    instances = space.gpus // pool.layout.gpus
    return best.deployment.model_copy(update={"pools": {"serve": pool.model_copy(update={"instances": instances})}, "load": load})
