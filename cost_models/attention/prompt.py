"""Prefill attention: causal multi-head attention over new tokens and a cached prefix (un-absorbed MLA, GQA)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats, ceil_div, smoothmax
from cost_models.fitting import Coefficient, Fit, Mask, fit_model

KEY_TILE = 128
BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class PrefillAttentionCoefficients:
    """Fitted per GPU architecture, engine kernel and KV dtype."""

    start_s: float
    compute_efficiency: float
    block_s: float
    """Prologue and epilogue of one query block [s]."""
    copy_passes: float
    """Traffic around the kernel (rope, concatenation, cache write) in passes over q, k, v and output [-]."""
    sharpness: float
    """Exponent joining the mean and the longest block [-]."""
    query_tile: float = 128.0
    """Query rows of one block; a property of the kernel, not fitted [token]."""


def prefill_attention_time_s(
    sequences: ArrayLike,
    new_tokens: ArrayLike,
    prefix_tokens: ArrayLike,
    heads: ArrayLike,
    *,
    qk_dim: int,
    v_dim: int,
    window_tokens: float = np.inf,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    processors: float,
    coefficients: PrefillAttentionCoefficients,
) -> Floats:
    r"""Causal attention of one layer, un-absorbed: every head has its own keys and values.

    .. math::
        t = t_0 + (T^p + L^p)^{1/p} + c_b B, \quad
        T = b h (n_q c_0 + n_t \tau)/SM, \quad L = c_0 + \lceil (s+x)/128 \rceil \tau

    sequences, new_tokens s (per sequence), prefix_tokens x (cached, per sequence), heads (query heads on the
    rank) : broadcastable. n_q query blocks touch n_t key tiles of 128 up to the diagonal; tau is one tile's
    FLOPs 2 t_q 128 (qk + v) on one processor; B = b s h 2 (2 qk + 2 v) bytes at full HBM bandwidth.
    window_tokens : how far back a query sees; peak_flops_per_s : of the dtype the kernel computes in. Returns seconds,
    zero without sequences.

    Causal tiles with the right query tile halve the error of any smooth form: docs/models/attention.md.
    """
    b, s, x, h = (as_floats(v) for v in np.broadcast_arrays(sequences, new_tokens, prefix_tokens, heads))
    c = coefficients
    blocks = ceil_div(s, c.query_tile)
    tile_s = 2 * c.query_tile * KEY_TILE * (qk_dim + v_dim) * processors / peak_flops_per_s / c.compute_efficiency
    total_s = b * h * (blocks * c.block_s + key_tiles(s, x, c.query_tile, window_tokens) * tile_s) / processors
    longest_s = c.block_s + ceil_div(np.minimum(s + x, window_tokens + c.query_tile), KEY_TILE) * tile_s
    moved_s = b * s * h * 2 * (qk_dim + v_dim) * BF16_BYTES / hbm_bytes_per_s
    time_s = c.start_s + smoothmax(total_s, longest_s, c.sharpness) + c.copy_passes * moved_s
    return np.where((b > 0) & (s > 0), time_s, 0.0)


def key_tiles(new_tokens: ArrayLike, prefix_tokens: ArrayLike, query_tile: float, window_tokens: float = np.inf) -> Floats:
    """Key tiles that the query blocks of one head touch: every block sees the prefix, and its own past causally.

    With a window, block j of T rows skips the floor((x + jT - window + 1) / 128) tiles that its first row no longer
    sees: counted block by block in tests/unit/cost_models/test_windows.py.
    """
    s, x = (as_floats(v) for v in np.broadcast_arrays(new_tokens, prefix_tokens))
    blocks = ceil_div(s, query_tile)
    causal = query_tile / KEY_TILE * np.maximum(blocks - 1, 0) * blocks / 2 + np.where(s > 0, ceil_div(s, KEY_TILE), 0)
    whole = causal + blocks * ceil_div(x, KEY_TILE)
    if np.isinf(window_tokens):
        return as_floats(whole)
    offset = x - window_tokens + 1
    first = np.minimum(ceil_div(np.maximum(-offset, 0), query_tile), blocks)
    skipping = blocks - first
    hidden = query_tile / KEY_TILE * (blocks - 1 + first) * skipping / 2 + np.floor(offset / KEY_TILE) * skipping
    return as_floats(whole - hidden)


def seen_pairs(new_tokens: ArrayLike, prefix_tokens: ArrayLike, window_tokens: float = np.inf) -> Floats:
    """(query, key) pairs of causal attention over new tokens after a prefix, each query seeing `window_tokens` at most."""
    s, x = (as_floats(v) for v in np.broadcast_arrays(new_tokens, prefix_tokens))
    causal = s * (x + (s + 1) / 2)
    if np.isinf(window_tokens):
        return as_floats(causal)
    first = np.clip(window_tokens - x, 0, s)
    count = s - first
    return as_floats(causal - count * (x + 1 - window_tokens + (first + s - 1) / 2))


def prefill_attention_bound_s(
    sequences: ArrayLike,
    new_tokens: ArrayLike,
    prefix_tokens: ArrayLike,
    heads: ArrayLike,
    *,
    qk_dim: int,
    v_dim: int,
    window_tokens: float = np.inf,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
) -> Floats:
    """Roofline: causal FLOPs at peak, or queries in and outputs out once in BF16 [s]."""
    b, s, x, h = (as_floats(v) for v in np.broadcast_arrays(sequences, new_tokens, prefix_tokens, heads))
    flops_s = 2 * b * h * seen_pairs(s, x, window_tokens) * (qk_dim + v_dim) / peak_flops_per_s
    return np.maximum(flops_s, b * s * h * (qk_dim + v_dim) * BF16_BYTES / hbm_bytes_per_s)


FIT_COEFFICIENTS = {
    "start_s": Coefficient(1.3e-5, 1e-6, 1e-4),
    "compute_efficiency": Coefficient(0.65, 0.1, 0.98, prior=0.3),
    "block_s": Coefficient(9e-7, 1e-8, 5e-6, prior=0.5),
    "copy_passes": Coefficient(1.3, 0.05, 6.0, prior=0.5),
    "sharpness": Coefficient(1.5, 1.0, 6.0, prior=0.5),
}
QUERY_TILES = {"blackwell": 256.0, "hopper": 128.0}
"""Rows of a query block by GPU architecture; the other value fits Hopper 1.7 times worse."""


def fit_prefill_attention(
    sequences: ArrayLike,
    new_tokens: ArrayLike,
    prefix_tokens: ArrayLike,
    heads: ArrayLike,
    latency_s: ArrayLike,
    *,
    qk_dim: int,
    v_dim: int,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    processors: float,
    query_tile: float,
    held_out: Mask | None = None,
) -> Fit:
    """Fit PrefillAttentionCoefficients; whole (heads, sequences, new tokens) shapes are held out."""
    model = partial(
        prefill_attention_time_s,
        qk_dim=qk_dim,
        v_dim=v_dim,
        peak_flops_per_s=peak_flops_per_s,
        hbm_bytes_per_s=hbm_bytes_per_s,
        processors=processors,
    )
    columns = (sequences, new_tokens, prefix_tokens, heads)
    fixed = {"query_tile": query_tile}
    return fit_model(
        model, PrefillAttentionCoefficients, columns, latency_s, FIT_COEFFICIENTS, shape=(3, 0, 1), held_out=held_out, fixed=fixed
    )
