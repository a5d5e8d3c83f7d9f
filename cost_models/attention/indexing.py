"""Kernels of sparse attention by an indexer: score every cached token, keep the best, attend to those.

DeepSeek-V3.2 (DeepSeek sparse attention, arXiv 2512.02556): a light indexer of a few heads in FP8 scores all tokens, the
top_k of them are selected for all heads alike, and absorbed multi-head latent attention reads the selected latents only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats, smoothmax
from cost_models.attention.decode import DecodeAttentionCoefficients, mla_decode_bound_s, mla_decode_time_s
from cost_models.fitting import Coefficient

SCALE_BYTES = 4
"""One FP32 scale per index key and token."""
SCORE_BYTES = 4
BF16_BYTES = 2
ROOF_SHARPNESS = 4.0


@dataclass(frozen=True, slots=True)
class IndexShape:
    """An indexer and what it selects."""

    heads: int
    dim: int
    top_k: int
    stored_bytes: int | None = None
    """Of one index key; none: an FP8 key and its scale."""

    @property
    def key_bytes(self) -> int:
        """What one index key takes in its cache."""
        return self.stored_bytes or self.dim + SCALE_BYTES


@dataclass(frozen=True, slots=True)
class SparseCoefficients:
    """Fitted per GPU architecture, engine kernel and KV dtype, decode and prefill apart."""

    start_s: float
    """Launches of the core and of the small kernels around it (norms, rotation, cache write) [s]."""
    compute_efficiency: float
    memory_efficiency: float
    """Of gathering the selected tokens; above 1 where caches hold them [-]."""
    query_passes: float
    """Query and output traffic in multiples of one read plus one write [-]."""
    index_start_s: float
    """Launches of the indexer [s]."""
    index_compute_efficiency: float
    index_memory_efficiency: float
    select_s: float
    """Launch of the selection, where there is more than it keeps [s]."""
    score_passes: float
    """Traffic of the score matrix in multiples of one write [-]."""
    sequence_s: float = 0.0
    """Scheduling of one sequence in the core [s]."""
    head_tile: float = 16.0
    """Rows that query heads are padded to; a property of the kernel, chosen and not fitted."""
    pad_passes: float = 0.0
    """Prefill: filling the padded queries, in multiples of their and their outputs' one pass [-]."""
    copy_passes: float = 0.0
    """Prefill: copies of the real heads in and out of the padded ones, likewise [-]."""
    whole_below_heads: float = 0.0
    """Prefill: with fewer heads every query walks a full selection, however short its prompt; chosen."""
    whole_efficiency: float = 1.0
    """Of that walk, which computes on head_tile rows [-]."""
    select_query_s: float = 0.0
    """Prefill: selection of one query, where there is more than it keeps [s]."""


def index_time_s(
    keys: ArrayLike,
    pairs: ArrayLike,
    scores: ArrayLike,
    longest: ArrayLike,
    *,
    queries: ArrayLike = 0.0,
    index: IndexShape,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    coefficients: SparseCoefficients,
) -> Floats:
    r"""Scores and selection of one layer.

    .. math::
        t = t_i + (F_i^4/e_c^4 + (B_i/e_m)^4)^{1/4} + c_s\,4S/W + [s > k]\,(t_s + Q t_q)

    keys : index keys read; pairs P : (query, key) pairs scored; scores S : entries of the score matrix, which in prefill
    has a column for every key of the step; longest s : context of a query; queries Q : of a prefill step.
    F = 2 P heads dim FLOP, B = keys times the bytes of an index key. Nothing is selected where top_k or fewer tokens
    are there. Returns seconds.
    """
    count, scored, entries, context = (as_floats(x) for x in np.broadcast_arrays(keys, pairs, scores, longest))
    c = coefficients
    flops_s = 2 * scored * index.heads * index.dim / peak_flops_per_s / c.index_compute_efficiency
    read_s = count * index.key_bytes / hbm_bytes_per_s / c.index_memory_efficiency
    score_s = c.score_passes * entries * SCORE_BYTES / hbm_bytes_per_s
    time_s = c.index_start_s + smoothmax(flops_s, read_s, ROOF_SHARPNESS) + score_s
    return np.where(
        scored > 0, time_s + np.where(context > index.top_k, c.select_s + c.select_query_s * as_floats(queries), 0.0), 0.0
    )


