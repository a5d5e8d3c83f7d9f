"""Replicas and their GPUs for one layer, robust over several loads.

Replicas by greedy min-max (optimal for the largest replica), packing by longest processing time first, then swaps that
relieve the busiest GPU. A GPU counts by its load in the worst scenario.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from autotune.placement.eplb import global_placement
from cost_models.arrays import Floats, Ints, as_floats

MOST_SWAPS = 400
IMPROVES = 2e-5
"""Least relative relief of the busiest GPU that is worth a swap."""


def normalised(loads: Floats) -> Floats:
    """Loads (scenarios, experts) as shares of each scenario's total; equal ones where nothing was chosen at all."""
    total = loads.sum(axis=1, keepdims=True)
    return as_floats(np.where(total > 0, loads / np.where(total > 0, total, 1.0), 1.0 / loads.shape[1]))


def replicate(loads: Floats, slots: int) -> Ints:
    """Replicas of every expert, (experts,): always one more for whose replicas are busiest in its worst scenario."""
    worst = loads.max(axis=0)
    counts = np.ones(len(worst), dtype=np.int64)
    queue = [(-float(load), expert) for expert, load in enumerate(worst)]
    heapq.heapify(queue)
    for _ in range(slots - len(worst)):
        _, expert = heapq.heappop(queue)
        counts[expert] += 1
        heapq.heappush(queue, (-float(worst[expert]) / int(counts[expert]), expert))
    return counts


def lower_bound(loads: Floats, slots: int, gpus: int) -> float:
    """No placement's busiest GPU carries less, in the worst scenario.

    In each scenario the mean over GPUs, and the busiest replica that the best replication leaves; of those the worst scenario's.
    """
    best = 1.0 / gpus
    for load in normalised(loads):
        counts = replicate(load[None], slots)
        best = max(best, float((load / counts).max()))
    return best


def pack(loads: Floats, counts: Ints, gpus: int) -> Ints:
    """Experts by GPU and slot, (gpus, slots per GPU): heaviest replica first, to the GPU where it hurts least."""
    packed: Ints = pack_layers(loads[None], counts[None], gpus)[0]
    return packed


