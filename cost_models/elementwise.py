"""Norms, rope, quantise, concat and copies: memory traffic that a sum of GEMMs leaves out.

13-20 % of a GB200 step (docs/models/elementwise.md). Counted in passes over the tensors that these
kernels read and write, so that the count follows the model's shape and the tensor parallelism.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats

BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class ElementwiseCoefficients:
    """Passes per engine and kernel fusion level; efficiency per GPU architecture."""

    hidden_passes: float
    """Reads and writes of the hidden states per layer; two fused add-norms are 8 [-]."""
    query_passes: float
    """Reads and writes of the (absorbed) query and output per layer: rope, concat, quantise [-]."""
    moe_hidden_passes: float
    """Reads and writes of the hidden states per MoE layer outside the expert kernel: quantise, shared add [-]."""
    memory_efficiency: float


def elementwise_time_s(
    tokens: ArrayLike,
    query_elements: ArrayLike,
    *,
    hidden: int,
    hidden_passes: float,
    query_passes: float,
    memory_efficiency: float,
    hbm_bytes_per_s: float,
) -> Floats:
    """Traffic time of one layer's element-wise kernels [s].

    tokens : on the rank; query_elements : elements of one token's local query (absorbed width for MLA).
    """
    moved = as_floats(tokens) * BF16_BYTES * (hidden_passes * hidden + query_passes * as_floats(query_elements))
    return as_floats(moved / hbm_bytes_per_s / memory_efficiency)