def index_bound_s(
    keys: ArrayLike, pairs: ArrayLike, *, index: IndexShape, peak_flops_per_s: float, hbm_bytes_per_s: float
) -> Floats:
    """Roofline of the scores: FLOPs at peak or index keys read once [s]."""
    flops_s = 2 * as_floats(pairs) * index.heads * index.dim / peak_flops_per_s
    return np.maximum(flops_s, as_floats(keys) * index.key_bytes / hbm_bytes_per_s)


def sparse_decode_time_s(
    sequences: ArrayLike,
    context_tokens: ArrayLike,
    heads: ArrayLike,
    query_tokens: ArrayLike,
    *,
    top_k: ArrayLike,
    latent_dim: int,
    rope_dim: int,
    kv_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    coefficients: SparseCoefficients,
) -> Floats:
    """Absorbed attention of decode over the selected tokens; every query token selects and gathers its own [s]."""
    c = coefficients
    core = DecodeAttentionCoefficients(c.start_s, c.compute_efficiency, c.memory_efficiency, query_passes=c.query_passes)
    queries = as_floats(sequences) * as_floats(query_tokens)
    kernel_s = mla_decode_time_s(
        queries,
        np.minimum(context_tokens, top_k),
        np.maximum(heads, c.head_tile),
        1.0,
        latent_dim=latent_dim,
        rope_dim=rope_dim,
        kv_bytes=kv_bytes,
        peak_flops_per_s=peak_flops_per_s,
        hbm_bytes_per_s=hbm_bytes_per_s,
        processors=1.0,
        coefficients=core,
    )
    return kernel_s + c.sequence_s * as_floats(sequences)


def sparse_decode_bound_s(
    sequences: ArrayLike, context_tokens: ArrayLike, heads: ArrayLike, query_tokens: ArrayLike, *, top_k: ArrayLike, **shape: Any
) -> Floats:
    """Roofline of decode over the selected tokens of each sequence [s]. shape : as of mla_decode_bound_s."""
    return mla_decode_bound_s(sequences, np.minimum(context_tokens, top_k), heads, query_tokens, **shape)


def sparse_prefill_time_s(
    sequences: ArrayLike,
    tokens: ArrayLike,
    pairs: ArrayLike,
    heads: ArrayLike,
    *,
    full_selection: float,
    latent_dim: int,
    rope_dim: int,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    coefficients: SparseCoefficients,
) -> Floats:
    r"""Absorbed attention of prefill, each query over its own selection.

    .. math::
        t = t_0 + t_b b + \begin{cases} 2 T k H w / F_p e_w & h < h_w \\
        (F^4/e_c^4 + (B/e_m)^4)^{1/4} + [h < H](c_p H + c_c h) T w\,2/W & \end{cases} + c_q T h w\,2/W,
        \quad F = 2 P H w / F_p,\ B = P (r + d)\,2/W,\ w = 2 r + d

    tokens T : new ones of all sequences b; pairs P : (query, selected key) pairs of all of them; H : h padded to head_tile;
    full_selection k : keys of a query that selects all it may. FlashMLA's kernels take 64 heads on Hopper and 128 on Blackwell,
    so vLLM copies fewer into padded ones; with an FP8 cache and fewer than 32 heads it takes the FP8 decode kernel for prompts
    too, which walks k keys of every query, valid or not (vllm/v1/attention/backends/mla/flashmla_sparse.py, 0.24).
    Passes over queries and outputs are fitted beside a core that hides some of them; one pass is the least.
    Returns seconds; zero without tokens.
    """
    b, t, p, h = (as_floats(v) for v in np.broadcast_arrays(sequences, tokens, pairs, heads))
    c = coefficients
    width, rows = 2 * latent_dim + rope_dim, np.maximum(h, c.head_tile)
    flops_s = 2 * p * rows * width / peak_flops_per_s / c.compute_efficiency
    gather_s = p * (latent_dim + rope_dim) * BF16_BYTES / hbm_bytes_per_s / c.memory_efficiency
    row_s = t * width * BF16_BYTES / hbm_bytes_per_s
    padding_s = np.where(h < c.head_tile, (c.pad_passes * c.head_tile + c.copy_passes * h) * row_s, 0.0)
    selected_s = smoothmax(flops_s, gather_s, ROOF_SHARPNESS) + padding_s
    whole_s = 2 * t * full_selection * rows * width / peak_flops_per_s / c.whole_efficiency
    core_s = np.where(h < c.whole_below_heads, whole_s, selected_s)
    worked_s = np.maximum(core_s + c.query_passes * h * row_s, h * row_s)
    return np.where(t > 0, c.start_s + c.sequence_s * b + worked_s, 0.0)


