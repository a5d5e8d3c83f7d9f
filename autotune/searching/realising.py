"""A chosen candidate row and its flags -> the pool and the deployment that `predict` prices the same."""

from __future__ import annotations

from autotune.documents.deployment import Deployment, EngineChoice, Pool, PrecisionChoice
from autotune.documents.knobs import pool_values
from autotune.flags.decode import api_servers
from autotune.flags.evaluate import kv_dtype
from autotune.flags.space import Params
from autotune.resolving import ResolvedProblem
from cost_models.rows import Rows


def deployment_of(resolved: ResolvedProblem, row: Rows, instances: int, params: Params) -> Deployment:
    """A row of one pool as a deployment of that pool alone."""
    problem = resolved.problem
    return Deployment(
        hardware=problem.hardware,
        model=problem.model,
        precision=precision_of(resolved, params),
        engine=EngineChoice(name=resolved.engine.name, version=resolved.version),
        calibration=problem.calibration,
        phase=resolved.phase,
        workload=problem.workload,
        pools={resolved.phase: pool_of(resolved, row, instances, params)},
    )


def pool_of(resolved: ResolvedProblem, row: Rows, instances: int, params: Params) -> Pool:
    """A row and its flags as a pool; what the row leaves out is what the engine does by itself."""
    covers_all = resolved.engine.memory_fraction_covers == "everything" and "gpu_memory_fraction" in params
    fields = pool_values(row, resolved.phase)
    if resolved.phase == "decode":
        fields["api_servers"] = api_servers(resolved, row)
    if row.drafts[0]:
        fields["drafter"] = resolved.problem.drafter
    return Pool(
        instances=instances,
        memory_fraction=float(params["gpu_memory_fraction"]) if covers_all else resolved.memory_fraction,
        flags=dict(params),
        **fields,
    )


def precision_of(resolved: ResolvedProblem, params: Params) -> str | PrecisionChoice:
    """The recipe, with the KV dtype that the flags chose."""
    recipe = resolved.machine.recipe
    if "kv_cache_dtype" not in params:
        return recipe.name
    changed = recipe.with_kv_cache(kv_dtype(params["kv_cache_dtype"]))
    if changed == recipe:
        return recipe.name
    return PrecisionChoice(recipe=recipe.name, kv_cache=changed.kv_cache, attention_compute=changed.attention_compute)
