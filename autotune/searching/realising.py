"""A chosen candidate row and its flags -> the pool and the deployment that `predict` prices the same."""

from __future__ import annotations

import numpy as np

from autotune.documents.deployment import Chunks, Deployment, EngineChoice, ExpertBalance, Offload, Pool, PrecisionChoice
from autotune.flags.decode import api_servers
from autotune.flags.evaluate import kv_dtype
from autotune.flags.space import Params
from autotune.resolving import ResolvedProblem
from cost_models.dispatch import BACKENDS
from cost_models.overlap import OVERLAPS
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
    """A row and its flags as a pool."""
    sized = _prefill_fields(row) if resolved.phase == "prefill" else _decode_fields(resolved, row)
    output = int(params["output_proc_chunk"]) if "output_proc_chunk" in params else None
    covers_all = resolved.engine.memory_fraction_covers == "everything" and "gpu_memory_fraction" in params
    return Pool(
        tp=int(row.tp[0]),
        dp=int(row.dp[0]),
        ep=int(row.ep[0]),
        pp=int(row.pp[0]),
        instances=instances,
        redundant_experts=int(row.redundant_experts[0]),
        all2all_backend=BACKENDS[int(row.backend[0])],
        overlap=OVERLAPS[int(row.overlap[0])],
        expert_balance=_balance(row),
        draft_tokens=int(row.drafts[0]),
        max_batched_tokens=int(row.batched_tokens[0]),
        memory_fraction=float(params["gpu_memory_fraction"]) if covers_all else resolved.problem.memory_fraction,
        chunks=Chunks(
            moe_dp_tokens=int(row.moe_chunk_tokens[0]), activation_rows=int(row.activation_chunk_rows[0]), output=output
        ),
        flags=dict(params),
        **sized,
    )


def _decode_fields(resolved: ResolvedProblem, row: Rows) -> dict[str, object]:
    return {
        "batch_per_dp_rank": int(row.batch[0]),
        "cuda_graph": bool(row.graph_tokens[0] >= row.batch[0] * (1 + row.drafts[0]) // row.pp[0]),
        "api_servers": api_servers(resolved, row),
    }


def _prefill_fields(row: Rows) -> dict[str, object]:
    group = int(row.offload_group_size[0])
    number, ahead = int(row.offload_in_group[0]), int(row.offload_prefetch_step[0])
    offload = Offload(group_size=group, num_in_group=number, prefetch_step=ahead) if group else None
    return {"cuda_graph": False, "offload": offload}


def _balance(row: Rows) -> ExpertBalance:
    skew = None if np.isnan(row.skew[0]) else float(row.skew[0])
    if not row.eplb[0]:
        return ExpertBalance(kind="none", skew=skew)
    if not row.eplb_interval_steps[0]:
        return ExpertBalance(kind="static", skew=skew)
    window, interval = int(row.eplb_window_steps[0]), int(row.eplb_interval_steps[0])
    return ExpertBalance(
        kind="eplb", skew=skew, window_steps=window, interval_steps=interval, asynchronous=bool(row.eplb_async[0])
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
