"""Weight offload to host memory with prefetch: bandwidth bound of the copy stream.

Layer i is offloaded iff i % group_size >= group_size - num_in_group; every step copies all
offloaded bytes once. The stall here is the steady-state lower bound max(0, copy - step); an exact
replay of the copy/compute timeline belongs to prefill, where offload is used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats


def offloaded_layers(layers: int, group_size: int, num_in_group: int) -> int:
    """Number of offloaded layers (vLLM model_executor/offloader/prefetch.py)."""
    return sum(i % group_size >= group_size - num_in_group for i in range(layers))


def freed_bytes(layer_bytes: ArrayLike, layers: int, group_size: int, num_in_group: int, prefetch_step: int) -> Floats:
    """Device memory that offload frees: offloaded layers less the prefetch pool [B]."""
    moved = offloaded_layers(layers, group_size, num_in_group)
    return as_floats(max(moved - prefetch_step, 0) * as_floats(layer_bytes))


def stall_s(copied_bytes: ArrayLike, host_link_bytes_per_s: float, step_s: ArrayLike) -> Floats:
    """Time per step that the copies take beyond the compute that hides them [s]."""
    return np.maximum(as_floats(copied_bytes) / host_link_bytes_per_s - as_floats(step_s), 0.0)
