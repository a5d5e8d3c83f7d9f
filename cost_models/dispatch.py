"""Dispatch and combine of expert parallelism, per backend: their physics differ.

- all-gather / reduce-scatter moves every token to every rank, whoever needs it;
- DeepEP low-latency sends one copy per (token, expert);
- DeepEP normal and one-sided NVLink send one copy per (token, destination rank), DeepEP normal
  crossing to each destination node once over RDMA.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_models.arrays import Floats, as_floats, smoothmax
from cost_models.fitting import Coefficient, Fit, Mask, fit_coefficients, held_out_mask
from cost_models.links import Links

BACKENDS = (
    "none",
    "allgather_reducescatter",
    "deepep_low_latency",
    "deepep_normal",
    "nvlink_one_sided",
)
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
    start_per_log2_domains_s: float = 0.0
    start_per_expert_s: float = 0.0
    sharpness: float = 1.0
    """Exponent joining start and transfer; 1 adds them."""
    link_sharpness: float = 2.0
    """Exponent joining the scale-up and the scale-out part: parallel links, imperfectly overlapped [-]."""
    copy_bytes_per_s: float = 0.0
    """Bandwidth of the local copy of the gathered buffer; 0 means none [B/s]."""
    mid_factor: float = 0.0
    mid_exponent: float = 1.0
    """Medium messages: + factor V^q (10 us)^(1-q), V in seconds at line rate (fits NCCL tables)."""


def payload_bytes(hidden: int, element_bytes: float, top_k: int) -> float:
    """One token on the wire: hidden states in the payload dtype and its routing metadata [B]."""
    return hidden * element_bytes + top_k * ROUTING_BYTES_PER_CHOICE


def expected_destinations(choices: int, destinations: ArrayLike, reachable: ArrayLike = 1.0) -> Floats:
    """Distinct destinations of `choices` uniform picks: r (1 - (1 - 1/r)^choices), r the reachable ones.

    reachable : share of the destinations that group-limited routing leaves (topk_group / n_group).
    """
    r = np.maximum(as_floats(destinations) * as_floats(reachable), 1.0)
    missed = np.log1p(-1 / np.maximum(r, 1 + 1e-9))
    return np.where(r <= 1, 1.0, r * -np.expm1(choices * missed))


def reachable_share(ranks: ArrayLike, groups: int, top_k_groups: int, contiguous: ArrayLike) -> Floats:
    """Share of ranks one token can reach under group-limited routing; 1 once experts are shuffled."""
    ranks = as_floats(ranks)
    limited = np.asarray(contiguous) & (ranks >= groups) if groups > 1 else np.zeros(ranks.shape, dtype=bool)
    return np.where(limited, top_k_groups / groups, 1.0)


def expected_domains(choices: int, domains: ArrayLike, groups: int, top_k_groups: int, grouped: ArrayLike) -> Floats:
    """Distinct scale-up domains that one token's experts are on.

    grouped : expert groups stay whole inside domains (original order, or hierarchical EPLB). Then the token's
    top_k_groups of G groups, G/D of them per domain, leave a domain out with C(G - G/D, g) / C(G, g), and each chosen
    group is hit; 3.14 of 4 nodes for DeepSeek-V3. Otherwise the choices are spread at will.
    """
    d = as_floats(domains)
    spread = expected_destinations(choices, d)
    hit = spread
    for count in np.unique(d[(d > 1) & np.asarray(grouped, dtype=np.bool_)]) if groups > 1 else ():
        if groups % count == 0:
            missed = math.comb(groups - groups // int(count), top_k_groups) / math.comb(groups, top_k_groups)
            hit = np.where((d == count) & np.asarray(grouped, dtype=np.bool_), np.minimum(d * (1 - missed), spread), hit)
    return as_floats(hit)


@dataclass(frozen=True, slots=True)
class Volumes:
    """Bytes that one rank moves over each link in one direction, and its gathered buffer."""

    scale_up_bytes: Floats
    scale_out_bytes: Floats
    buffer_bytes: Floats


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
    contiguous = np.broadcast_to(np.asarray(contiguous, dtype=np.bool_), tokens.shape)
    domains = links.domains(ranks)
    local = ranks / domains
    remote_share = 1 - 1 / domains
    own = tokens * token_bytes
    if backend == "none":
        zero = np.zeros(tokens.shape)
        return Volumes(zero, zero, zero)
    if backend == "allgather_reducescatter":
        # Ring across domains, all-gather inside: the NIC carries what other domains hold of this rank's share.
        return Volumes((ranks - 1) * own, (domains - 1) * own, ranks * own)
    if backend == "deepep_low_latency":
        copies = top_k * own
        return Volumes(copies * (local - 1) / ranks, copies * remote_share, np.zeros(tokens.shape))
    grouped = contiguous | (np.mod(groups, domains) == 0)
    hit_domains = expected_domains(top_k, domains, groups, top_k_groups, grouped)
    share = np.where(contiguous, reachable_share(ranks, groups, top_k_groups, contiguous), hit_domains / domains)
    per_rank = expected_destinations(top_k, ranks, share) * own * (ranks - 1) / ranks
    if backend == "nvlink_one_sided":
        return Volumes(per_rank * (local - 1) / np.maximum(ranks - 1, 1), per_rank * remote_share, np.zeros(tokens.shape))
    if backend == "deepep_normal":
        per_domain = hit_domains * own * remote_share
        return Volumes(per_rank, np.where(domains > 1, per_domain, 0.0), np.zeros(tokens.shape))
    raise ValueError(f"no volume model for backend {backend}")


def transfer_time_s(
    moved: Volumes,
    ranks: ArrayLike,
    experts: ArrayLike,
    imbalance: ArrayLike,
    *,
    links: Links,
    coefficients: DispatchCoefficients,
) -> Floats:
    r"""Time of one dispatch or combine.

    .. math::
        t = (t_0^p + L^p)^{1/p} + V_{buf}/W_{copy} + a V^q, \quad
        L = ((V_{up}/(e_u W_u))^l + (V_{out}/(e_o W_o))^l)^{1/l}

    l = 2 reproduces DeepEP's published EP16-EP128 table within 9 %; adding the two parts misses its
    EP16 combine by 28 % (docs/models/dispatch.md).
    imbalance : busiest rank / mean, multiplies the bytes. Returns seconds; zero when nothing moves.
    """
    ranks = as_floats(ranks)
    c = coefficients
    domains = links.domains(ranks)
    wire_s = moved.scale_up_bytes / links.scale_up_bytes_per_s
    up_s = wire_s / c.scale_up_efficiency
    out_s = moved.scale_out_bytes / links.scale_out_bytes_per_s / c.scale_out_efficiency
    start = (
        c.start_s
        + c.start_per_log2_ranks_s * np.log2(np.maximum(ranks, 1))
        + c.start_per_log2_domains_s * np.log2(domains)
        + c.start_per_expert_s * as_floats(experts)
    )
    transfer = smoothmax(up_s, out_s, c.link_sharpness) * as_floats(imbalance)
    copy_s = moved.buffer_bytes / c.copy_bytes_per_s if c.copy_bytes_per_s else 0.0
    mid_s = c.mid_factor * wire_s**c.mid_exponent * POWER_LAW_UNIT_S ** (1 - c.mid_exponent) if c.mid_factor else 0.0
    moving = (moved.scale_up_bytes + moved.scale_out_bytes) > 0
    return np.where(moving, smoothmax(start, transfer, c.sharpness) + copy_s + mid_s, 0.0)


def transfer_bound_s(moved: Volumes, links: Links) -> Floats:
    """Lower bound: the slower link at line rate, both at once [s]."""
    up_s = moved.scale_up_bytes / links.scale_up_bytes_per_s
    return np.maximum(up_s, moved.scale_out_bytes / links.scale_out_bytes_per_s)


FIT_COEFFICIENTS = {
    "start_s": Coefficient(1.2e-5, 5e-7, 1e-4),
    "scale_up_efficiency": Coefficient(0.6, 0.05, 0.98, prior=0.5),
}
SHARPNESS = {"sharpness": Coefficient(1.0, 0.8, 4.0, prior=0.4)}
PER_EXPERT = {"start_per_expert_s": Coefficient(1e-8, 1e-10, 1e-7)}
PER_LOG2_RANKS = {"start_per_log2_ranks_s": Coefficient(3e-6, 1e-7, 3e-5)}
GATHERED = {
    "mid_factor": Coefficient(1.2, 0.01, 6.0),
    "mid_exponent": Coefficient(0.5, 0.05, 0.9, prior=0.5),
    "copy_bytes_per_s": Coefficient(2.5e12, 1e11, 2e13),
}
SCALE_OUT = {
    "scale_out_efficiency": Coefficient(0.85, 0.3, 0.99, prior=0.3),
    "start_per_log2_domains_s": Coefficient(5e-6, 1e-7, 4e-5),
    "link_sharpness": Coefficient(2.0, 1.0, 6.0, prior=0.5),
}
BACKEND_COEFFICIENTS: dict[str, dict[str, Coefficient]] = {
    "allgather_reducescatter": {**FIT_COEFFICIENTS, **PER_LOG2_RANKS, **GATHERED},
    "deepep_low_latency": {**FIT_COEFFICIENTS, **PER_EXPERT, **SHARPNESS},
    "deepep_normal": {**FIT_COEFFICIENTS, **SHARPNESS},
    "nvlink_one_sided": {**FIT_COEFFICIENTS, **PER_LOG2_RANKS, **SHARPNESS},
}
"""What single-domain timings determine; timings across domains determine SCALE_OUT too."""


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
    coefficients = BACKEND_COEFFICIENTS[backend] | (SCALE_OUT if np.any(moved.scale_out_bytes > 0) else {})
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
