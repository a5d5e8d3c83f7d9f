"""DeepSeek's EPLB, re-implemented as the baseline (deepseek-ai/EPLB: eplb.py).

Global: replicas to the expert with the largest load per replica, then replicas by falling load to the least loaded GPU with
room. Hierarchical: groups of experts are packed to nodes first, then the same inside each node.
"""

from __future__ import annotations

import heapq

import numpy as np

from cost_models.arrays import Floats, Ints


def balanced_packing(weights: Floats, packs: int) -> Ints:
    """Pack of every item, equally many items each: falling weight, to the lightest pack with room."""
    room = len(weights) // packs
    filled = [0] * packs
    result = np.zeros(len(weights), dtype=np.int64)
    lightest = [(0.0, pack) for pack in range(packs)]  # a heap of those with room
    for item in np.argsort(-weights, kind="stable").tolist():
        carried, pack = lightest[0]
        result[item] = pack
        filled[pack] += 1
        if filled[pack] < room:
            heapq.heapreplace(lightest, (carried + float(weights[item]), pack))
        else:
            heapq.heappop(lightest)
    return result


def replicate_experts(weights: Floats, slots: int) -> Ints:
    """Logical expert of every physical one, (slots,)."""
    counts = np.ones(len(weights))
    extra = []
    for _ in range(slots - len(weights)):
        expert = int(np.argmax(weights / counts))
        extra.append(expert)
        counts[expert] += 1
    return np.concatenate([np.arange(len(weights)), np.array(extra, dtype=np.int64)])


def global_placement(weights: Floats, slots: int, gpus: int) -> Ints:
    """Experts by GPU and slot, (gpus, slots per GPU)."""
    physical = replicate_experts(weights, slots)
    counts = np.bincount(physical, minlength=len(weights))
    packs = balanced_packing((weights / counts)[physical], gpus)
    return physical[np.argsort(packs, kind="stable")].reshape(gpus, -1)


def hierarchical_placement(weights: Floats, slots: int, gpus: int, groups: int, nodes: int) -> Ints:
    """Groups to nodes, then replicas and GPUs inside each node; needs groups divisible by nodes."""
    size = len(weights) // groups
    node_of_group = balanced_packing(weights.reshape(groups, size).sum(axis=1), nodes)
    parts = []
    for node in range(nodes):
        experts = np.concatenate([np.arange(g * size, (g + 1) * size) for g in np.flatnonzero(node_of_group == node)])
        local = global_placement(weights[experts], slots // nodes, gpus // nodes)
        parts.append(experts[local])
    return np.concatenate(parts)
