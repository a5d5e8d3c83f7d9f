"""Dispatch and combine of expert parallelism: the time that a backend's bytes take. The backends are in `all_to_all`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_models.all_to_all.base import ExchangedTokens, Volumes
from cost_models.all_to_all.registry import ALL_TO_ALL, BY_NAME
from cost_models.arrays import Floats, as_floats, smoothmax
from cost_models.fitting import Coefficient, Fit, Mask, fit_coefficients, held_out_mask
from cost_models.links import Links

BACKENDS = tuple(backend.name for backend in ALL_TO_ALL)
"""Order gives the integer code used in candidate rows. `none`: no expert parallelism across DP ranks."""

BackendName = Literal["none", "allgather_reducescatter", "deepep_low_latency", "deepep_normal", "nvlink_one_sided"]

ROUTING_BYTES_PER_CHOICE = 8
"""Expert id and weight, four bytes each, sent with every dispatched token."""

POWER_LAW_UNIT_S = 1e-5


@dataclass(frozen=True, slots=True)
class DispatchCoefficients:
    """One direction (dispatch or combine) of one backend."""

    start_s: float
    scale_up_efficiency: float
    scale_out_efficiency: float = 0.8
    start_per_log2_ranks_s: float = 0.0
    start_per_rank_s: float = 0.0
    """Each further step of a ring: a rank more is a step more [s]."""
    start_per_log2_domains_s: float = 0.0
    start_per_expert_s: float = 0.0
    sharpness: float = 1.0
    """Exponent joining start and transfer; 1 adds them."""
    link_sharpness: float = 2.0
    """Exponent joining the scale-up and the scale-out part: parallel links, imperfectly overlapped [-]."""
    copy_bytes_per_s: float = 0.0
    """Bandwidth of the local copy of the gathered buffer; 0 means none [B/s]."""
    processors: float = 0.0
    """SMs that `scale_up_efficiency` was timed with, as many as an engine takes by itself; 0: they do not bound it [-]."""
    link_efficiency: float = 1.0
    """Share of line rate that any number of SMs reaches [-]."""
    mid_factor: float = 0.0
    mid_exponent: float = 1.0
    """Medium messages: + factor V^q (10 us)^(1-q), V in seconds at line rate (fits NCCL tables)."""


def payload_bytes(hidden: int, element_bytes: float, top_k: int) -> float:
    """One token on the wire: hidden states in the payload dtype and its routing metadata [B]."""
    return hidden * element_bytes + top_k * ROUTING_BYTES_PER_CHOICE


def volumes(
    backend: str,
    tokens: ArrayLike,
    ranks: ArrayLike,
    *,
    token_bytes: float,
    top_k: int,
    groups: int,
    top_k_groups: int,
    contiguous: ArrayLike,
    links: Links,
) -> Volumes:
    """Bytes on the busiest direction of one rank for one dispatch (or combine).

    tokens : per rank; ranks : of the expert-parallel group; contiguous : experts lie in their original order. Rebalanced
    experts keep their group inside a domain where the groups divide evenly over the domains (hierarchical EPLB).
    Balanced load: imbalance is applied by the caller, because it acts on point-to-point backends and not on
    all-gather volume.
    """
    tokens, ranks = (as_floats(x) for x in np.broadcast_arrays(tokens, ranks))
    original = np.broadcast_to(np.asarray(contiguous, dtype=np.bool_), tokens.shape)
    traffic = ExchangedTokens(tokens * token_bytes, ranks, links.domains(ranks), top_k, groups, top_k_groups, original)
    return BY_NAME[backend].volumes(traffic)


def transfer_time_s(
    moved: Volumes,
    ranks: ArrayLike,
    experts: ArrayLike,
    imbalance: ArrayLike,
    *,
    links: Links,
    coefficients: DispatchCoefficients,
    processors: ArrayLike = 0,
) -> Floats:
    r"""Time of one dispatch or combine.

    .. math::
        t = (t_0^p + L^p)^{1/p} + V_{buf}/W_{copy} + a V^q, \quad
        L = ((V_{up}/(e_u W_u))^l + (V_{out}/(e_o W_o))^l)^{1/l}

    l = 2 reproduces DeepEP's published EP16-EP128 table within 9 %; adding the two parts misses its
    EP16 combine by 28 % (docs/models/dispatch.md).
    imbalance : busiest rank / mean, multiplies the bytes. processors : SMs that the engine gives it, 0 as many as it takes by
    itself. Returns seconds; zero when nothing moves.
    """
    ranks = as_floats(ranks)
    c = coefficients
    domains = links.domains(ranks)
    wire_s = moved.scale_up_bytes / links.scale_up_bytes_per_s
    up_s = wire_s / scale_up_efficiency(c, processors)
    out_s = moved.scale_out_bytes / links.scale_out_bytes_per_s / c.scale_out_efficiency
    start = (
        c.start_s
        + c.start_per_log2_ranks_s * np.log2(np.maximum(ranks, 1))
        + c.start_per_rank_s * np.maximum(ranks - 1, 0)
        + c.start_per_log2_domains_s * np.log2(domains)
        + c.start_per_expert_s * as_floats(experts)
    )
    transfer = smoothmax(up_s, out_s, c.link_sharpness) * as_floats(imbalance)
    copy_s = moved.buffer_bytes / c.copy_bytes_per_s if c.copy_bytes_per_s else 0.0
    mid_s = c.mid_factor * wire_s**c.mid_exponent * POWER_LAW_UNIT_S ** (1 - c.mid_exponent) if c.mid_factor else 0.0
    moving = (moved.scale_up_bytes + moved.scale_out_bytes) > 0
    return np.where(moving, smoothmax(start, transfer, c.sharpness) + copy_s + mid_s, 0.0)


def scale_up_efficiency(coefficients: DispatchCoefficients, processors: ArrayLike) -> Floats:
    """Share of line rate that a number of SMs reaches, 0 as many as the engine takes by itself.

    Copies of an SM take their time: in the public table of DeepEP normal on GB200, B200 and GB300 bytes per second grow in
    proportion to its SMs (4 to 24), until the link is full, on H200 at 20.
    """
    c, given = coefficients, as_floats(processors)
    if not c.processors:
        return np.full(given.shape, c.scale_up_efficiency)
    share = np.where(given > 0, given / c.processors, 1.0)
    return np.minimum(c.scale_up_efficiency * share, max(c.link_efficiency, c.scale_up_efficiency))


def transfer_bound_s(moved: Volumes, links: Links) -> Floats:
    """Lower bound: the slower link at line rate, both at once [s]."""
    up_s = moved.scale_up_bytes / links.scale_up_bytes_per_s
    return np.maximum(up_s, moved.scale_out_bytes / links.scale_out_bytes_per_s)


SCALE_OUT = {
    "scale_out_efficiency": Coefficient(0.85, 0.3, 0.99, prior=0.3),
    "start_per_log2_domains_s": Coefficient(5e-6, 1e-7, 4e-5),
    "link_sharpness": Coefficient(2.0, 1.0, 6.0, prior=0.5),
}
"""What timings across domains determine besides a backend's own."""


