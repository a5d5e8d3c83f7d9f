"""Overlap of communication with compute: none, two microbatches (DBO/TBO), or inside one batch (SBO)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats, smoothmax

OVERLAPS = ("none", "two_batch", "single_batch")
"""Order gives the integer code used in candidate rows."""

OverlapName = Literal["none", "two_batch", "single_batch"]

DOWN_GEMM_SHARE = 1 / 3
"""Down-projection's share of the expert FLOPs: H I of 3 H I."""


@dataclass(frozen=True, slots=True)
class OverlapCoefficients:
    """Fitted per engine and backend."""

    two_batch_sharpness: float
    """q in (C^q + M^q)^(1/q): overlap is softer than max() [-]."""
    single_batch_hidden: float
    """Share of the hideable communication that single-batch overlap really hides [-]."""
    communication_slowdown: float = 1.0
    """Communication time beside compute over alone: they share memory bandwidth [-]."""
    communication_processors: float = 0.0
    """Processors that communication kernels occupy while they run beside compute [-]. RDMA low-latency
    transfers take none; transfers over NVLink are stores issued by the processors themselves."""


@dataclass(frozen=True, slots=True)
class SharedExpertStream:
    """Small batches run the shared expert on a second stream beside the routed experts."""

    max_tokens: float
    """Largest number of tokens per rank for which the engine does so; 0 never [token]."""


def shared_stream_hidden_s(
    tokens: ArrayLike, shared_s: ArrayLike, shared_bound_s: ArrayLike, experts_s: ArrayLike, c: SharedExpertStream
) -> Floats:
    """Time that the second stream hides: launch and latency of the shared expert, not its bytes or FLOPs [s]."""
    latency = np.maximum(as_floats(shared_s) - as_floats(shared_bound_s), 0.0)
    return np.where(as_floats(tokens) <= c.max_tokens, np.minimum(latency, as_floats(experts_s)), 0.0)


def two_batch_time_s(compute_s: ArrayLike, communication_s: ArrayLike, sharpness: float) -> Floats:
    """Both microbatches' compute and both microbatches' communication, overlapped [s].

    The arguments are sums over the two half batches: weights are read twice, so compute_s is more
    than a whole batch's and two-batch overlap pays only if it hides more than that.
    """
    return smoothmax(compute_s, communication_s, sharpness)


def single_batch_hidden_s(
    dispatch_s: ArrayLike, combine_s: ArrayLike, experts_s: ArrayLike, shared_expert_s: ArrayLike, hidden_share: float
) -> Floats:
    """Time that single-batch overlap takes off a layer [s]."""
    under_shared, under_down = single_batch_hideable_s(dispatch_s, combine_s, experts_s, shared_expert_s)
    return as_floats(hidden_share * (under_down + under_shared))


def single_batch_hideable_s(
    dispatch_s: ArrayLike, combine_s: ArrayLike, experts_s: ArrayLike, shared_expert_s: ArrayLike
) -> tuple[Floats, Floats]:
    """What single-batch overlap could hide: dispatch under the shared expert, combine under the down GEMM [s]."""
    under_shared = np.minimum(as_floats(dispatch_s), as_floats(shared_expert_s))
    under_down = np.minimum(as_floats(combine_s), DOWN_GEMM_SHARE * as_floats(experts_s))
    return under_shared, under_down
