"""How many sequences an engine really runs at once: its limit, or what its memory holds."""

from __future__ import annotations

from collections.abc import Callable

from autotune.documents.deployment import Deployment
from autotune.documents.prediction import Prediction
from autotune.predicting.step import predict_decode, resolve


def room(prediction: Prediction) -> int:
    """Sequences of an attention-DP rank that the memory limit leaves room for."""
    return prediction.kv_sequences


def as_it_runs(deployment: Deployment) -> tuple[Deployment, str]:
    """A decode deployment whose batch is only a limit, with the sequences that fit, and a remark where that is fewer.

    Buffers stay sized for the limit. At least one sequence is kept, so that what does not fit shows.
    """
    phase, pool, workload = deployment.phase, deployment.pool, deployment.workload
    limit, length = pool.batch_per_dp_rank, workload.peak_context_tokens
    sized = deployment.with_pool(phase, max_batched_tokens=pool.max_batched_tokens or limit * (1 + pool.draft_tokens))

    def holds(batch: int) -> bool:
        return room(predict_decode(resolve(sized.with_pool(phase, batch_per_dp_rank=batch)))) >= batch

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
