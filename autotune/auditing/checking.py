"""A verdict on one deployment: does it start and fit, its goals, its bottleneck, waste, and the smallest changes that help."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.auditing.conflicts import Written, audit, unlaunchable
from autotune.auditing.edits import Edit, pool_edits, service_edits
from autotune.auditing.goals import GoalLine, Goals, pool_goals, service_goals
from autotune.auditing.unmodelled import Unmodelled
from autotune.auditing.verdict import Answer, PoolMemory, SmallestChange, Verdict
from autotune.documents.deployment import Deployment, PoolRole
from autotune.documents.prediction import Prediction, PrefillPrediction, ServicePrediction
from autotune.errors import ProblemError
from autotune.predicting.step import predict
from cost_models.catalog import load_model
from cost_models.errors import AutotuneError
from search_spaces.loader import load_engine, version_notes

if TYPE_CHECKING:
    from autotune.auditing.commands import ReadCommand

PAIRS_LOOKED_AT = 24
SHOWN = 3
IDLE_MEMORY = 0.25
"""Share of the memory limit left empty from which a decode pool wastes it."""
CROWDED = 0.3
"""Use of a pool from which more instances are worth a replay."""
LOST_SERVICE = 1e6
"""How far short, beside what memory is short of, a service is said to be that cannot be replayed."""

PoolPrediction = Prediction | PrefillPrediction


@dataclass(frozen=True, slots=True)
class PlanOutcome:
    """A deployment with what is predicted of it."""

    deployment: Deployment
    steps: dict[PoolRole, PoolPrediction]
    """A step of every pool; none of a service that was only tried."""
    service: ServicePrediction | None
    goals: tuple[GoalLine, ...]
    conflicts: tuple[str, ...]
    refusal: str = ""
    """Why it could not be priced."""
    doubts: tuple[str, ...] = ()
    """Settings without effect, and what a library of the engine decides."""
    untimed: tuple[str, ...] = ()
    """What is priced by timings of something else."""
    aggregated: bool = False
    """Its decode pool prefills too."""

    @property
    def fits(self) -> bool:
        """A service that is replayed fills what memory there is."""
        return self.service is not None or (not self.refusal and all(step.fits for step in self.steps.values()))

    @property
    def carried(self) -> bool:
        """Whether a service answers as fast as it is asked."""
        return self.service is None or not self.service.overloaded

    @property
    def works(self) -> bool:
        return self.fits and self.carried and not self.conflicts and all(goal.met for goal in self.goals)

    @property
    def short(self) -> float:
        """Everything that is missing, relative, summed."""
        memory = sum(max(step.memory_total_bytes / step.memory_limit_bytes - 1, 0.0) for step in self.steps.values())
        lost = LOST_SERVICE if self.refusal else 0.0 if self.carried else 1.0
        return memory + lost + len(self.conflicts) + sum(goal.short for goal in self.goals)

    @property
    def missing(self) -> tuple[str, ...]:
        """What does not hold, by name."""
        names = [*(["start"] if self.conflicts else []), *([] if self.fits else ["memory"]), *([] if self.carried else ["load"])]
        return (*names, *(goal.name for goal in self.goals if not goal.met))

    @property
    def gpus(self) -> int:
        return sum(pool.layout.gpus * pool.instances for pool in self.deployment.pools.values())

    @property
    def tokens_per_s_per_gpu(self) -> float | None:
        """Of the service, or of the one pool."""
        if self.deployment.phase == "serve":
            return self.service.tokens_per_s_per_gpu if self.service else None
        step = self.steps.get(self.deployment.phase)
        return step.tokens_per_s_per_gpu if step else None

    @property
    def latency_s(self) -> float | None:
        """Mean time per output token, or of one prompt."""
        if self.deployment.phase == "serve":
            return self.service.tpot_s.mean if self.service else None
        step = self.steps.get(self.deployment.phase)
        return step.latency_s if step else None


def check(deployment: Deployment, goals: Goals, command: ReadCommand | None = None) -> Verdict:
    """Judge a plan of one pool or of a service; raises AutotuneError where it cannot be priced at all.

    command : that the plan was read from.
    """
    aggregated = command is not None and command.aggregated
    plan = outcome(deployment, goals, aggregated=aggregated, written=command.written if command else None)
    unknown = (*(command.unmodelled if command else ()), *(Unmodelled("timings", line, ("speed",)) for line in plan.untimed))
    found, looked_at = ((), 0) if plan.works else smallest_changes(plan, goals, aggregated=aggregated)
    if command is not None:
        plan = dataclasses.replace(plan, conflicts=(*command.conflicts, *plan.conflicts))
    answer = answer_of(plan, unknown)
    return Verdict(
        works=answer == "works",
        answer=answer,
        unmodelled=tuple(option.line() for option in unknown) if answer == "cannot say" else (),
        conflicts=plan.conflicts,
        fits=plan.fits,
        memory=tuple(_memory(phase, step) for phase, step in plan.steps.items()),
        goals=plan.goals,
        tokens_per_s_per_gpu=plan.tokens_per_s_per_gpu,
        latency_s=plan.latency_s,
        ttft_p99_s=plan.service.ttft_s.p99 if plan.service else None,
        gpus=plan.gpus,
        bottleneck=_bottleneck(plan),
        remarks=_once(
            *(command.remarks if command else ()),
            *_aside(unknown, answer),
            *plan.doubts,
            *version_notes(load_engine(deployment.engine.name), deployment.engine.version),
            *remarks(plan),
            *_not_written(plan),
        ),
        changes=found,
        looked_at=looked_at,
    )


PARTS = {"start": "start", "memory": "memory", "load": "waiting"}
"""Which part of a verdict a thing belongs to that is missing; goals follow."""


def _once(*lines: str) -> tuple[str, ...]:
    """Each line once, in the order they come."""
    return tuple(dict.fromkeys(lines))


def answer_of(plan: PlanOutcome, unknown: Sequence[Unmodelled]) -> Answer:
    """What can be said where some options change parts of the verdict in ways that are not modelled.

    A conflict stands whatever else is given, and so does what is missing in a part that no such option touches. Speed decides
    only where something is asked of it.
    """
    if plan.conflicts:
        return "does not work"
    touched = {part for option in unknown for part in option.affects}
    if any(not (_rests_on(name) & touched) for name in plan.missing):
        return "does not work"
    asked = set().union({"start", "memory"}, *(_rests_on(goal.name) for goal in plan.goals))
    asked |= {"speed", "waiting"} if plan.deployment.phase == "serve" else set()
    if touched & asked:
        return "cannot say"
    return "works" if plan.works else "does not work"


def _rests_on(name: str) -> set[str]:
    """The parts of a verdict that a missing thing or a goal rests on."""
    if name in PARTS:
        return {PARTS[name]} | ({"speed"} if name == "load" else set())
    if name in ("concurrency", "context_tokens"):
        return {"memory"}
    return {"speed", "memory", "waiting"} if name.startswith("ttft") else {"speed", "memory"}


def _aside(unknown: Sequence[Unmodelled], answer: Answer) -> Iterator[str]:
    """Options that are not modelled, where the answer does not hang on them."""
    if answer != "cannot say":
        yield from (f"not modelled: {option.line()}" for option in unknown)


def _not_written(plan: PlanOutcome) -> Iterator[str]:
    """What `autotune export` cannot write says nothing of the engine."""
    if not plan.conflicts:
        yield from (f"no launch script can be written for it: {reason}" for reason in _unwritten(plan))


def _unwritten(plan: PlanOutcome) -> tuple[str, ...]:
    return unlaunchable(plan.deployment, aggregated=plan.aggregated)


def _memory(phase: PoolRole, step: PoolPrediction) -> PoolMemory:
    return PoolMemory(
        phase=phase,
        lines=tuple(sorted(step.memory, key=lambda line: -line.bytes)),
        total_bytes=step.memory_total_bytes,
        limit_bytes=step.memory_limit_bytes,
    )


def _bottleneck(plan: PlanOutcome) -> str:
    if plan.service is None:
        return "; ".join(step.bottleneck for step in plan.steps.values())
    busy = f"prefill is busy {plan.service.prefill_busy:.0%} of the time"
    full = plan.service.decode_sequences / plan.service.decode_slots
    steps = "; ".join(f"{phase} step: {step.bottleneck}" for phase, step in plan.steps.items())
    return f"{busy}, {full:.0%} of the room for sequences is used; {steps}"


def outcome(
    deployment: Deployment,
    goals: Goals,
    *,
    tried: bool = False,
    aggregated: bool = False,
    written: Mapping[PoolRole, Written] | None = None,
) -> PlanOutcome:
    """Price a deployment and hold it against the goals and its engine's rules.

    tried : only whether it works, without odds or a service's steps; aggregated : a decode pool prefills too; written : the
    commands that its pools were read from.
    """
    found = audit(deployment, aggregated=aggregated, written=written)
    plan = _priced(deployment, goals, found.conflicts, tried=tried)
    return dataclasses.replace(plan, doubts=found.doubts, untimed=found.untimed, aggregated=aggregated)


def _priced(deployment: Deployment, goals: Goals, held: tuple[str, ...], *, tried: bool) -> PlanOutcome:
    if deployment.phase != "serve":
        beside = {role: pool for role, pool in deployment.pools.items() if role != deployment.phase}
        try:
            step = predict(deployment)
            others = {role: predict(deployment.alone(role, pool)) for role, pool in beside.items()}
        except ProblemError as error:
            if not held:
                raise
            return PlanOutcome(deployment, {}, None, (), held, refusal=str(error))
        lines = pool_goals(goals, step, deployment.pool.dp * deployment.pool.instances, odds=not tried)
        return PlanOutcome(deployment, {deployment.phase: step, **others}, None, lines, held)
    from autotune.serving.full import full_steps
    from autotune.serving.predicting import predict_service

    try:
        service = predict_service(deployment)
    except ProblemError as error:
        steps = full_steps(deployment, 1)
        return PlanOutcome(deployment, steps, None, (), held, refusal=str(error))
    steps = {} if tried else full_steps(deployment, service.decode_slots)
    return PlanOutcome(deployment, steps, service, service_goals(goals, service), held)


def smallest_changes(plan: PlanOutcome, goals: Goals, *, aggregated: bool = False) -> tuple[tuple[SmallestChange, ...], int]:
    """Single edits that make a plan work, or else pairs of those that bring it nearest; and how many were priced.

    A service is replayed for every edit, so pairs are tried for single pools only.
    """
    whole = plan.deployment.phase == "serve"
    singles = _attempts(plan, [(edit,) for edit in _edits(plan)], goals)
    tried = singles
    if not whole and not any(result.works for _, result in singles):
        nearest = [made[0] for made, _ in sorted(singles, key=_short)]
        pairs = [(a, b) for a, b in itertools.combinations(nearest, 2) if a.kind != b.kind]
        tried = singles + _attempts(plan, pairs[:PAIRS_LOOKED_AT], goals)
    working = sorted(
        (attempt for attempt in tried if attempt[1].works),
        key=lambda found: (found[1].gpus, -(found[1].tokens_per_s_per_gpu or 0.0)),
    )
    nearer = sorted((attempt for attempt in tried if attempt[1].short < plan.short), key=_short)
    found = list(itertools.islice(_launchable(working, aggregated), SHOWN))
    found = found or list(itertools.islice(_launchable(nearer, aggregated), 1))
    return tuple(_change(*attempt) for attempt in found), len(tried)


Attempt = tuple[tuple[Edit, ...], PlanOutcome]


def _edits(plan: PlanOutcome) -> Iterator[Edit]:
    if plan.deployment.phase == "serve":
        return service_edits(plan.deployment, _crowded(plan))
    return pool_edits(plan.deployment, _fitting(plan))


def _crowded(plan: PlanOutcome) -> set[PoolRole]:
    """Pools that more instances could relieve; all of them where the service could not be replayed."""
    service = plan.service
    if service is None:
        return set(plan.deployment.pools)
    full = service.decode_sequences / service.decode_slots
    found: set[PoolRole] = {"serve"}
    found |= {"prefill"} if service.prefill_busy > CROWDED else set()
    return found | ({"decode"} if full > CROWDED or not service.overloaded else set())


def _attempts(plan: PlanOutcome, wanted: Sequence[tuple[Edit, ...]], goals: Goals) -> list[Attempt]:
    """The edits that make a deployment, with its outcome."""
    return [(made, result) for made in wanted if (result := _tried(plan, made, goals))]


def _launchable(attempts: Sequence[Attempt], aggregated: bool) -> Iterator[Attempt]:
    return (attempt for attempt in attempts if not unlaunchable(attempt[1].deployment, aggregated=aggregated))


def _short(attempt: Attempt) -> float:
    return attempt[1].short


def _change(made: tuple[Edit, ...], tried: PlanOutcome) -> SmallestChange:
    return SmallestChange(
        changes=tuple(edit.label for edit in made),
        tokens_per_s_per_gpu=tried.tokens_per_s_per_gpu or 0.0,
        latency_s=tried.latency_s or 0.0,
        gpus=tried.gpus,
        missing=tried.missing,
    )


def _tried(plan: PlanOutcome, made: tuple[Edit, ...], goals: Goals) -> PlanOutcome | None:
    """The outcome of some edits of a plan; none where they make no deployment."""
    deployment = plan.deployment
    try:
        for edit in made:
            deployment = edit.apply(deployment)
        changed = Deployment.model_validate(deployment.model_dump())
        return outcome(changed, goals, tried=True, aggregated=plan.aggregated)
    except (AutotuneError, ValueError):
        return None


def _fitting(plan: PlanOutcome) -> set[int]:
    """The largest decode batch that the KV room holds, where it is another."""
    most = _room(plan)
    return {most} if most and most != plan.deployment.pool.batch_per_dp_rank else set()


def _room(plan: PlanOutcome) -> int:
    """Sequences of an attention-DP rank that the KV room holds; 0 for other pools."""
    step = plan.steps.get("decode")
    return step.kv_sequences if isinstance(step, Prediction) else 0


def remarks(plan: PlanOutcome) -> Iterator[str]:
    """Settings that waste something or contradict each other."""
    if plan.refusal and plan.steps:
        yield plan.refusal
    if plan.service is not None:
        yield from plan.service.notes
    for phase, step in plan.steps.items():
        prefix = f"{phase}: " if len(plan.steps) > 1 else ""
        yield from (prefix + line for line in _pool_remarks(plan, phase, step))


def _pool_remarks(plan: PlanOutcome, phase: PoolRole, step: PoolPrediction) -> Iterator[str]:
    pool = plan.deployment.pools[phase]
    decodes = phase != "prefill"
    free = 1 - step.memory_total_bytes / step.memory_limit_bytes
    most = _room(plan) if phase == "decode" and plan.service is None else 0
    if free > IDLE_MEMORY and most > pool.batch_per_dp_rank:
        yield (
            f"{free:.0%} of the memory limit stays empty: batch_per_dp_rank could grow from {pool.batch_per_dp_rank:,} "
            f"to {most:,}"
        )
    if decodes and not pool.cuda_graph:
        yield "cuda_graph is off: a decode step is launched kernel by kernel"
    if pool.redundant_experts and pool.expert_balance.kind == "none":
        yield f"{pool.redundant_experts} redundant experts take memory, but nothing balances load with them (expert_balance.kind)"
    moe = load_model(plan.deployment.model).moe
    if pool.dp > 1 and pool.ep == 1 and moe is not None:
        yield "experts are cut by tensor parallelism over all ranks (ep 1): every rank reads a slice of every expert"
    if decodes:
        yield from _step_remarks(
            pool.batch_per_dp_rank * (1 + pool.draft_tokens), pool.chunks.moe_dp_tokens, pool.max_batched_tokens
        )


def _step_remarks(tokens: int, chunk: int, budget: int) -> Iterator[str]:
    """Of a decode step of so many tokens."""
    if 0 < chunk < tokens:
        loops = -(-tokens // chunk)
        yield f"MoE DP chunks of {chunk:,} tokens cut a step of {tokens:,} into {loops} rounds, each of which reads experts again"
    if 0 < budget < tokens:
        yield f"max_batched_tokens {budget:,} is below the {tokens:,} tokens of a decode step"
