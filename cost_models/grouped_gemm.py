"""Routed experts: permute, gate/up GEMM, activation, down GEMM and finalise on the busiest rank."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats, smoothmax
from cost_models.balance import expected_tiles
from cost_models.fitting import Coefficient, Fit, Mask, fit_model


@dataclass(frozen=True, slots=True)
class GroupedGemmCoefficients:
    """Fitted per GPU architecture, kernel family and dtype."""

    start_s: float
    compute_efficiency: float
    memory_efficiency: float
    sharpness: float
    token_passes: float = 0.0
    """Passes over all tokens that enter the kernel (quantise, permute, finalise) [-]."""
    pair_passes: float = 0.0
    """Passes over the (token, expert) pairs' intermediate tensors [-]."""
    per_expert_s: float = 0.0
    """Scheduling cost of one local expert [s]."""
    per_active_expert_s: float = 0.0
    """Cost of one local expert that got a token, beside its weights and FLOPs [s]."""
    start_per_k_s: float = 0.0
    """Fill of the two GEMMs' pipelines along one element of K: hidden size and the rank's width [s]."""
    tile_tokens: float = 128.0
    """Rows that an expert's tokens are padded to: the kernel's GEMM tile, or a blend of those it picks from."""
    spare_rows: float = 0.0
    """Rows that a kernel works through for each local expert beside its pairs, where the host does not know who got how many:
    the most that padding can come to, whoever gets tokens; then tiles pad no more. Activated and quantised, not copied [-]."""


def grouped_gemm_time_s(
    pairs: ArrayLike,
    local_experts: ArrayLike,
    active_experts: ArrayLike,
    input_tokens: ArrayLike,
    moe_tp: ArrayLike,
    *,
    hidden: ArrayLike,
    intermediate: ArrayLike,
    weight_bytes: float,
    activation_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    coefficients: GroupedGemmCoefficients,
) -> Floats:
    r"""Time of one layer's routed experts on one rank.

    .. math::
        t = t_0 + c_K (H + I) + \mathrm{smoothmax}(F/(e_c P), A \cdot 3HI w/(e_m W))
            + c_m B_{tokens} + c_p B_{pairs} + c_E E + c_A A

    pairs : (token, expert) pairs that land on the rank; local_experts : physical experts it holds;
    active_experts : those of them that got a token (balance.expected_active_experts);
    input_tokens : tokens that enter its permute; moe_tp : ranks that share each expert's width.
    F pads each expert to whole tiles, or by `spare_rows`; A counts experts that got at least one token. H + I: a block walks
    all of K in turn (hidden, then the rank's width I), which a small model's layer does sooner, however few tokens there are.
    Returns seconds; zero where no pair lands.

    Evidence for the form (median held-out error 2.7-4.8 %): docs/models/grouped_gemm.md.
    """
    pairs, experts, active, tokens, shards = (
        as_floats(x) for x in np.broadcast_arrays(pairs, local_experts, active_experts, input_tokens, moe_tp)
    )
    c = coefficients
    hidden, width = as_floats(hidden), as_floats(intermediate) / shards
    per_expert = pairs / np.maximum(experts, 1)
    full_tiles = experts * (expected_tiles(per_expert, c.tile_tokens) + np.expm1(-per_expert))
    rows = pairs + c.spare_rows * experts
    padded_tokens = rows if c.spare_rows else c.tile_tokens * (active + full_tiles)
    compute_s = padded_tokens * 6 * hidden * width / peak_flops_per_s / c.compute_efficiency
    memory_s = active * 3 * hidden * width * weight_bytes / hbm_bytes_per_s / c.memory_efficiency
    token_bytes = tokens * hidden * (4 + activation_bytes)
    pair_bytes = pairs * hidden * (2 * activation_bytes + 4) + rows * width * (4 + 2 * activation_bytes)
    passes_s = (c.token_passes * token_bytes + c.pair_passes * pair_bytes) / hbm_bytes_per_s
    experts_s = c.per_expert_s * experts + c.per_active_expert_s * active
    start_s = c.start_s + c.start_per_k_s * (hidden + width)
    total = start_s + smoothmax(compute_s, memory_s, c.sharpness) + passes_s + experts_s
    return np.where(pairs > 0, total, 0.0)


