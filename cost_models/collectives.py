"""Tensor-parallel collectives: one-shot and two-shot all-reduce, and the pipeline hop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats
from cost_models.fitting import Coefficient, Fit, Mask, fit_model
from cost_models.links import Links


@dataclass(frozen=True, slots=True)
class AllReduceCoefficients:
    """An engine's own all-reduce, NCCL's where the group is too large for it, a ring over the NICs beyond the domain."""

    start_s: float
    start_per_log2_ranks_s: float
    one_shot_efficiency: float
    two_shot_efficiency: float
    two_shot_start_s: float
    start_per_log2_nodes_s: float = 0.0
    """Extra start of the engine's own kernel where the group spans hosts of one domain [s]."""
    own_ranks: float = 0.0
    """Largest group that the engine's own kernel takes; larger ones go to NCCL's ring. 0: any group [-]."""
    ring_step_s: float = 0.0
    """One of the 2 (n - 1) steps of that ring [s]."""
    switch_start_s: float = 0.0
    """Start of a reduction in the switch (NVLS), whatever the group, which NCCL takes where the ring starts later [s]."""
    ring_efficiency: float = 1.0
    scale_out_start_s: float = 30e-6
    scale_out_efficiency: float = 0.8


def all_reduce_time_s(message_bytes: ArrayLike, ranks: ArrayLike, *, links: Links, coefficients: AllReduceCoefficients) -> Floats:
    r"""All-reduce of a message over a tensor-parallel group [s].

    One-shot: every rank reads (n-1) messages; two-shot: reduce-scatter and all-gather move
    2 (n-1)/n messages but start twice. The faster of the two. Groups larger than the engine's own kernel takes:

    .. math:: t = t_0 + \min(2 (n - 1) t_{step}, t_{switch}) + \frac{2 (n - 1)}{n} \frac{M}{e W}

    Groups that span scale-up domains add a ring over the NICs, which nothing public measured. Zero for one rank or an
    empty message.
    """
    size, n = (as_floats(x) for x in np.broadcast_arrays(message_bytes, ranks))
    c = coefficients
    domains = links.domains(n)
    local = n / domains
    own = _own_kernel_s(size, local, links, c)
    inside = np.where(local <= c.own_ranks, own, _library_s(size, local, links, c)) if c.own_ranks else own
    inside = np.where(local > 1, inside, 0.0)
    ring_bytes = 2 * (domains - 1) / domains * size / local
    outside = c.scale_out_start_s * np.log2(2 * domains) + ring_bytes / links.scale_out_bytes_per_s / c.scale_out_efficiency
    return np.where((n > 1) & (size > 0), inside + np.where(domains > 1, outside, 0.0), 0.0)


def _own_kernel_s(size: Floats, n: Floats, links: Links, c: AllReduceCoefficients) -> Floats:
    """One-shot or two-shot, whichever is faster."""
    start_s = c.start_s + c.start_per_log2_ranks_s * np.log2(np.maximum(n, 1))
    start_s = start_s + c.start_per_log2_nodes_s * np.log2(np.maximum(links.nodes_in_domain(n), 1))
    one_shot = (n - 1) * size / links.scale_up_bytes_per_s / c.one_shot_efficiency
    two_shot = c.two_shot_start_s + _two_shot_bytes(size, n) / links.scale_up_bytes_per_s / c.two_shot_efficiency
    return as_floats(start_s + np.minimum(one_shot, two_shot))


def _library_s(size: Floats, n: Floats, links: Links, c: AllReduceCoefficients) -> Floats:
    """NCCL's ring, or its reduction in the switch."""
    start_s = c.start_s + np.minimum(2 * (n - 1) * c.ring_step_s, c.switch_start_s or np.inf)
    return as_floats(start_s + _two_shot_bytes(size, n) / links.scale_up_bytes_per_s / c.ring_efficiency)


def _two_shot_bytes(size: Floats, n: Floats) -> Floats:
    return 2 * (n - 1) / n * size


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
LIBRARY = {
    "ring_step_s": Coefficient(1.4e-6, 1e-8, 1e-5, prior=0.5),
    "switch_start_s": Coefficient(4.5e-5, 1e-6, 1e-3, prior=0.5),
    "ring_efficiency": Coefficient(0.6, 0.05, 1.3, prior=0.5),
}
OWN_RANKS = (4.0, 8.0)
"""Largest groups that engines' own kernels may take: a Grace node, or eight ranks wherever they are (vLLM)."""


def fit_all_reduce(
    message_bytes: ArrayLike, ranks: ArrayLike, latency_s: ArrayLike, *, links: Links, held_out: Mask | None = None
) -> Fit:
    """Fit AllReduceCoefficients to timings inside one scale-up domain; whole (ranks, size) shapes are held out.

    Where groups span hosts, the largest group that the engine's own kernel takes is the one that fits best.
    """
    model = partial(all_reduce_time_s, links=links)
    fits = [_fit_all_reduce(model, FIT_COEFFICIENTS, 0.0, message_bytes, ranks, latency_s, held_out)]
    if np.any(links.nodes_in_domain(ranks) > 1):
        across = {**FIT_COEFFICIENTS, **ACROSS_NODES}
        tried = [(across, 0.0), *(({**across, **LIBRARY}, own) for own in OWN_RANKS if own < np.max(as_floats(ranks)))]
        fits = [_fit_all_reduce(model, *each, message_bytes, ranks, latency_s, held_out) for each in tried]
    return min(fits, key=lambda fit: fit.cost)


def _fit_all_reduce(
    model: Callable[..., Floats],
    coefficients: Mapping[str, Coefficient],
    own_ranks: float,
    message_bytes: ArrayLike,
    ranks: ArrayLike,
    latency_s: ArrayLike,
    held_out: Mask | None,
) -> Fit:
    fixed = {"own_ranks": own_ranks} if own_ranks else {}
    columns = (message_bytes, ranks)
    return fit_model(model, AllReduceCoefficients, columns, latency_s, coefficients, shape=(1, 0), held_out=held_out, fixed=fixed)
