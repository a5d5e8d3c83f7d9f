"""Tensor-parallel collectives: one-shot and two-shot all-reduce, and the pipeline hop."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats
from cost_models.fitting import Coefficient, Fit, Mask, fit_model
from cost_models.links import Links


@dataclass(frozen=True, slots=True)
class AllReduceCoefficients:
    """Custom all-reduce inside a scale-up domain; a ring over the NICs beyond it."""

    start_s: float
    start_per_log2_ranks_s: float
    one_shot_efficiency: float
    two_shot_efficiency: float
    two_shot_start_s: float
    start_per_log2_nodes_s: float = 0.0
    """Extra start when the group spans hosts of one domain and the engine's own kernel does not [s]."""
    scale_out_start_s: float = 30e-6
    scale_out_efficiency: float = 0.8


def all_reduce_time_s(message_bytes: ArrayLike, ranks: ArrayLike, *, links: Links, coefficients: AllReduceCoefficients) -> Floats:
    """All-reduce of a message over a tensor-parallel group [s].

    One-shot: every rank reads (n-1) messages; two-shot: reduce-scatter and all-gather move
    2 (n-1)/n messages but start twice. The faster of the two. Groups that span scale-up domains add
    a ring over the NICs. Zero for one rank or an empty message.
    """
    size, n = (as_floats(x) for x in np.broadcast_arrays(message_bytes, ranks))
    c = coefficients
    domains = links.domains(n)
    local = n / domains
    base = c.start_s + c.start_per_log2_ranks_s * np.log2(np.maximum(local, 1))
    base = base + c.start_per_log2_nodes_s * np.log2(np.maximum(links.nodes_in_domain(local), 1))
    one_shot = (local - 1) * size / links.scale_up_bytes_per_s / c.one_shot_efficiency
    two_shot_bytes = 2 * (local - 1) / local * size
    two_shot = c.two_shot_start_s + two_shot_bytes / links.scale_up_bytes_per_s / c.two_shot_efficiency
    inside = np.where(local > 1, base + np.minimum(one_shot, two_shot), 0.0)
    ring_bytes = 2 * (domains - 1) / domains * size / local
    outside = c.scale_out_start_s * np.log2(2 * domains) + ring_bytes / links.scale_out_bytes_per_s / c.scale_out_efficiency
    return np.where((n > 1) & (size > 0), inside + np.where(domains > 1, outside, 0.0), 0.0)


def all_reduce_bound_s(message_bytes: ArrayLike, ranks: ArrayLike, links: Links) -> Floats:
    """Lower bound: 2 (n-1)/n of the message at line rate of the slowest link crossed [s]."""
    size, n = (as_floats(x) for x in np.broadcast_arrays(message_bytes, ranks))
    domains = links.domains(n)
    inside = 2 * (n / domains - 1) / (n / domains) * size / links.scale_up_bytes_per_s
    outside = 2 * (domains - 1) / domains * size / (n / domains) / links.scale_out_bytes_per_s
    return np.where(n > 1, inside + outside, 0.0)


def pipeline_hop_time_s(
    message_bytes: ArrayLike, instance_ranks: ArrayLike, stages: ArrayLike, *, links: Links, start_s: float
) -> Floats:
    """Sending the hidden states to the next pipeline stage, pp-1 hops plus the return of the sampled token [s]."""
    size, ranks, pp = (as_floats(x) for x in np.broadcast_arrays(message_bytes, instance_ranks, stages))
    bandwidth = np.where(ranks <= links.domain_gpus, links.scale_up_bytes_per_s, links.scale_out_bytes_per_s)
    return np.where(pp > 1, (pp - 1) * (start_s + size / bandwidth) + start_s, 0.0)


FIT_COEFFICIENTS = {
    "start_s": Coefficient(3e-6, 5e-7, 5e-5),
    "start_per_log2_ranks_s": Coefficient(5e-7, 1e-8, 1e-5),
    "one_shot_efficiency": Coefficient(0.6, 0.05, 0.98, prior=0.5),
    "two_shot_efficiency": Coefficient(0.7, 0.05, 1.3, prior=0.5),
    "two_shot_start_s": Coefficient(2e-5, 1e-7, 1e-4),
}
"""two_shot_efficiency may pass 1: switches that reduce in flight (NVLS) move each byte once, not twice."""
ACROSS_NODES = {"start_per_log2_nodes_s": Coefficient(5e-6, 1e-8, 1e-4)}


def fit_all_reduce(
    message_bytes: ArrayLike, ranks: ArrayLike, latency_s: ArrayLike, *, links: Links, held_out: Mask | None = None
) -> Fit:
    """Fit AllReduceCoefficients to timings inside one scale-up domain; whole (ranks, size) shapes are held out."""
    model = partial(all_reduce_time_s, links=links)
    across = bool(np.any(links.nodes_in_domain(ranks) > 1))
    coefficients = FIT_COEFFICIENTS | (ACROSS_NODES if across else {})
    return fit_model(
        model, AllReduceCoefficients, (message_bytes, ranks), latency_s, coefficients, shape=(1, 0), held_out=held_out
    )
