"""The few shapes whose measurement tells most about a plan: its own shapes, by what their family's error is worth."""

from __future__ import annotations

import math
from pathlib import Path

from autotune.documents.plan import Plan, SearchResult
from autotune.errors import ProblemError
from autotune.measuring.shapes import MACHINE, KernelShape
from cost_models.catalog import load_model

NEAR = 2.0
"""Factor around a plan's tokens, sequences and contexts within which shapes are its own."""


def most_telling(path: Path, found: list[KernelShape]) -> list[KernelShape]:
    """Shapes near the plan's, those of the family with most expected regret (then variance) first.

    Machine properties come first always. Raises ProblemError for a service plan or one without error bars.
    """
    from autotune.documents.results import load_plans

    result = load_plans(path)
    if not isinstance(result, SearchResult) or not result.measurements:
        raise ProblemError(f"{path}: a plan of one pool with what to measure is needed (autotune search)")
    worth = {m.family.split(".")[0]: (m.regret_reduction, m.variance_share) for m in reversed(result.measurements)}
    sizes, alone = _sizes(result.best), result.best.deployment.pool.tp == 1
    apart = [shape for shape in found if not (alone and shape.operator == "all_reduce")]
    near = [shape for shape in apart if shape.operator in MACHINE or _near(shape, sizes)]
    return sorted(near, key=lambda shape: (shape.operator not in MACHINE, *(-w for w in worth.get(_family(shape), (0.0, 0.0)))))


def _family(shape: KernelShape) -> str:
    """Calibration family of an operator."""
    if shape.operator.startswith(("allgather", "all_to_all")):
        return "dispatch"
    return shape.operator.removesuffix("_kernel")


def _sizes(plan: Plan) -> dict[str, float]:
    """What a plan runs at, by column."""
    pool, workload = plan.deployment.pool, plan.deployment.workload
    tokens = pool.batch_per_dp_rank * (1 + pool.draft_tokens) if plan.deployment.phase == "decode" else pool.max_batched_tokens
    sizes: dict[str, float] = {"m": tokens, "tokens": tokens, "sequences": pool.batch_per_dp_rank}
    sizes["context_tokens"] = workload.context_tokens / pool.dcp
    moe = load_model(plan.deployment.model).moe
    if moe is not None:
        sizes["local_experts"] = -(-(moe.experts + pool.redundant_experts) // pool.ep)
    return sizes


def _near(shape: KernelShape, sizes: dict[str, float]) -> bool:
    """Whether a shape is about what is run."""
    shared = [name for name in sizes if name in shape.columns]
    return all(abs(math.log(shape.columns[name] / max(sizes[name], 1))) <= math.log(NEAR) for name in shared)
