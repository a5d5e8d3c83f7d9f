"""A verdict on one deployment: memory, goals, bottleneck, waste, and the smallest changes that make it work."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from autotune.auditing.goals import GoalLine, Goals, goal_lines
from autotune.deployment import Deployment, Offload, Pool, PrecisionChoice
from autotune.errors import ProblemError
from autotune.predicting import predict, resolve_recipe
from autotune.prediction import MemoryLine, Prediction, PrefillPrediction
from cost_models.catalog import load_hardware, load_model, recipes
from cost_models.errors import AutotuneError
from cost_models.specs.base import Spec

PAIRS_LOOKED_AT = 120
SHOWN = 3
BATCH_FACTORS = (0.25, 0.5, 0.75, 1.5, 2.0, 4.0)
SIZE_FACTORS = (2, 3, 4)
IDLE_MEMORY = 0.25
"""Share of the memory limit left empty from which a decode pool wastes it."""


class Change(Spec):
    """A plan that works, and what has to change for it."""

    changes: tuple[str, ...]
    tokens_per_s_per_gpu: float
    latency_s: float
    gpus: int
    missing: tuple[str, ...] = ()
    """What still does not hold; empty when it works."""


class Verdict(Spec):
    """What is to be said of a plan."""

    works: bool
    """Fits, and meets every goal."""
    fits: bool
    memory: tuple[MemoryLine, ...]
    memory_total_bytes: float
    memory_limit_bytes: float
    goals: tuple[GoalLine, ...]
    tokens_per_s_per_gpu: float
    latency_s: float
    gpus: int
    bottleneck: str
    remarks: tuple[str, ...]
    """Settings that waste or contradict."""
    changes: tuple[Change, ...]
    """Fewest changes first; empty when the plan works. When nothing looked at works, the one that comes nearest."""
    looked_at: int

    @property
    def over_bytes(self) -> float:
        """Memory missing; negative when it fits."""
        return self.memory_total_bytes - self.memory_limit_bytes


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of a deployment."""

    kind: str
    """Two edits of a kind exclude each other."""
    label: str
    apply: Callable[[Deployment], Deployment]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A deployment with what is predicted of it."""

    deployment: Deployment
    prediction: Prediction | PrefillPrediction
    goals: tuple[GoalLine, ...]

    @property
    def works(self) -> bool:
        return self.prediction.fits and all(goal.met for goal in self.goals)

    @property
    def short(self) -> float:
        """Everything that is missing, relative, summed."""
        memory = max(self.prediction.memory_total_bytes / self.prediction.memory_limit_bytes - 1, 0.0)
        return memory + sum(goal.short for goal in self.goals)


def check(deployment: Deployment, goals: Goals) -> Verdict:
    """Judge a plan of one pool; raises AutotuneError where it cannot be priced at all."""
    if deployment.phase == "serve":
        raise ProblemError("check judges one pool (phase decode or prefill); for a service use autotune predict")
    plan = outcome(deployment, goals)
    found, looked_at = ((), 0) if plan.works else smallest_changes(plan, goals)
    prediction = plan.prediction
    return Verdict(
        works=plan.works,
        fits=prediction.fits,
        memory=tuple(sorted(prediction.memory, key=lambda line: -line.bytes)),
        memory_total_bytes=prediction.memory_total_bytes,
        memory_limit_bytes=prediction.memory_limit_bytes,
        goals=plan.goals,
        tokens_per_s_per_gpu=prediction.tokens_per_s_per_gpu,
        latency_s=prediction.latency_s,
        gpus=prediction.gpus,
        bottleneck=prediction.bottleneck,
        remarks=tuple(remarks(plan)),
        changes=found,
        looked_at=looked_at,
    )


def outcome(deployment: Deployment, goals: Goals) -> Outcome:
    """Price a deployment and hold it against the goals."""
    prediction = predict(deployment)
    pool = deployment.pool
    return Outcome(deployment, prediction, goal_lines(goals, prediction, pool.dp * pool.instances))


def smallest_changes(plan: Outcome, goals: Goals) -> tuple[tuple[Change, ...], int]:
    """Single edits that make a plan work, or else pairs of those that bring it nearest; and how many were priced."""
    singles = _attempts(plan, [(edit,) for edit in edits(plan)], goals)
    tried = singles
    if not any(result.works for _, result in singles):
        nearest = [made[0] for made, _ in sorted(singles, key=_short)]
        pairs = [(a, b) for a, b in itertools.combinations(nearest, 2) if a.kind != b.kind]
        tried = singles + _attempts(plan, pairs[:PAIRS_LOOKED_AT], goals)
    working = [attempt for attempt in tried if attempt[1].works]
    best = sorted(working, key=lambda found: (found[1].prediction.gpus, -found[1].prediction.tokens_per_s_per_gpu))[:SHOWN]
    return tuple(_change(*attempt) for attempt in best or sorted(tried, key=_short)[:1]), len(tried)


Attempt = tuple[tuple[Edit, ...], Outcome]


def _attempts(plan: Outcome, wanted: Sequence[tuple[Edit, ...]], goals: Goals) -> list[Attempt]:
    """The edits that make a deployment, with its outcome."""
    return [(made, result) for made in wanted if (result := _tried(plan.deployment, made, goals))]


def _short(attempt: Attempt) -> float:
    return attempt[1].short


def _change(made: tuple[Edit, ...], tried: Outcome) -> Change:
    prediction = tried.prediction
    missing = [goal.name for goal in tried.goals if not goal.met]
    return Change(
        changes=tuple(edit.label for edit in made),
        tokens_per_s_per_gpu=prediction.tokens_per_s_per_gpu,
        latency_s=prediction.latency_s,
        gpus=prediction.gpus,
        missing=tuple(missing if prediction.fits else ["memory", *missing]),
    )


def _tried(deployment: Deployment, made: tuple[Edit, ...], goals: Goals) -> Outcome | None:
    """The outcome of some edits; none where they make no deployment."""
    try:
        for edit in made:
            deployment = edit.apply(deployment)
        return outcome(Deployment.model_validate(deployment.model_dump()), goals)
    except (AutotuneError, ValueError):
        return None


def edits(plan: Outcome) -> Iterator[Edit]:
    """Changes worth trying: step size, precision, KV cache, tensor parallelism, more GPUs, spare experts, offload."""
    deployment, pool = plan.deployment, plan.deployment.pool
    size = "batch_per_dp_rank" if deployment.phase == "decode" else "max_batched_tokens"
    now = getattr(pool, size)
    for value in sorted({max(int(now * factor), 1) for factor in BATCH_FACTORS} | _fitting(plan)):
        yield Edit("size", f"{size} {now:,} -> {value:,}", _pool(**{size: value}))
    yield from _precisions(deployment, pool)
    for tp, dp, left in ((2 * pool.tp, pool.dp // 2, pool.dp % 2), (pool.tp // 2, 2 * pool.dp, pool.tp % 2)):
        if not left:
            yield Edit("tp", f"tp {pool.tp} -> {tp}, dp {pool.dp} -> {dp}", _retiled(pool, tp, dp))
    for factor in SIZE_FACTORS:
        dp = pool.dp * factor
        grown = {"dp": dp, "ep": pool.ep * factor if pool.ep > 1 else 1}
        yield Edit("gpus", f"dp {pool.dp} -> {dp} ({pool.layout.gpus * factor} GPUs an instance)", _wider(pool, **grown))
        yield Edit("gpus", f"instances {pool.instances} -> {pool.instances * factor}", _pool(instances=pool.instances * factor))
    moe = load_model(deployment.model).moe
    if moe is not None and pool.redundant_experts != (fewest := -moe.experts % pool.ep):
        yield Edit("spare", f"redundant_experts {pool.redundant_experts} -> {fewest}", _pool(redundant_experts=fewest))
    if deployment.phase == "prefill" and pool.offload is None:
        for group in (2, 4, 8):
            yield Edit("offload", f"offload one layer in {group}", _pool(offload=Offload(group_size=group)))


def _fitting(plan: Outcome) -> set[int]:
    """The largest decode batch that the KV room holds."""
    prediction, pool = plan.prediction, plan.deployment.pool
    if not isinstance(prediction, Prediction) or prediction.kv_capacity_tokens <= 0:
        return set()
    most = int(prediction.kv_capacity_tokens / max(plan.deployment.workload.peak_context_tokens, 1))
    return {most} if 0 < most != pool.batch_per_dp_rank else set()


def _precisions(deployment: Deployment, pool: Pool) -> Iterator[Edit]:
    now = pool.precision or deployment.precision
    name = now if isinstance(now, str) else now.recipe
    peaks = load_hardware(pool.hardware or deployment.hardware).gpu.flops_per_s
    published = load_model(deployment.model).checkpoints  # a precision without weights is no way out
    for recipe in recipes().values():
        if recipe.name != name and recipe.name in published and recipe.compute_dtypes() <= set(peaks):
            yield Edit("precision", f"precision {name} -> {recipe.name}", _precision(recipe.name))
    if resolve_recipe(now).kv_cache != "fp8":
        choice = (
            PrecisionChoice(recipe=name, kv_cache="fp8") if isinstance(now, str) else now.model_copy(update={"kv_cache": "fp8"})
        )
        yield Edit("kv", "KV cache in FP8", _precision(choice))


def _pool(**changes: object) -> Callable[[Deployment], Deployment]:
    def apply(deployment: Deployment) -> Deployment:
        changed = deployment.pool.model_copy(update=changes)
        return deployment.model_copy(update={"pools": {**deployment.pools, deployment.phase: changed}})

    return apply


def _precision(precision: str | PrecisionChoice) -> Callable[[Deployment], Deployment]:
    """Of the deployment; the pool's own would win, so it goes."""

    def apply(deployment: Deployment) -> Deployment:
        return _pool(precision=None)(deployment.model_copy(update={"precision": precision}))

    return apply


