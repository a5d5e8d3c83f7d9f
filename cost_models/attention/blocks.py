"""Kernels of grouped-query attention over chosen blocks of keys.

MiniMax-M3: blocks of 128 tokens, 16 of them per query and KV head. Scores and choice are those of `indexing.py`, with the
score matrix in blocks. The core computes in BF16; an FP8 cache is widened as it is read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats, smoothmax
from cost_models.attention.decode import DecodeAttentionCoefficients, gqa_decode_time_s
from cost_models.attention.indexing import SPARSE_DECODE, SPARSE_PREFILL, SparseCoefficients
from cost_models.fitting import Coefficient

BF16_BYTES = 2
ROOF_SHARPNESS = 4.0
QUERIES_TOGETHER = 8
"""Neighbouring queries of a prompt that are taken to read a block once; memory_efficiency is in multiples of that [-]."""


def block_decode_time_s(
    sequences: ArrayLike,
    seen_tokens: ArrayLike,
    heads: ArrayLike,
    kv_heads: ArrayLike,
    query_tokens: ArrayLike,
    *,
    head_dim: float,
    kv_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    processors: float,
    coefficients: SparseCoefficients,
) -> Floats:
    """Decode over the chosen blocks of one layer [s].

    seen_tokens : in the chosen blocks, of every query token; heads, kv_heads : of the rank; head_dim : mean of keys and
    values. The kernel of dense grouped-query decode over seen_tokens, with queries and outputs in BF16.
    """
    c = coefficients
    queries = as_floats(sequences) * as_floats(query_tokens)
    core = DecodeAttentionCoefficients(c.start_s, c.compute_efficiency, c.memory_efficiency)
    kernel_s = gqa_decode_time_s(
        queries,
        seen_tokens,
        heads,
        kv_heads,
        1.0,
        head_dim=head_dim,
        kv_bytes=kv_bytes,
        peak_flops_per_s=peak_flops_per_s,
        hbm_bytes_per_s=hbm_bytes_per_s,
        processors=processors,
        coefficients=core,
    )
    query_s = queries * as_floats(heads) * 2 * head_dim * BF16_BYTES / hbm_bytes_per_s
    return kernel_s + c.query_passes * query_s + c.sequence_s * as_floats(sequences)


def block_prefill_time_s(
    sequences: ArrayLike,
    tokens: ArrayLike,
    pairs: ArrayLike,
    heads: ArrayLike,
    kv_heads: ArrayLike,
    *,
    head_dim: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    coefficients: SparseCoefficients,
) -> Floats:
    r"""Attention of prefill over the chosen blocks of one layer.

    .. math::
        t = t_0 + t_b b + (F^4/e_c^4 + (B/e_m)^4)^{1/4} + c_q B_q, \quad F = 4 P h d, \quad B = 4 P g d / 8

    tokens : new ones of all sequences b; pairs P : (query, chosen key) pairs of one head; heads h and kv_heads g : of the
    rank; d : mean width of keys and values. B is blocks gathered in BF16 once for QUERIES_TOGETHER neighbours; caches may hold
    them for more, so e_m may exceed 1, and kernels that gather for every query have less. Returns seconds; zero without tokens.
    """
    b, t, p, h, g = (as_floats(v) for v in np.broadcast_arrays(sequences, tokens, pairs, heads, kv_heads))
    c = coefficients
    flops_s = 4 * p * h * head_dim / peak_flops_per_s / c.compute_efficiency
    gather_s = 2 * p / QUERIES_TOGETHER * g * head_dim * BF16_BYTES / hbm_bytes_per_s / c.memory_efficiency
    query_s = 2 * t * h * head_dim * BF16_BYTES / hbm_bytes_per_s
    time_s = c.start_s + c.sequence_s * b + smoothmax(flops_s, gather_s, ROOF_SHARPNESS) + c.query_passes * query_s
    return np.where(t > 0, time_s, 0.0)


def block_prefill_bound_s(
    tokens: ArrayLike,
    pairs: ArrayLike,
    heads: ArrayLike,
    *,
    head_dim: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
) -> Floats:
    """Roofline: FLOPs over chosen pairs at peak, or queries in and outputs out once in BF16 [s]."""
    t, p, h = (as_floats(v) for v in np.broadcast_arrays(tokens, pairs, heads))
    flops_s = 4 * p * h * head_dim / peak_flops_per_s
    return np.maximum(flops_s, 2 * t * h * head_dim * BF16_BYTES / hbm_bytes_per_s)


BLOCK_DECODE = SPARSE_DECODE
BLOCK_PREFILL = {**SPARSE_PREFILL, "memory_efficiency": Coefficient(0.5, 0.05, 3.9, prior=1.0)}
"""Of what a coefficient may be in a fit."""
