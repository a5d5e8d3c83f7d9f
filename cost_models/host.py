"""The CPU side: scheduler step, sampling, and the API process that detokenises outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats, ceil_div


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
    graph_operator_s: float = 0.0
    """Gaps and small kernels around one operator of a layer under CUDA graphs [s]."""
    eager_operator_s: float = 0.0
    """Launch-bound floor of one operator without CUDA graphs [s]."""


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
