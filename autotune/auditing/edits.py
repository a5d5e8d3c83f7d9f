"""Changes of a plan worth trying: step size, precision, KV cache, tensor parallelism, more GPUs, spare experts, offload."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autotune.documents.deployment import Deployment, ExpertBalance, Offload, Pool, PoolRole, PrecisionChoice
from autotune.resolving import resolve_recipe
from cost_models.catalog import load_hardware, load_model, recipes
from search_spaces.loader import load_engine, resolve_version

BATCH_FACTORS = (0.25, 0.5, 0.75, 1.5, 2.0, 4.0)
SIZE_FACTORS = (2, 3, 4)
OFFLOAD_GROUPS = (2, 4, 8)

Apply = Callable[[Deployment], Deployment]


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of a deployment."""

    kind: str
    """Two edits of a kind exclude each other."""
    label: str
    apply: Apply


def pool_edits(deployment: Deployment, sizes: set[int]) -> Iterator[Edit]:
    """Changes of a deployment of one pool; sizes : worth trying beside the usual ones."""
    phase, pool = deployment.phase, deployment.pool
    size = "batch_per_dp_rank" if phase == "decode" else "max_batched_tokens"
    now = getattr(pool, size)
    for value in sorted({max(int(now * factor), 1) for factor in BATCH_FACTORS} | sizes):
        yield Edit("size", f"{size} {now:,} -> {value:,}", changed(phase, **{size: value}))
    yield from _precisions(deployment, phase)
    for tp, dp, left in ((2 * pool.tp, pool.dp // 2, pool.dp % 2), (pool.tp // 2, 2 * pool.dp, pool.tp % 2)):
        if not left:
            yield Edit("tp", f"tp {pool.tp} -> {tp}, dp {pool.dp} -> {dp}", _retiled(phase, pool, tp, dp))
    yield from _shared_contexts(deployment, phase)
    for factor in SIZE_FACTORS:
        dp, ep = pool.dp * factor, pool.ep * factor if pool.ep > 1 else 1
        yield Edit("gpus", f"dp {pool.dp} -> {dp} ({pool.layout.gpus * factor} GPUs an instance)", _wider(phase, pool, dp, ep))
        more = pool.instances * factor
        yield Edit("gpus", f"instances {pool.instances} -> {more}", changed(phase, instances=more))
    moe = load_model(deployment.model).moe
    if moe is not None and pool.redundant_experts != (fewest := -moe.experts % pool.ep):
        yield Edit("spare", f"redundant_experts {pool.redundant_experts} -> {fewest}", changed(phase, redundant_experts=fewest))
    if phase == "prefill" and pool.offload is None:
        # engines do not rebalance experts that lie in host memory
        still = {} if pool.expert_balance.kind == "none" else {"expert_balance": ExpertBalance(), "redundant_experts": 0}
        beside = ", without EPLB" if still else ""
        for group in OFFLOAD_GROUPS:
            label = f"offload one layer in {group}{beside}"
            yield Edit("offload", label, changed(phase, offload=Offload(group_size=group), **still))


def _shared_contexts(deployment: Deployment, phase: PoolRole) -> Iterator[Edit]:
    """Other numbers of ranks that share the tokens of sequences, as many as hold the same keys: with the same sequences, and with
    as many times of them as then fit. Of what computes prompts alone none.
    """
    pool = deployment.pools[phase]
    engine = load_engine(deployment.engine.name)
    if phase == "prefill" or not engine.has("context_ranks", resolve_version(engine, deployment.engine.version)):
        return
    most = int(load_model(deployment.model).context_ranks(pool.tp))
    for ranks in (n for n in range(1, most + 1) if pool.tp % n == 0 and n != pool.dcp):
        label = f"dcp {pool.dcp} -> {ranks}"
        yield Edit("dcp", label, changed(phase, dcp=ranks))
        if ranks > pool.dcp and phase == "decode":
            batch = pool.batch_per_dp_rank * ranks // pool.dcp
            more = f"{label}, batch_per_dp_rank {pool.batch_per_dp_rank:,} -> {batch:,}"
            yield Edit("dcp", more, changed(phase, dcp=ranks, batch_per_dp_rank=batch))


def service_edits(deployment: Deployment, crowded: set[PoolRole]) -> Iterator[Edit]:
    """Changes of a service: more instances of crowded pools, other token budgets, precisions, no batch limit."""
    for phase, pool in deployment.pools.items():
        if phase not in crowded:
            continue
        for more in sorted({pool.instances + 1, pool.instances * 2, pool.instances * 4}):
            yield Edit(f"{phase} gpus", f"{phase}: instances {pool.instances} -> {more}", changed(phase, instances=more))
    for phase, pool in deployment.pools.items():
        if phase != "decode" and pool.max_batched_tokens:
            for tokens in (pool.max_batched_tokens // 2, pool.max_batched_tokens * 2):
                label = f"{phase}: max_batched_tokens {pool.max_batched_tokens:,} -> {tokens:,}"
                yield Edit(f"{phase} budget", label, changed(phase, max_batched_tokens=tokens))
        if phase != "prefill" and pool.batch_per_dp_rank:
            label = f"{phase}: batch_per_dp_rank {pool.batch_per_dp_rank:,} -> as many as fit"
            yield Edit(f"{phase} size", label, changed(phase, batch_per_dp_rank=0))
    if "serve" in deployment.pools or not any(pool.precision for pool in deployment.pools.values()):
        yield from _precisions(deployment, next(iter(deployment.pools)))


def _precisions(deployment: Deployment, phase: PoolRole) -> Iterator[Edit]:
    pool = deployment.pools[phase]
    now = pool.precision or deployment.precision
    name = now if isinstance(now, str) else now.recipe
    peaks = load_hardware(pool.hardware or deployment.hardware).gpu.flops_per_s
    model = load_model(deployment.model)
    published = model.checkpoints  # a precision without weights is no way out
    for recipe in recipes().values():
        if recipe.name != name and recipe.name in published and recipe.compute_dtypes() <= set(peaks):
            yield Edit("precision", f"precision {name} -> {recipe.name}", _precision(phase, recipe.name))
    if resolve_recipe(now, model).kv_cache != "fp8":
        choice = (
            PrecisionChoice(recipe=name, kv_cache="fp8") if isinstance(now, str) else now.model_copy(update={"kv_cache": "fp8"})
        )
        yield Edit("kv", "KV cache in FP8", _precision(phase, choice))


def changed(phase: PoolRole, **changes: object) -> Apply:
    """A pool with other values."""
    return lambda deployment: deployment.with_pool(phase, **changes)


def _precision(phase: PoolRole, precision: str | PrecisionChoice) -> Apply:
    """Of the deployment; the pool's own would win, so it goes."""
    return lambda deployment: deployment.model_copy(update={"precision": precision}).with_pool(phase, precision=None)


def _retiled(phase: PoolRole, pool: Pool, tp: int, dp: int) -> Apply:
    """The same GPUs split otherwise; the same sequences in all."""
    factor = tp / pool.tp
    changes: dict[str, object] = {"tp": tp, "dp": dp, "dcp": math.gcd(pool.dcp, tp), "moe_tp": None}
    if pool.batch_per_dp_rank:
        changes["batch_per_dp_rank"] = max(int(pool.batch_per_dp_rank * factor), 1)
    if dp == 1:
        changes["all2all_backend"] = "none"
    return changed(phase, **changes)


def _wider(phase: PoolRole, pool: Pool, dp: int, ep: int) -> Apply:
    """More attention-DP ranks, the same sequences on each, experts spread over all."""
    backend = pool.all2all_backend if pool.all2all_backend != "none" else "allgather_reducescatter"
    return changed(phase, dp=dp, ep=ep, moe_tp=None, all2all_backend=backend)