def fit_transfer(
    backend: str,
    tokens: ArrayLike,
    ranks: ArrayLike,
    experts: ArrayLike,
    top_k: ArrayLike,
    token_bytes: ArrayLike,
    latency_s: ArrayLike,
    *,
    links: Links,
    known: Mapping[str, float],
    held_out: Mask | None = None,
) -> Fit:
    """Fit DispatchCoefficients of one direction of a backend under balanced, ungrouped routing.

    tokens : per rank; token_bytes : of one token on the wire (payload_bytes). known : coefficients that keep their
    value where the timings do not determine them. Whole (ranks, tokens, experts, bytes) shapes are held out.
    """
    columns = np.broadcast_arrays(*(as_floats(x) for x in (tokens, ranks, experts, top_k, token_bytes)))
    count, group, slots, choices, size = columns
    moved = _measured_volumes(backend, count, group, choices, size, links)
    coefficients = {**BY_NAME[backend].fitted} | (SCALE_OUT if np.any(moved.scale_out_bytes > 0) else {})
    kept = {name: value for name, value in known.items() if name not in coefficients}

    def predict_s(values: Mapping[str, float], rows: NDArray[np.int64]) -> Floats:
        part = Volumes(moved.scale_up_bytes[rows], moved.scale_out_bytes[rows], moved.buffer_bytes[rows])
        c = DispatchCoefficients(**{**kept, **values})
        return transfer_time_s(part, group[rows], slots[rows], 1.0, links=links, coefficients=c)

    shapes = np.stack([group, count, slots, size], axis=1).tolist()
    judged = held_out_mask(shapes) if held_out is None else held_out
    fit = fit_coefficients(predict_s, latency_s, coefficients, judged)
    return dataclasses.replace(fit, values={**kept, **fit.values})


def _measured_volumes(backend: str, tokens: Floats, ranks: Floats, choices: Floats, size: Floats, links: Links) -> Volumes:
    parts = [np.zeros(len(tokens)) for _ in range(3)]
    for top_k in np.unique(choices):
        mask = choices == top_k
        routing = {"top_k": int(top_k), "groups": 1, "top_k_groups": 1, "contiguous": False}
        moved = volumes(backend, tokens[mask] * size[mask], ranks[mask], token_bytes=1.0, links=links, **routing)
        for part, value in zip(parts, (moved.scale_up_bytes, moved.scale_out_bytes, moved.buffer_bytes), strict=True):
            part[mask] = value
    return Volumes(*parts)