def grouped_gemm_bound_s(
    pairs: ArrayLike,
    active_experts: ArrayLike,
    moe_tp: ArrayLike,
    *,
    hidden: int,
    intermediate: int,
    weight_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
) -> Floats:
    """Roofline: unpadded FLOPs at peak or each active expert's weights read once [s]."""
    pairs, active, shards = (as_floats(x) for x in np.broadcast_arrays(pairs, active_experts, moe_tp))
    width = intermediate / shards
    compute_s = pairs * 6 * hidden * width / peak_flops_per_s
    return np.maximum(compute_s, active * 3 * hidden * width * weight_bytes / hbm_bytes_per_s)


FIT_COEFFICIENTS = {
    "start_s": Coefficient(2.2e-5, 1e-6, 2e-4),
    "compute_efficiency": Coefficient(0.6, 0.1, 0.98, prior=0.5),
    "memory_efficiency": Coefficient(0.85, 0.3, 0.98, prior=0.2),
    "sharpness": Coefficient(2.3, 1.0, 8.0, prior=0.5),
    "token_passes": Coefficient(2.0, 0.01, 15.0),
    "pair_passes": Coefficient(1.5, 0.01, 12.0),
    "start_per_k_s": Coefficient(2e-9, 1e-11, 2e-8),
    "per_expert_s": Coefficient(2e-8, 1e-9, 3e-6, prior=1.5),
    "per_active_expert_s": Coefficient(2e-7, 1e-9, 3e-6, prior=1.5),
    "tile_tokens": Coefficient(16.0, 8.0, 128.0, prior=1.0),
}
IDLE_SHARE = 0.5
"""Spread of active / local experts from which idle ones tell the two costs of an expert apart."""
TILE_STARTS = (16.0, 64.0)
"""Padding is not smooth: a GPU short of FLOPs (H20) is bound by 64-row tiles, which a start at 16 does not find."""


def fit_grouped_gemm(
    pairs: ArrayLike,
    local_experts: ArrayLike,
    active_experts: ArrayLike,
    input_tokens: ArrayLike,
    moe_tp: ArrayLike,
    hidden: ArrayLike,
    intermediate: ArrayLike,
    latency_s: ArrayLike,
    *,
    weight_bytes: float,
    activation_bytes: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    kernel_alone: bool = False,
    held_out: Mask | None = None,
) -> Fit:
    """Fit GroupedGemmCoefficients; (tokens, local experts, moe_tp, hidden) cells are held out.

    kernel_alone : the timings hold the two GEMMs only, so passes over tokens and pairs are not fitted and whole
    (pairs, local experts, hidden) cells are held out.
    """

    def model(*inputs: Floats, coefficients: GroupedGemmCoefficients) -> Floats:
        *load, hidden_size, width = inputs
        return priced(*load, hidden=hidden_size, intermediate=width, coefficients=coefficients)

    priced = partial(
        grouped_gemm_time_s,
        weight_bytes=weight_bytes,
        activation_bytes=activation_bytes,
        peak_flops_per_s=peak_flops_per_s,
        hbm_bytes_per_s=hbm_bytes_per_s,
    )
    columns = (pairs, local_experts, active_experts, input_tokens, moe_tp, hidden, intermediate)
    wanted = {n: c for n, c in FIT_COEFFICIENTS.items() if not (kernel_alone and n.endswith("_passes"))}
    if np.ptp(as_floats(active_experts) / as_floats(local_experts)) < IDLE_SHARE:
        del wanted["per_active_expert_s"]  # nearly all are active: what one costs cannot be told from what a local one does
    if np.ptp(as_floats(hidden)) == 0:
        del wanted["start_per_k_s"]  # layers of one hidden size do not tell it from the start
    shape = (0, 1, 5) if kernel_alone else (3, 1, 4, 5)
    starts = [{**wanted, "tile_tokens": dataclasses.replace(wanted["tile_tokens"], start=tile)} for tile in TILE_STARTS]
    fits = [fit_model(model, GroupedGemmCoefficients, columns, latency_s, start, shape, held_out) for start in starts]
    return min(fits, key=lambda fit: fit.cost)
