"""The CPU side: scheduler step, sampling, the API process that detokenises outputs, and the launches between kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats, ceil_div
from cost_models.specs.model import LayerGroup, MoeSpec


@dataclass(frozen=True, slots=True)
class HostCoefficients:
    """Fitted per engine."""

    step_s: float
    """Scheduler, input preparation and launch per step that the GPU waits for [s]."""
    data_parallel_sync_s: float
    """Extra per step when attention-DP ranks synchronise [s]."""
    per_sequence_s: float
    """Exposed host work per sequence of a rank [s]."""
    output_s: float
    """API-process work per output (detokenise, stream) [s]."""
    output_yield_s: float
    """API-process cost of yielding between output chunks [s]."""
    sampling_bytes_per_logit: float = 16.0
    small_kernel_s: float = 0.0
    """One kernel that no operator covers (norm, rope, cache write, routing, activation), with its gap, under CUDA graphs [s]."""
    fused_norms: float = 0.0
    """Norms of a layer that the all-reduce before them computes as it stores its sum, where ranks share its matrices [-]."""
    eager_operator_s: float = 0.0
    """Launch-bound floor of one operator without CUDA graphs [s]."""
    eager_experts_s: float = 0.0
    """Launch-bound floor of one layer's routed experts beyond one operator's, without CUDA graphs: routing, sorting and
    several kernels launched from Python [s]."""
    eager_scan_s: float = 0.0
    """Launch-bound floor of one recurrent layer's scan beyond its operators' own, without CUDA graphs: gates, sums and inverses
    of chunks, states, outputs and the gated norm, each launched from Python [s]."""


NORMS = 2
"""Add-and-norm before each half of a layer."""
ROUTING = 1
"""Scores to choices; twice where groups of experts are chosen first. Order, activation and sum are the experts' own."""
EXCHANGE = 2
"""Around one direction of an all-to-all: packing and unpacking."""


def small_kernels(group: LayerGroup, hidden: int, exchanged: ArrayLike, reduced: ArrayLike, fused_norms: float) -> Floats:
    """Kernels of one layer that no operator covers, (rows,).

    Counted from the layer's shape: two norms; one after each attention projection but the last (rope, norms of latents and
    heads, concatenation) and the cache write, one more where heads are normed; a dense layer's activation; routing; the shared
    expert's activation and what joins it; and packing around the all-to-all where tokens are `exchanged` between ranks. 5 for
    Llama, 6 for Qwen3-MoE (as traced: results/2026-11-26_vllm_traces_study), 14 for a wide-EP DeepSeek layer. Less the
    `fused_norms` of an engine whose all-reduce takes the norm after it along, where ranks add up a layer's halves (`reduced`).
    """
    exchanged, reduced = np.broadcast_arrays(np.asarray(exchanged, dtype=np.bool_), np.asarray(reduced, dtype=np.bool_))
    fused = np.where(reduced, min(fused_norms, NORMS), 0.0)
    count = NORMS
    if group.attention:
        count += len(group.attention.matrices(hidden, 1)) + group.attention.normed_heads
    if not isinstance(group.ffn, MoeSpec):
        return as_floats(count + (group.ffn is not None) - fused)
    count += ROUTING * (2 if group.ffn.groups > 1 else 1) + (2 if group.ffn.shared_intermediate else 0)
    return as_floats(count + np.where(exchanged, 2 * EXCHANGE, 0) - fused)


def host_step_s(sequences: ArrayLike, data_parallel: ArrayLike, c: HostCoefficients) -> Floats:
    """Exposed host time of one engine step on a rank [s]."""
    sync = np.where(as_floats(data_parallel) > 1, c.data_parallel_sync_s, 0.0)
    return as_floats(c.step_s + sync + c.per_sequence_s * as_floats(sequences))


def output_processing_s(outputs: ArrayLike, chunk: ArrayLike, c: HostCoefficients) -> Floats:
    """One API process's work per engine step: a linear part and one yield between chunks [s].

    Runs beside the engine, so it bounds the step interval rather than adding to it
    (vLLM v1/engine/async_llm.py, output_handler). outputs : per API process and step.
    """
    outputs = as_floats(outputs)
    chunks = ceil_div(outputs, np.maximum(as_floats(chunk), 1))
    return as_floats(outputs * c.output_s + np.maximum(chunks - 1, 0) * c.output_yield_s)
