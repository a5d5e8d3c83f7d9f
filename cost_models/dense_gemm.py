"""Dense GEMM with a tile menu, ceil-waves, a per-CTA bandwidth limit and activation quantisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats, ceil_div, smoothmax
from cost_models.fitting import Coefficient, Fit, Mask, fit_model

TILES = {
    64: ((256, 128), (128, 128), (128, 64), (64, 64), (64, 32)),
    128: ((256, 128), (128, 128), (128, 64), (128, 32), (128, 16)),
}
"""Rows of the smallest tensor-core instruction -> tiles that kernels choose from."""
INSTRUCTION_ROWS = {"blackwell": 128.0}
"""Architectures whose instructions take more rows than Hopper's 64 (PTX ISA: wgmma 64, tcgen05.mma 128): where a Hopper kernel
halves the rows of a small tile, a Blackwell kernel narrows it."""
SPLITS_K = (1, 2, 4, 8)
MIN_K_PER_SPLIT = 256


@dataclass(frozen=True, slots=True)
class DenseGemmCoefficients:
    """Fitted per GPU architecture, engine kernel and dtype."""

    start_s: float
    """Launch and prologue; for quantised dtypes it includes the quantise kernel's start [s]."""
    compute_efficiency: float
    """Achieved / peak tensor throughput on a full wave [-]."""
    memory_efficiency: float
    """Achieved / peak HBM bandwidth [-]."""
    sharpness: float
    """Exponent of the smooth maximum of compute and memory time [-]."""
    k_prologue: float = 0.0
    """K elements' worth of pipeline fill per tile [element]."""
    tile_fill: float = 0.0
    """Loss of small tiles: efficiency / (1 + tile_fill (1/a + 1/b)) [element]."""
    cta_bandwidth_share: float = 1.0
    """Bandwidth that one full wave of CTAs can draw / HBM bandwidth [-]."""
    split_start_s: float = 0.0
    """Extra start of a split-K kernel; 0 means the kernel does not split [s]."""
    quantise_bytes: float = 0.0
    """Traffic of quantising one activation element [B]."""
    instruction_rows: float = 64.0
    """Rows of the architecture's smallest tensor-core instruction; 128 and more leave out tiles of 64 [element]."""


@dataclass(frozen=True, slots=True)
class SustainedCoefficients:
    """What a step of back-to-back GEMMs keeps up, where the power limit lets no more through."""

    share: float
    """Tensor throughput over a step / peak [-]."""
    rows: float
    """Steps of fewer tokens end, or stay bound by memory, before the limit reacts [token]."""


def sustained_s(m: ArrayLike, n: ArrayLike, k: ArrayLike, peak_flops_per_s: float, c: SustainedCoefficients) -> Floats:
    """Least time of y[m, n] = x[m, k] W[n, k]^T among others of its kind: 2 m n k / (share x peak), nothing below `rows` [s].

    Kernel timings are short bursts; the GEMMs of a long prefill step run at the clock that the board's power allows.
    """
    m, n, k = (as_floats(x) for x in np.broadcast_arrays(m, n, k))
    return np.where(m >= c.rows, 2 * m * n * k / (c.share * peak_flops_per_s), 0.0)


