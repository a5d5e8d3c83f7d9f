"""Manifold-constrained hyper-connections (arXiv 2512.24880): several residual streams mixed before and after every block."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats
from cost_models.attention.recurrent import BF16_BYTES, StreamCoefficients, fit_stream, stream_time_s
from cost_models.fitting import Fit
from cost_models.operators import Timing

if TYPE_CHECKING:
    from cost_models.machine import Machine

SITES = 2
"""Blocks of a layer around which streams are mixed: attention and feed-forward."""
FAMILY = "hyper_connections"


def mixed_bytes(part: str, tokens: ArrayLike, hidden: ArrayLike, streams: ArrayLike) -> Floats:
    """Traffic of a layer's mixing in BF16 [B].

    pre reads all streams and writes the block's input; post reads streams and output, and writes the streams.
    """
    n = as_floats(streams)
    passes = n + 1 if part == "pre" else 2 * n + 1
    return as_floats(SITES * as_floats(tokens) * passes * as_floats(hidden) * BF16_BYTES)


def mixing(machine: Machine, tokens: Floats) -> Timing:
    """Mixing of the residual streams in one layer; nothing where there is one stream. tokens : (rows,)."""
    streams, total = machine.model.residual_streams, np.zeros(len(tokens))
    if streams == 1:
        return Timing(total, total)
    bound = total
    for part in ("pre", "post"):
        moved = mixed_bytes(part, tokens, machine.model.hidden, streams)
        c = machine.coefficients(FAMILY, part, StreamCoefficients)
        total = total + stream_time_s(moved, hbm_bytes_per_s=machine.hbm_bytes_per_s, coefficients=c)
        bound = bound + moved / machine.hbm_bytes_per_s
    return Timing(total, bound)


def fitted(part: str) -> Callable[[ArrayLike, ArrayLike, ArrayLike, ArrayLike, float], Fit]:
    """The fit of one part: (tokens, hidden, streams, latency [s], HBM bandwidth [B/s]) -> fit."""

    def fit(tokens: ArrayLike, hidden: ArrayLike, streams: ArrayLike, latency_s: ArrayLike, hbm_bytes_per_s: float) -> Fit:
        return fit_stream(mixed_bytes(part, tokens, hidden, streams), hidden, latency_s, hbm_bytes_per_s=hbm_bytes_per_s)

    return fit
