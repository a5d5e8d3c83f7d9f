"""DeepSeek's EPLB, re-implemented as the baseline (deepseek-ai/EPLB: eplb.py).

Global: replicas to the expert with the largest load per replica, then replicas by falling load to the least loaded GPU with
room. Hierarchical: groups of experts are packed to nodes first, then the same inside each node.
"""

from __future__ import annotations

import numpy as np

from cost_models.arrays import Floats, Ints


def balanced_packing(weights: Floats, packs: int) -> Ints:
    """Pack of every item, equally many items each: falling weight, to the lightest pack with room. weights : (..., items)."""
    flat = weights.reshape(-1, weights.shape[-1])
    room, each = flat.shape[1] // packs, np.arange(len(flat))
    filled = np.zeros((len(flat), packs), dtype=np.int64)
    carried = np.zeros((len(flat), packs))  # infinite for a full pack
    result = np.zeros(flat.shape, dtype=np.int64)
    for item in np.argsort(-flat, axis=1, kind="stable").T:
        pack = carried.argmin(axis=1)
        result[each, item] = pack
        filled[each, pack] += 1
        carried[each, pack] = np.where(filled[each, pack] < room, carried[each, pack] + flat[each, item], np.inf)
    return result.reshape(weights.shape)


def replicate_experts(weights: Floats, slots: int) -> Ints:
    """Logical expert of every physical one, (..., slots). weights : (..., experts)."""
    flat = weights.reshape(-1, weights.shape[-1])
    counts, each = np.ones(flat.shape), np.arange(len(flat))
    found = [np.broadcast_to(np.arange(flat.shape[1]), flat.shape)]
    for _ in range(slots - flat.shape[1]):
        expert = (flat / counts).argmax(axis=1)
        counts[each, expert] += 1
        found.append(expert[:, None])
    return np.concatenate(found, axis=1).reshape(*weights.shape[:-1], slots)


def global_placement(weights: Floats, slots: int, gpus: int) -> Ints:
    """Experts by GPU and slot, (..., gpus, slots per GPU). weights : (..., experts), each layer placed for itself."""
    flat = weights.reshape(-1, weights.shape[-1])
    physical = replicate_experts(flat, slots)
    counts = np.stack([np.bincount(layer, minlength=flat.shape[1]) for layer in physical])
    packs = balanced_packing(np.take_along_axis(flat / counts, physical, axis=1), gpus)
    placed = np.take_along_axis(physical, np.argsort(packs, axis=1, kind="stable"), axis=1)
    return placed.reshape(*weights.shape[:-1], gpus, -1)


def hierarchical_placement(weights: Floats, slots: int, gpus: int, groups: int, nodes: int) -> Ints:
    """Groups to nodes, then replicas and GPUs inside each node; needs groups divisible by nodes. weights : (..., experts)."""
    flat = weights.reshape(-1, weights.shape[-1])
    size = flat.shape[1] // groups
    node_of_group = balanced_packing(flat.reshape(len(flat), groups, size).sum(axis=2), nodes)
    of_node = np.argsort(node_of_group, axis=1, kind="stable").reshape(len(flat), nodes, groups // nodes)
    experts = (of_node[..., None] * size + np.arange(size)).reshape(len(flat), nodes, -1)
    inside = np.take_along_axis(flat[:, None, :], experts, axis=2)
    local = global_placement(inside, slots // nodes, gpus // nodes)
    placed = np.take_along_axis(experts, local.reshape(len(flat), nodes, -1), axis=2)
    return placed.reshape(*weights.shape[:-1], gpus, -1)
