"""How many sequences an engine really runs at once: its limit, or what its memory holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from autotune.documents.deployment import Deployment
from autotune.predicting.step import held_memory
from cost_models.catalog import load_hardware


def with_cache_of(deployment: Deployment, size: int, unit: Literal["bytes", "tokens"]) -> tuple[Deployment, str]:
    """The deployment with a KV cache of so many bytes, or of at most so many tokens, on every attention-DP rank; why not, else.

    The memory fraction becomes that of everything beside the cache and of the cache itself.
    """
    memory = held_memory(deployment)
    visible = load_hardware(deployment.hardware).gpu.hbm_visible_bytes.value
    beside = memory.beside_cache_bytes
    if unit == "tokens":
        holds_a_step = deployment.phase == "prefill" and size >= deployment.pool.max_batched_tokens
        if size >= memory.kv_capacity_tokens or holds_a_step:  # of more than a step, prefill holds what is on its way out
            return deployment, ""
        size = int(size / memory.kv_capacity_tokens * memory.room_bytes)
    if beside + size > visible:
        over = (beside + size - visible) / 1e9
        return (
            deployment,
            f"{beside / 1e9:.1f} GB lie beside it, {over:.1f} GB more than a device of {visible / 1e9:.1f} GB holds",
        )
    return deployment.with_pool(deployment.phase, memory_fraction=(beside + size) / visible), ""


def as_it_runs(deployment: Deployment) -> tuple[Deployment, str]:
    """A decode deployment whose batch is only a limit, with the sequences that fit, and a remark where that is fewer.

    Buffers stay sized for the limit. At least one sequence is kept, so that what does not fit shows.
    """
    phase, pool, workload = deployment.phase, deployment.pool, deployment.workload
    limit, length = pool.batch_per_dp_rank, workload.peak_context_tokens
    sized = deployment.with_pool(phase, max_batched_tokens=pool.max_batched_tokens or limit * (1 + pool.draft_tokens))

    def holds(batch: int) -> bool:
        return held_memory(sized.with_pool(phase, batch_per_dp_rank=batch)).kv_sequences >= batch

    fits = largest(limit, holds) or 0
    if fits == limit:
        return deployment, ""
    remark = (
        f"{limit:,} sequences per rank are a limit, not a demand: {fits:,} of {length:,.0f} tokens fit in memory, and so many "
        "are judged (--size N: judge N)"
        if fits
        else f"not one sequence of {length:,.0f} tokens fits"
    )
    return sized.with_pool(phase, batch_per_dp_rank=max(fits, 1)), remark


def largest(most: int, holds: Callable[[int], bool]) -> int | None:
    """The largest whole number up to `most` for which something holds that small numbers make easier; none for none."""
    if holds(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low or None
