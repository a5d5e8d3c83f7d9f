"""Kernels of recurrent token mixing: the state update of decode, the chunked scan of prefill, and the short convolution.

Gated delta nets, Kimi delta attention and state-space layers keep one matrix per head instead of a growing cache. Decode
streams it through the processors; prefill walks a sequence in chunks, heads and sequences side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats, smoothmax
from cost_models.fitting import Coefficient, Fit, Mask, fit_model

STATE_BYTES = 4
"""Recurrent states are kept in FP32."""
BF16_BYTES = 2
WAVE_SHARPNESS = 8.0
"""Exponent that joins one wave of (sequence, head) pairs with many [-]."""


@dataclass(frozen=True, slots=True)
class StreamCoefficients:
    """A kernel that streams its inputs and outputs once: state updates, convolutions."""

    start_s: float
    memory_efficiency: float
    sharpness: float
    """Exponent joining start and streaming; 1 adds them [-]."""


@dataclass(frozen=True, slots=True)
class ScanCoefficients:
    """The chunked scan of prefill, fitted per GPU architecture and kernel."""

    start_s: float
    pair_s: float
    """Least time of one (sequence, head) pair, however short [s]."""
    token_s: float
    """Time that a pair takes per token, chunk after chunk [s]."""
    work_s: float
    """Time of a processor per token and head for what runs side by side in all chunks [s]."""
    resident_share: float
    """Pairs at work at once per processor [-]."""
    sharpness: float
    """Exponent joining pair_s and token_s [-]."""


def stream_time_s(moved_bytes: ArrayLike, *, hbm_bytes_per_s: float, coefficients: StreamCoefficients) -> Floats:
    r"""Launch and streaming: :math:`(t_0^p + (B / e_m W)^p)^{1/p}`; zero where nothing moves [s]."""
    moved, c = as_floats(moved_bytes), coefficients
    time_s = smoothmax(c.start_s, moved / hbm_bytes_per_s / c.memory_efficiency, c.sharpness)
    return np.where(moved > 0, time_s, 0.0)


def update_bytes(sequences: ArrayLike, query_tokens: ArrayLike, state_elements: ArrayLike) -> Floats:
    """State traffic of a decode step: read once, written after every query token, so that drafts can be undone [B].

    state_elements : of one sequence on the rank. Verifying 2, 4 and 8 tokens takes 2.3, 2.5 and 4.1 times one token's time
    in the public tables; read once and written per token gives 1.5, 2.5 and 4.5.
    """
    return as_floats(as_floats(sequences) * (1 + as_floats(query_tokens)) * as_floats(state_elements) * STATE_BYTES)


def convolution_bytes(sequences: ArrayLike, new_tokens: ArrayLike, channels: ArrayLike, state_taps: ArrayLike) -> Floats:
    """Inputs and outputs of a short convolution in BF16, and the last inputs of each sequence read and written [B].

    new_tokens : of each sequence; channels : of the rank; state_taps : inputs kept per channel, 0 for whole prompts.
    """
    kept = as_floats(sequences) * (as_floats(new_tokens) + as_floats(state_taps))
    return as_floats(kept * as_floats(channels) * BF16_BYTES * 2)


def scan_time_s(
    sequences: ArrayLike, new_tokens: ArrayLike, heads: ArrayLike, *, processors: float, coefficients: ScanCoefficients
) -> Floats:
    r"""The chunked scan over new tokens.

    .. math::
        t = t_0 + \max_8(1, b h / (f\,SM)) \, (t_p^p + (s t_s)^p)^{1/p} + t_w b h s / SM

    sequences b, new_tokens s of each, heads h of the rank : broadcastable. Zero without sequences or tokens [s].
    """
    b, s, h = (as_floats(x) for x in np.broadcast_arrays(sequences, new_tokens, heads))
    c = coefficients
    waves = smoothmax(1.0, b * h / (c.resident_share * processors), WAVE_SHARPNESS)
    chain_s = waves * smoothmax(c.pair_s, s * c.token_s, c.sharpness)
    time_s = c.start_s + chain_s + c.work_s * b * h * s / processors
    return np.where((b > 0) & (s > 0), time_s, 0.0)


def scan_bound_s(
    tokens: ArrayLike,
    heads: ArrayLike,
    *,
    state_elements: int,
    io_elements: float,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
) -> Floats:
    """Roofline of a scan: per token and head the state is decayed and read (4 FLOP an element), inputs and outputs move once.

    state_elements : of one head; io_elements : per token and head in BF16.
    """
    work = as_floats(tokens) * as_floats(heads)
    return np.maximum(work * 4 * state_elements / peak_flops_per_s, work * io_elements * BF16_BYTES / hbm_bytes_per_s)


STREAM = {
    "start_s": Coefficient(3e-6, 5e-7, 3e-5),
    "memory_efficiency": Coefficient(0.7, 0.05, 0.98, prior=0.5),
    "sharpness": Coefficient(1.5, 0.8, 8.0, prior=0.5),
}
SCAN = {
    "start_s": Coefficient(1e-5, 1e-6, 2e-4),
    "pair_s": Coefficient(1.2e-5, 1e-7, 2e-4),
    "token_s": Coefficient(5e-8, 1e-9, 2e-6),
    "work_s": Coefficient(1e-8, 1e-10, 2e-6, prior=1.5),
    "resident_share": Coefficient(0.9, 0.05, 8.0),
    "sharpness": Coefficient(1.5, 0.8, 8.0, prior=0.5),
}


def fit_stream(moved_bytes: ArrayLike, shapes: ArrayLike, latency_s: ArrayLike, *, hbm_bytes_per_s: float) -> Fit:
    """Fit StreamCoefficients; rows of one shape value are held out together."""

    def model(moved: Floats, _shape: Floats, coefficients: StreamCoefficients) -> Floats:
        return stream_time_s(moved, hbm_bytes_per_s=hbm_bytes_per_s, coefficients=coefficients)

    return fit_model(model, StreamCoefficients, (moved_bytes, shapes), latency_s, STREAM, shape=(0, 1))


def fit_scan(
    sequences: ArrayLike,
    new_tokens: ArrayLike,
    heads: ArrayLike,
    latency_s: ArrayLike,
    *,
    processors: float,
    held_out: Mask | None = None,
) -> Fit:
    """Fit ScanCoefficients; whole (heads, sequences, new tokens) shapes are held out."""
    model: Callable[..., Floats] = partial(scan_time_s, processors=processors)
    columns = (sequences, new_tokens, heads)
    return fit_model(model, ScanCoefficients, columns, latency_s, SCAN, shape=(2, 0, 1), held_out=held_out)
