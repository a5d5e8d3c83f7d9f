"""Weight offload to host memory: which layers, memory freed, and the stall that the copies cause.

Prefetching (v2): layer i is offloaded iff i % group_size >= group_size - num_in_group; the GPU keeps `prefetch_step` slots.
Offloaded layer j waits for its copy into slot j % step; when it has run, the copy of offloaded layer (j + step) % M
starts into the freed slot, on a copy stream that takes one copy at a time (vLLM model_executor/offloader/prefetch.py).
Zero-copy (v1): kernels read the weights over the host link while they run (vLLM model_executor/offloader/uva.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_models.arrays import Floats, as_floats

WARM_PASSES = 3
"""Forward passes replayed before the one that is measured: the copy stream wraps around from pass to pass."""


@dataclass(frozen=True, slots=True)
class OffloadCoefficients:
    """Per hardware."""

    link_efficiency: float
    """Achieved / nominal bandwidth of the host link with every GPU copying [-]."""


def offloaded_mask(layers: int, group_size: int, num_in_group: int) -> NDArray[np.bool_]:
    """Which layers are offloaded, (layers,)."""
    return np.arange(layers) % group_size >= group_size - num_in_group


def freed_bytes(layer_bytes: ArrayLike, offloaded: ArrayLike, prefetch_step: int) -> Floats:
    """Device memory that offload frees: the offloaded layers less `prefetch_step` slots of the largest of them [B].

    layer_bytes : what each layer can offload, (layers,) or (layers, rows); offloaded : (layers,) mask.
    """
    layer = as_floats(layer_bytes)
    mask = np.asarray(offloaded, dtype=np.bool_).reshape(-1, *[1] * (layer.ndim - 1))
    moved = np.where(mask, layer, 0.0)
    return as_floats(np.maximum(moved.sum(axis=0) - prefetch_step * moved.max(axis=0, initial=0.0), 0.0))


def prefetch_pass_s(compute_s: ArrayLike, copy_s: ArrayLike, offloaded: ArrayLike, prefetch_step: int) -> Floats:
    """Steady-state duration of one forward pass with prefetching offload [s].

    compute_s : (layers,) or (layers, rows), each layer without waiting; copy_s : the same shape, its copy over the
    host link; offloaded : (layers,) mask. Replays the compute and the copy stream event by event; equals the sum
    of compute_s when every copy is hidden.
    """
    compute = as_floats(compute_s)
    copies = np.broadcast_to(as_floats(copy_s), compute.shape)
    order = np.flatnonzero(np.asarray(offloaded))
    if not len(order):
        return as_floats(compute.sum(axis=0))
    position = {int(layer): j for j, layer in enumerate(order)}
    slots = min(prefetch_step, len(order))
    ready = [np.zeros(compute.shape[1:]) for _ in order]
    now = np.zeros(compute.shape[1:])
    stream = np.zeros(compute.shape[1:])
    started = now
    for _ in range(WARM_PASSES + 1):
        started = now
        for layer in range(len(compute)):
            j = position.get(layer)
            now = np.maximum(now, ready[j]) + compute[layer] if j is not None else now + compute[layer]
            if j is not None and len(order) > slots:
                following = (j + slots) % len(order)
                stream = np.maximum(stream, now) + copies[order[following]]
                ready[following] = stream
    return as_floats(now - started)


def zero_copy_pass_s(compute_s: ArrayLike, copy_s: ArrayLike, offloaded: ArrayLike) -> Floats:
    """Duration of one pass when kernels read offloaded weights over the host link: the slower of the two, per layer [s]."""
    compute = as_floats(compute_s)
    copies = np.broadcast_to(as_floats(copy_s), compute.shape)
    mask = np.asarray(offloaded, dtype=np.bool_).reshape(-1, *[1] * (compute.ndim - 1))
    return as_floats(np.where(mask, np.maximum(compute, copies), compute).sum(axis=0))
