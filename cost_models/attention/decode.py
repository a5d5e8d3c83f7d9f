"""Decode attention: absorbed MLA over the latent cache, and GQA over paged keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats
from cost_models.fitting import Coefficient, Fit, Mask, fit_model

ROOF_SHARPNESS = 4.0
HEAD_PADDING = 16
"""Kernels pad the query heads of one KV group to a tensor-core tile."""
SLOW_HEADS_LOG2 = (4, 5, 6, 7)
"""16, 32, 64, 128 heads: the kernels of 32 and 64 are slower than streaming; other counts lie between."""


@dataclass(frozen=True, slots=True)
class DecodeAttentionCoefficients:
    """Fitted per GPU architecture, engine kernel and KV dtype."""

    start_s: float
    compute_efficiency: float
    memory_efficiency: float
    query_passes: float = 0.0
    """Query and output traffic in multiples of one read plus one write [-]."""
    single_sequence_loss: float = 0.0
    """A lone sequence streams at 1 / (1 + loss) of the bandwidth [-]."""
    split_s: float = 0.0
    """Split-KV and reduction time that a long context adds [s]."""
    split_half_tokens: float = 1.0
    """Context at which half of split_s is reached [token]."""
    wave_s: float = 0.0
    """Time per extra wave of sequences over the processors [s]."""
    heads_32_factor: float = 1.0
    """Measured slow-down of the 32-head kernel relative to streaming; log-linear to none at 16 heads [-]."""
    heads_64_factor: float = 1.0


def mla_decode_time_s(
    sequences: ArrayLike,
    context_tokens: ArrayLike,
    heads: ArrayLike,
    query_tokens: ArrayLike,
    *,
    latent_dim: int,
    rope_dim: int,
    kv_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    processors: float,
    coefficients: DecodeAttentionCoefficients,
) -> Floats:
    r"""Absorbed multi-head latent attention of one layer.

    .. math::
        v = (F^4 / e_c + (B / e_m (1 + \beta/b))^4)^{1/4}, \quad
        t = t_0 + t_s s/(s+s_1) + \sqrt{w^2 + v^2} + c_q B_q

    sequences, context_tokens, heads (local), query_tokens (per sequence) : broadcastable.
    F = 2 b q s h (2 latent + rope) FLOP; B = b s (latent + rope) kv_bytes: the latent is read once for
    all heads and query tokens and stored once, not twice (DeepSeek-V2, arXiv 2405.04434, 2.1.2).
    Returns seconds. Rows (heads x query tokens) are nearly free up to 16 (padding).
    """
    b, s, h, q = (as_floats(x) for x in np.broadcast_arrays(sequences, context_tokens, heads, query_tokens))
    c = coefficients
    padded_rows = np.maximum(h * q, HEAD_PADDING)
    flops_s = 2 * b * s * padded_rows * (2 * latent_dim + rope_dim) / peak_flops_per_s
    read_s = b * s * (latent_dim + rope_dim) * kv_bytes / hbm_bytes_per_s
    query_s = b * q * h * ((latent_dim + rope_dim) * kv_bytes + 2 * latent_dim) / hbm_bytes_per_s
    lone = 1 + c.single_sequence_loss / np.maximum(b, 1)
    core = _roof(flops_s / c.compute_efficiency, read_s / c.memory_efficiency * lone)
    core = core * np.interp(np.log2(np.maximum(h, 1)), SLOW_HEADS_LOG2, (1.0, c.heads_32_factor, c.heads_64_factor, 1.0))
    return _with_starts(core, b, s, processors, c) + np.where(b > 0, c.query_passes * query_s, 0.0)


def mla_decode_bound_s(
    sequences: ArrayLike,
    context_tokens: ArrayLike,
    heads: ArrayLike,
    query_tokens: ArrayLike,
    *,
    latent_dim: int,
    rope_dim: int,
    kv_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
) -> Floats:
    """Roofline of absorbed MLA: FLOPs at peak or the latent cache read once [s]."""
    b, s, h, q = (as_floats(x) for x in np.broadcast_arrays(sequences, context_tokens, heads, query_tokens))
    flops_s = 2 * b * q * s * h * (2 * latent_dim + rope_dim) / peak_flops_per_s
    return np.maximum(flops_s, b * s * (latent_dim + rope_dim) * kv_bytes / hbm_bytes_per_s)


def gqa_decode_time_s(
    sequences: ArrayLike,
    context_tokens: ArrayLike,
    heads: ArrayLike,
    kv_heads: ArrayLike,
    query_tokens: ArrayLike,
    *,
    head_dim: float,
    kv_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    processors: float,
    coefficients: DecodeAttentionCoefficients,
) -> Floats:
    """Grouped-query decode attention of one layer [s].

    heads, kv_heads : local to the rank. Keys and values are each read once per KV head; the query
    heads of a group are padded to a tensor-core tile.
    """
    b, s, h, g, q = (as_floats(x) for x in np.broadcast_arrays(sequences, context_tokens, heads, kv_heads, query_tokens))
    c = coefficients
    rows = np.maximum(h / g * q, HEAD_PADDING)
    flops_s = 4 * b * s * g * rows * head_dim / peak_flops_per_s
    read_s = b * s * 2 * g * head_dim * kv_bytes / hbm_bytes_per_s
    lone = 1 + c.single_sequence_loss / np.maximum(b * g, 1)
    core = _roof(flops_s / c.compute_efficiency, read_s / c.memory_efficiency * lone)
    return _with_starts(core, b * g, s, processors, c)


def gqa_decode_bound_s(
    sequences: ArrayLike,
    context_tokens: ArrayLike,
    heads: ArrayLike,
    kv_heads: ArrayLike,
    query_tokens: ArrayLike,
    *,
    head_dim: float,
    kv_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
) -> Floats:
    """Roofline of GQA decode: FLOPs at peak or the cache read once [s]."""
    b, s, h, g, q = (as_floats(x) for x in np.broadcast_arrays(sequences, context_tokens, heads, kv_heads, query_tokens))
    flops_s = 4 * b * s * h * q * head_dim / peak_flops_per_s
    return np.maximum(flops_s, b * s * 2 * g * head_dim * kv_bytes / hbm_bytes_per_s)


def _roof(compute_s: Floats, memory_s: Floats) -> Floats:
    return as_floats((compute_s**ROOF_SHARPNESS + memory_s**ROOF_SHARPNESS) ** (1 / ROOF_SHARPNESS))


def _with_starts(core_s: Floats, blocks: Floats, context: Floats, processors: float, c: DecodeAttentionCoefficients) -> Floats:
    """Add the launch, the split-KV ramp and the waves of blocks over the processors."""
    waves_s = c.wave_s * np.maximum(0.0, blocks / processors - 1)
    total = c.start_s + c.split_s * context / (context + c.split_half_tokens) + np.hypot(waves_s, core_s)
    return np.where((blocks > 0) & (context > 0), total, 0.0)


FIT_COEFFICIENTS = {
    "start_s": Coefficient(1.1e-5, 5e-7, 5e-5),
    "compute_efficiency": Coefficient(0.6, 0.05, 0.98, prior=0.5),
    "memory_efficiency": Coefficient(0.82, 0.3, 0.98, prior=0.15),
    "single_sequence_loss": Coefficient(0.35, 0.01, 5.0),
    "split_s": Coefficient(6e-6, 1e-7, 4e-5),
    "split_half_tokens": Coefficient(4000.0, 50.0, 50_000.0),
    "wave_s": Coefficient(5e-6, 1e-7, 3e-5),
}
MLA_COEFFICIENTS = {
    "query_passes": Coefficient(2.5, 0.5, 8.0, prior=0.5),
    "heads_32_factor": Coefficient(1.2, 0.8, 2.0, prior=0.3),
    "heads_64_factor": Coefficient(1.1, 0.8, 2.0, prior=0.3),
}


def fit_mla_decode(
    sequences: ArrayLike,
    context_tokens: ArrayLike,
    heads: ArrayLike,
    latency_s: ArrayLike,
    *,
    latent_dim: int,
    rope_dim: int,
    kv_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    processors: float,
    held_out: Mask | None = None,
) -> Fit:
    """Fit DecodeAttentionCoefficients of absorbed MLA; (heads, sequences, context) shapes are held out."""
    model = partial(
        mla_decode_time_s,
        query_tokens=1,
        latent_dim=latent_dim,
        rope_dim=rope_dim,
        kv_bytes=kv_bytes,
        peak_flops_per_s=peak_flops_per_s,
        hbm_bytes_per_s=hbm_bytes_per_s,
        processors=processors,
    )
    columns = (sequences, context_tokens, heads)
    coefficients = {**FIT_COEFFICIENTS, **MLA_COEFFICIENTS}
    return fit_model(model, DecodeAttentionCoefficients, columns, latency_s, coefficients, shape=(2, 0, 1), held_out=held_out)


def fit_gqa_decode(
    sequences: ArrayLike,
    context_tokens: ArrayLike,
    heads: ArrayLike,
    kv_heads: ArrayLike,
    latency_s: ArrayLike,
    *,
    head_dim: float,
    kv_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    processors: float,
    held_out: Mask | None = None,
) -> Fit:
    """Fit DecodeAttentionCoefficients of GQA; whole shapes are held out."""
    model = partial(
        gqa_decode_time_s,
        query_tokens=1,
        head_dim=head_dim,
        kv_bytes=kv_bytes,
        peak_flops_per_s=peak_flops_per_s,
        hbm_bytes_per_s=hbm_bytes_per_s,
        processors=processors,
    )
    columns = (sequences, context_tokens, heads, kv_heads)
    return fit_model(
        model, DecodeAttentionCoefficients, columns, latency_s, FIT_COEFFICIENTS, shape=(2, 3, 0, 1), held_out=held_out
    )
