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
    """Loads (scenarios, experts) as shares of each scenario's total."""
    return as_floats(loads / loads.sum(axis=1, keepdims=True))


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
    per_gpu = int(counts.sum()) // gpus
    share = loads / counts
    experts = np.repeat(np.arange(len(counts)), counts)
    experts = experts[np.argsort(-share.max(axis=0)[experts], kind="stable")]
    placed = np.full((gpus, per_gpu), -1, dtype=np.int64)
    filled = [0] * gpus
    taken = np.zeros(gpus)  # infinite for a full GPU
    twice = np.zeros((len(counts), gpus))  # by expert: 1 on the GPUs that hold it already, so that it goes there last
    carried = np.zeros((len(loads), gpus))
    for expert in experts.tolist():
        cost = (carried + share[:, expert, None]).max(axis=0) + twice[expert] + taken
        gpu = int(cost.argmin())
        placed[gpu, filled[gpu]] = expert
        filled[gpu] += 1
        if filled[gpu] == per_gpu:
            taken[gpu] = np.inf
        twice[expert, gpu] = 1.0
        carried[:, gpu] += share[:, expert]
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
    shares = normalised(loads)
    placed = relieve(shares, pack(shares, replicate(shares, slots), gpus))
    baseline = global_placement(shares.sum(axis=0), slots, gpus)
    if worst_gpu(shares, baseline) < worst_gpu(shares, placed):
        return relieve(shares, baseline)
    return placed