def dense_gemm_time_s(
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    *,
    weight_bytes: float,
    activation_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    processors: float,
    coefficients: DenseGemmCoefficients,
) -> Floats:
    r"""Time of y[m, n] = x[m, k] W[n, k]^T.

    .. math::
        t = t_0 + \min_{tile, q} \mathrm{smoothmax}(t_{compute}, t_{memory}) + c_q m k / W

    with ceil(m/a) ceil(n/b) q tiles in waves over the processors.

    m, n, k : broadcastable [element]; weight_bytes, activation_bytes : stored bytes per element.
    Returns seconds, zero where m = 0.

    The tile menu matters: padding to a single tile is no better than no padding at all.
    Form compared with twelve others on the public silicon tables: docs/models/dense_gemm.md.
    """
    m, n, k = (as_floats(x) for x in np.broadcast_arrays(m, n, k))
    c = coefficients
    splits = SPLITS_K if c.split_start_s else SPLITS_K[:1]
    menu = np.array([(split, *tile) for split in splits for tile in _tiles(c.instruction_rows)], dtype=np.float64)
    split, rows, columns = menu.T.reshape(3, -1, *(1,) * m.ndim)  # one kernel per entry of the first axis
    tiles = ceil_div(m, rows) * ceil_div(n, columns) * split
    efficiency = c.compute_efficiency / (1 + c.tile_fill * (1 / rows + 1 / columns))
    tile_flops = 2.0 * rows * columns * (k / split + c.k_prologue)
    compute_s = ceil_div(tiles, processors) * tile_flops * processors / peak_flops_per_s / efficiency
    draw = np.minimum(1.0, c.cta_bandwidth_share * tiles / processors)
    moved_s = (n * k * weight_bytes + m * k * activation_bytes + 2 * m * n) / hbm_bytes_per_s
    memory_s = moved_s / c.memory_efficiency / np.maximum(draw, 1e-12)
    reduce_s = np.where(split > 1, c.split_start_s + 4 * split * m * n / hbm_bytes_per_s, 0.0)
    allowed = (split == 1) | (k / split >= MIN_K_PER_SPLIT)
    best = np.where(allowed, smoothmax(compute_s, memory_s, c.sharpness) + reduce_s, np.inf).min(axis=0)
    return np.where(m > 0, c.start_s + best + c.quantise_bytes * m * k / hbm_bytes_per_s, 0.0)


def _tiles(instruction_rows: float) -> tuple[tuple[int, int], ...]:
    return TILES[128 if instruction_rows >= 128 else 64]


def dense_gemm_bound_s(
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    *,
    weight_bytes: float,
    activation_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
) -> Floats:
    """Roofline: FLOPs at peak or bytes (weights, input, BF16 output, each once) at full HBM bandwidth [s]."""
    m, n, k = (as_floats(x) for x in np.broadcast_arrays(m, n, k))
    moved = n * k * weight_bytes + m * k * activation_bytes + 2 * m * n
    return np.where(m > 0, np.maximum(2 * m * n * k / peak_flops_per_s, moved / hbm_bytes_per_s), 0.0)


FIT_COEFFICIENTS = {
    "start_s": Coefficient(4e-6, 5e-7, 4e-5),
    "compute_efficiency": Coefficient(0.75, 0.2, 0.98, prior=0.25),
    "memory_efficiency": Coefficient(0.83, 0.4, 0.97, prior=0.1),
    "sharpness": Coefficient(2.0, 1.0, 6.0, prior=0.4),
    "k_prologue": Coefficient(120.0, 1.0, 600.0),
    "tile_fill": Coefficient(2.0, 0.05, 80.0),
    "cta_bandwidth_share": Coefficient(0.9, 0.2, 6.0, prior=0.5),
}
SPLIT_COEFFICIENT = {"split_start_s": Coefficient(2.2e-6, 5e-7, 1e-5)}
QUANTISE_COEFFICIENT = {"quantise_bytes": Coefficient(5.0, 0.5, 15.0, prior=0.5)}


def fit_dense_gemm(
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    latency_s: ArrayLike,
    *,
    weight_bytes: float,
    activation_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    processors: float,
    architecture: str,
    quantised: bool,
    kernel_alone: bool = False,
    held_out: Mask | None = None,
) -> Fit:
    """Fit DenseGemmCoefficients; whole weight shapes (n, k) are held out.

    architecture : decides the tiles (INSTRUCTION_ROWS). quantised : the timings contain the activation quantise kernel,
    whose traffic is then fitted, unless kernel_alone; kernels of quantised dtypes do not split K. Raises FitError for too few
    rows.
    """
    model = partial(
        dense_gemm_time_s,
        weight_bytes=weight_bytes,
        activation_bytes=activation_bytes,
        peak_flops_per_s=peak_flops_per_s,
        hbm_bytes_per_s=hbm_bytes_per_s,
        processors=processors,
    )
    extra = (QUANTISE_COEFFICIENT if not kernel_alone else {}) if quantised else SPLIT_COEFFICIENT
    coefficients = {**FIT_COEFFICIENTS, **extra}
    fixed = {"instruction_rows": INSTRUCTION_ROWS[architecture]} if architecture in INSTRUCTION_ROWS else {}
    return fit_model(
        model, DenseGemmCoefficients, (m, n, k), latency_s, coefficients, shape=(1, 2), held_out=held_out, fixed=fixed
    )