def pack_layers(loads: Floats, counts: Ints, gpus: int) -> Ints:
    """`pack` of many layers at once, (layers, gpus, slots per GPU); every layer gets what it would get alone.

    loads : (layers, scenarios, experts); counts : (layers, experts), with as many replicas in every layer.
    """
    layers, scenarios, experts = loads.shape
    slots = int(counts[0].sum())
    share = loads / counts[:, None, :]
    replicas = np.repeat(np.tile(np.arange(experts), layers), counts.ravel()).reshape(layers, slots)
    heaviest = np.argsort(-np.take_along_axis(share.max(axis=1), replicas, axis=1), axis=1, kind="stable")
    replicas = np.take_along_axis(replicas, heaviest, axis=1)
    placed = np.full((layers, gpus, slots // gpus), -1, dtype=np.int64)
    filled = np.zeros((layers, gpus), dtype=np.int64)
    taken = np.zeros((layers, gpus))  # infinite for a full GPU
    twice = np.zeros((layers, experts, gpus))  # 1 on the GPUs that hold an expert already, so that it goes there last
    carried = np.zeros((layers, scenarios, gpus))
    each = np.arange(layers)
    for expert in replicas.T:
        added = share[each, :, expert]
        cost = (carried + added[:, :, None]).max(axis=1) + twice[each, expert] + taken
        gpu = cost.argmin(axis=1)
        slot = filled[each, gpu]
        placed[each, gpu, slot] = expert
        filled[each, gpu] = slot + 1
        taken[each, gpu] = np.where(slot + 1 == slots // gpus, np.inf, 0.0)
        twice[each, expert, gpu] = 1.0
        carried[each, :, gpu] += added
    return placed


def in_order(experts: int, slots: int, gpus: int) -> Ints:
    """Experts by number, spares starting again from the first, (gpus, slots per GPU): what engines do without EPLB."""
    linear: Ints = (np.arange(slots) % experts).reshape(gpus, -1)
    return linear


def counts_of(placed: Ints, experts: int) -> Ints:
    """Replicas of every expert in a placement."""
    return np.bincount(placed.ravel(), minlength=experts)


def gpu_loads(loads: Floats, placed: Ints) -> Floats:
    """Load of every GPU, (scenarios, gpus); an expert's load is split evenly over its replicas."""
    share = loads / counts_of(placed, loads.shape[1])
    carried: Floats = share[:, placed].sum(axis=2)
    return carried


def worst_gpu(loads: Floats, placed: Ints) -> float:
    """Load of the busiest GPU in the worst scenario, of a total of 1."""
    return float(gpu_loads(loads, placed).max())


def relieve(loads: Floats, placed: Ints) -> Ints:
    """Swap replicas of the busiest GPU with others' while that lowers the busier of the two."""
    placed = placed.copy()
    experts = loads.shape[1]
    share = loads / counts_of(placed, experts)
    carried = gpu_loads(loads, placed)
    holds = holders(placed, experts)
    for _ in range(MOST_SWAPS):
        busiest = int(np.argmax(carried.max(axis=0)))
        top = float(carried[:, busiest].max())
        after = after_swaps(share, carried, placed, busiest, holds)
        slot, gpu, other = np.unravel_index(int(np.argmin(after)), after.shape)
        if after[slot, gpu, other] >= top * (1 - IMPROVES):
            break
        given, taken = placed[busiest, slot], placed[gpu, other]
        change = share[:, given] - share[:, taken]
        carried[:, busiest] -= change
        carried[:, gpu] += change
        placed[busiest, slot], placed[gpu, other] = taken, given
        holds[busiest, given] = holds[gpu, taken] = False
        holds[busiest, taken] = holds[gpu, given] = True
    return placed


def holders(placed: Ints, experts: int) -> NDArray[np.bool_]:
    """Which GPU holds which expert, (gpus, experts)."""
    holds = np.zeros((len(placed), experts), dtype=np.bool_)
    np.put_along_axis(holds, placed, True, axis=1)
    return holds


def after_swaps(share: Floats, carried: Floats, placed: Ints, busiest: int, holds: NDArray[np.bool_]) -> Floats:
    """Load of the busier GPU after each swap (slot of the busiest, other GPU, its slot), in the worst scenario.

    Infinite for swaps within the busiest GPU and for those that would put an expert twice on one.
    """
    mine = placed[busiest]
    worst: Floats | None = None
    for scenario, load in zip(share, carried, strict=True):  # few scenarios: a loop is faster than one more axis
        moved = scenario[mine][:, None, None] - scenario[placed]
        after = np.maximum(load[busiest] - moved, load[:, None] + moved)
        worst = after if worst is None else np.maximum(worst, after)
    assert worst is not None
    worst[holds[:, mine].T[:, :, None] | holds[busiest][placed][None]] = np.inf
    return worst


def place_layer(loads: Floats, slots: int, gpus: int) -> Ints:
    """Experts by GPU and slot, (gpus, slots per GPU), for loads (scenarios, experts); never worse than EPLB on their sum."""
    placed: Ints = place_layers(loads[None], slots, gpus)[0]
    return placed


def place_layers(loads: Floats, slots: int, gpus: int) -> Ints:
    """`place_layer` of many layers, (layers, gpus, slots per GPU), for loads (layers, scenarios, experts)."""
    shares = np.stack([normalised(layer) for layer in loads])
    packed = pack_layers(shares, np.stack([replicate(layer, slots) for layer in shares]), gpus)
    baselines = global_placement(shares.sum(axis=1), slots, gpus)
    return np.stack([_relieved(*layer) for layer in zip(shares, packed, baselines, strict=True)])


def _relieved(shares: Floats, packed: Ints, baseline: Ints) -> Ints:
    """A packed layer with its busiest GPUs relieved, or EPLB's where that is better."""
    placed = relieve(shares, packed)
    if worst_gpu(shares, baseline) < worst_gpu(shares, placed):
        return relieve(shares, baseline)
    return placed
