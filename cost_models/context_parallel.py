"""Decode context parallelism: ranks of a tensor-parallel group share the tokens of every sequence, and exchange what that costs.

Token i of a sequence lies on rank i mod n of a group of n. Before the core every rank gathers the queries of the group's heads;
after it the partial outputs are weighted by their log-sum-exp and each rank gets those of its own heads (arXiv 2507.07120, 3;
vllm/v1/attention/ops/dcp.py of 0.33.0). Projections, the feed-forward part and all weights stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats
from cost_models.dispatch import DispatchCoefficients, transfer_bound_s, transfer_time_s, volumes
from cost_models.elementwise import ElementwiseCoefficients

if TYPE_CHECKING:
    from cost_models.attention.base import AttentionKind, SharedContext
    from cost_models.machine import Machine

GATHER, COMBINE = "context_gather", "context_combine"
"""Operators: queries (or a prefix) before the core, outputs after it."""
CALIBRATED = "allgather_reducescatter"
"""All-to-all whose two directions are NCCL's all-gather and reduce-scatter."""
OUTPUT_BYTES = 2
LSE_BYTES = 4
PACKS_LSE = ("sglang",)
"""Engines that send the log-sum-exp with the outputs in one all-to-all; others gather it in a call of its own before."""
SMALL_KERNELS = {True: 2, False: 3}
"""Of a layer beside the collectives, by whether the log-sum-exp is packed: packing and the weighted sum of what arrives (sglang
srt/layers/dcp/comm.py, 0.5.23); weighing, and heads in front before the reduce-scatter and back after it (vllm
distributed/device_communicators/cuda_communicator.py:496, 0.33.0)."""
Pair = tuple[Floats, Floats]
"""Time and roofline bound in one layer [s]."""


def decode_exchange(machine: Machine, shared: SharedContext, tokens: Floats, heads: Floats, ranks: Floats) -> dict[str, Pair]:
    r"""What n ranks exchange in one layer of a decode step.

    .. math::
        B_{gather} = (n-1)\,m\,(h\,d_q e_q + k), \quad B_{combine} = (n-1)\,m\,h\,(2 d_o + 4 n)

    tokens m : query tokens of all sequences; heads h : query heads of one rank; d_q, d_o : width of a head's query and output;
    e_q : bytes of a query element; k : candidates of an index [B]. Every rank receives B at least; with the log-sum-exp packed
    beside the outputs 4 n becomes 4. Zero for one rank.
    """
    query_bytes = machine.dtype_info("attention_compute").activation_bytes
    gathered = all_gather(machine, tokens * heads * shared.query * query_bytes, ranks)
    if shared.chosen_bytes:
        gathered = _added(gathered, all_gather(machine, tokens * shared.chosen_bytes, ranks))
    return {GATHER: gathered, COMBINE: _combine(machine, shared, tokens, heads, ranks)}


def prompt_exchange(
    machine: Machine, shared: SharedContext, sequences: Floats, new: Floats, prefix: Floats, heads: Floats, ranks: Floats
) -> dict[str, Pair]:
    """What ranks exchange in one layer of a prefill step.

    Latents of a cached prefix are gathered and expanded on every rank, as without sharing. Other kinds exchange queries and
    outputs of the new tokens, dense ones only where there is a prefix: new tokens attend to each other on every rank.
    new, prefix : tokens of each of the sequences.
    """
    if shared.gathered_prefix:
        held = sequences * prefix / ranks * shared.gathered_prefix * OUTPUT_BYTES
        return {GATHER: all_gather(machine, held, ranks)}
    exchanged = sequences * new * np.where((prefix > 0) | shared.exchanges_new, 1.0, 0.0)
    return decode_exchange(machine, shared, exchanged, heads, ranks)


def _combine(machine: Machine, shared: SharedContext, tokens: Floats, heads: Floats, ranks: Floats) -> Pair:
    """Partial outputs weighted, and summed where their heads belong."""
    packed = _packed(machine)
    own = tokens * heads * (shared.output * OUTPUT_BYTES + (LSE_BYTES if packed else 0))
    found = _collective(machine, "combine", own, ranks)
    if not packed:
        found = _added(found, all_gather(machine, tokens * heads * ranks * LSE_BYTES, ranks))
    weighed_s = np.where(ranks > 1, 2 * tokens * heads * ranks * shared.output * OUTPUT_BYTES, 0.0) / machine.hbm_bytes_per_s
    c = machine.coefficients("elementwise", "default", ElementwiseCoefficients)
    return _added(found, (weighed_s / c.memory_efficiency, weighed_s))


def all_gather(machine: Machine, own_bytes: ArrayLike, ranks: ArrayLike) -> Pair:
    """Gathering what each of the ranks has, own_bytes: (time, bound)."""
    return _collective(machine, "dispatch", own_bytes, ranks)


def _collective(machine: Machine, direction: Literal["dispatch", "combine"], own_bytes: ArrayLike, ranks: ArrayLike) -> Pair:
    """All-gather (dispatch) or reduce-scatter (combine) with own_bytes of every rank; MissingFactError where none was timed."""
    own, n = (as_floats(x) for x in np.broadcast_arrays(own_bytes, ranks))
    routing: dict[str, Any] = {"token_bytes": 1.0, "top_k": 1, "groups": 1, "top_k_groups": 1, "contiguous": True}
    moved = volumes(CALIBRATED, own, n, links=machine.links, **routing)
    c = machine.coefficients("dispatch", f"{CALIBRATED}.{direction}", DispatchCoefficients)
    time_s = transfer_time_s(moved, n, 0.0, 1.0, links=machine.links, coefficients=c)
    return time_s, transfer_bound_s(moved, machine.links)


def _added(first: Pair, second: Pair) -> Pair:
    return first[0] + second[0], first[1] + second[1]


def _packed(machine: Machine) -> bool:
    """Whether the engine sends the log-sum-exp beside the outputs."""
    return machine.calibration.applies_to.engine in PACKS_LSE


def exchange_kernels(machine: Machine, kind: AttentionKind | None, ranks: ArrayLike) -> Floats:
    """Kernels of one layer that no operator covers, besides those without sharing, (rows,)."""
    shared = kind.shared_context if kind else None
    if shared is None:
        return np.zeros(np.shape(ranks))
    return np.where(as_floats(ranks) > 1, float(SMALL_KERNELS[_packed(machine)] + shared.beside), 0.0)


def exchange_timed(machine: Machine) -> bool:
    """Whether the machine's collectives were timed."""
    return all(machine.calibration.has(family, variant) for family, variant, _ in exchange_sources(1.0).values())


def exchange_sources(ranks: float) -> dict[str, tuple[str, str, dict[str, float]]]:
    """Operator -> calibration family and variant that priced it, and the inputs that its measured box is checked against."""
    directions = {GATHER: "dispatch", COMBINE: "combine"}
    return {name: ("dispatch", f"{CALIBRATED}.{direction}", {"ranks": ranks}) for name, direction in directions.items()}
