"""Chunk settings that split an MoE layer's work."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats, ceil_div


def moe_chunks(tokens: ArrayLike, chunk_tokens: ArrayLike) -> tuple[Floats, Floats]:
    """MoE DP chunking: (iterations, tokens per iteration); a chunk of 0 means off.

    Every rank runs ceil(max tokens over DP ranks / chunk) rounds of dispatch, experts and combine in
    lockstep (vLLM 0.13 fused_moe/layer.py; VLLM_MOE_DP_CHUNK_SIZE).
    """
    tokens, chunk = (as_floats(x) for x in np.broadcast_arrays(tokens, chunk_tokens))
    size = np.where(chunk > 0, np.minimum(chunk, tokens), tokens)
    iterations = np.where(tokens > 0, ceil_div(tokens, np.maximum(size, 1)), 0.0)
    return iterations, tokens / np.maximum(iterations, 1)


def activation_chunks(rows: ArrayLike, chunk_rows: ArrayLike) -> Floats:
    """Loops of the expert GEMMs alone: ceil(M / chunk); dispatch and combine are not repeated."""
    rows, chunk = (as_floats(x) for x in np.broadcast_arrays(rows, chunk_rows))
    return np.where((chunk > 0) & (rows > 0), ceil_div(rows, np.maximum(chunk, 1)), 1.0)