def _retiled(pool: Pool, tp: int, dp: int) -> Callable[[Deployment], Deployment]:
    """The same GPUs split otherwise; the same sequences in all."""
    factor = tp / pool.tp
    changes: dict[str, object] = {"tp": tp, "dp": dp, "moe_tp": None}
    if pool.batch_per_dp_rank:
        changes["batch_per_dp_rank"] = max(int(pool.batch_per_dp_rank * factor), 1)
    if dp == 1:
        changes["all2all_backend"] = "none"
    return _pool(**changes)


def _wider(pool: Pool, dp: int, ep: int) -> Callable[[Deployment], Deployment]:
    """More attention-DP ranks, the same sequences on each, experts spread over all."""
    backend = pool.all2all_backend if pool.all2all_backend != "none" else "allgather_reducescatter"
    return _pool(dp=dp, ep=ep, moe_tp=None, all2all_backend=backend)


def remarks(plan: Outcome) -> Iterator[str]:
    """Settings that waste something or contradict each other."""
    pool, prediction, phase = plan.deployment.pool, plan.prediction, plan.deployment.phase
    free = 1 - prediction.memory_total_bytes / prediction.memory_limit_bytes
    if phase == "decode" and free > IDLE_MEMORY:
        most = next(iter(_fitting(plan)), 0)
        yield (
            f"{free:.0%} of the memory limit stays empty: batch_per_dp_rank could grow from {pool.batch_per_dp_rank:,} "
            f"to {most:,}"
        )
    if phase == "decode" and not pool.cuda_graph:
        yield "cuda_graph is off: a decode step is launched kernel by kernel"
    if pool.redundant_experts and pool.expert_balance.kind == "none":
        yield f"{pool.redundant_experts} redundant experts take memory, but nothing balances load with them (expert_balance.kind)"
    moe = load_model(plan.deployment.model).moe
    if pool.dp > 1 and pool.ep == 1 and moe is not None:
        yield "experts are cut by tensor parallelism over all ranks (ep 1): every rank reads a slice of every expert"
    tokens = pool.batch_per_dp_rank * (1 + pool.draft_tokens)
    if phase == "decode" and 0 < pool.chunks.moe_dp_tokens < tokens:
        chunk = pool.chunks.moe_dp_tokens
        loops = -(-tokens // chunk)
        yield f"MoE DP chunks of {chunk:,} tokens cut a step of {tokens:,} into {loops} rounds, each of which reads experts again"
    if 0 < pool.max_batched_tokens < tokens and phase == "decode":
        yield f"max_batched_tokens {pool.max_batched_tokens:,} is below the {tokens:,} tokens of a decode step"