def sparse_prefill_bound_s(
    tokens: ArrayLike,
    pairs: ArrayLike,
    heads: ArrayLike,
    *,
    latent_dim: int,
    rope_dim: int,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
) -> Floats:
    """Roofline: FLOPs over selected pairs at peak, or queries in and outputs out once in BF16 [s]."""
    t, p, h = (as_floats(v) for v in np.broadcast_arrays(tokens, pairs, heads))
    width = 2 * latent_dim + rope_dim
    return np.maximum(2 * p * h * width / peak_flops_per_s, t * h * width * BF16_BYTES / hbm_bytes_per_s)


SPARSE_PREFILL = {
    "start_s": Coefficient(3e-5, 1e-6, 3e-4),
    "compute_efficiency": Coefficient(0.5, 0.03, 0.98, prior=0.5),
    "memory_efficiency": Coefficient(0.7, 0.1, 3.9, prior=0.5),
    "query_passes": Coefficient(2.0, 0.05, 30.0, prior=0.7),
    "index_start_s": Coefficient(2e-5, 1e-6, 2e-4),
    "index_compute_efficiency": Coefficient(0.5, 0.03, 0.98, prior=0.5),
    "index_memory_efficiency": Coefficient(0.6, 0.05, 0.98, prior=0.5),
    "select_s": Coefficient(1e-5, 1e-7, 1e-4),
    "score_passes": Coefficient(2.0, 0.05, 40.0, prior=1.0),
    "sequence_s": Coefficient(1e-7, 1e-9, 2e-5, prior=1.5),
}
SPARSE_DECODE = {**SPARSE_PREFILL, "memory_efficiency": Coefficient(0.7, 0.1, 0.98, prior=0.5)}
"""Decode reads each sequence's selection from memory; in prefill neighbours select much the same, which caches hold."""


@dataclass(frozen=True, slots=True)
class SparseKernel:
    """What is known of a kernel before its times are: the shape of its tiles, and what is fitted with it."""

    chosen: Mapping[str, float]
    fitted: Mapping[str, Coefficient]


PADDING = {"pad_passes": Coefficient(1.0, 0.01, 10.0, prior=1.0), "copy_passes": Coefficient(1.0, 0.01, 10.0, prior=1.0)}
SELECTION = {"select_query_s": Coefficient(5e-8, 1e-11, 2e-6, prior=2.0)}
WHOLE_WALK = {"whole_efficiency": Coefficient(0.35, 0.03, 0.98, prior=0.5)}
ALWAYS = 4096.0
"""More heads than a rank has."""
SELECTING_KERNELS = (
    SparseKernel({"head_tile": 16.0}, SPARSE_PREFILL),
    SparseKernel({"head_tile": 64.0}, SPARSE_PREFILL | PADDING),
    SparseKernel({"head_tile": 128.0}, SPARSE_PREFILL | PADDING),
)
"""Plain tiles of 16 rows; FlashMLA on Hopper and on Blackwell."""
STREAM_KERNELS = tuple(SparseKernel(kernel.chosen, {**kernel.fitted, **SELECTION}) for kernel in SELECTING_KERNELS)
"""Of compressed streams, whose selection takes a step per query once a prompt has more entries than are kept."""
PREFILL_KERNELS = (
    *SELECTING_KERNELS,
    SparseKernel({"head_tile": 64.0, "whole_below_heads": 32.0}, SPARSE_PREFILL | PADDING | WHOLE_WALK),
    SparseKernel(
        {"head_tile": 64.0, "whole_below_heads": ALWAYS},
        {name: c for name, c in (SPARSE_PREFILL | WHOLE_WALK).items() if name not in ("compute_efficiency", "memory_efficiency")},
    ),
)
"""Those; vLLM with an FP8 cache on Hopper; and a walk of all keys, which TensorRT-LLM's kernel on Hopper takes."""
