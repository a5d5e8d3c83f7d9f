"""Experts that are chosen together on the same node: fewer nodes per token, under a cap on imbalance.

Experts get a home node by load, swaps between nodes gather co-activated pairs while every node stays within the cap, CP-SAT
goes on from there where it is given time; replicas then lie inside the home node, placed on its GPUs as one pool.
"""

from __future__ import annotations

import numpy as np

from autotune.cp_sat import load_cp_model
from autotune.errors import ProblemError
from autotune.placement.loads import Choices, Loads
from autotune.placement.repack import best_within
from autotune.placement.solve import counts_of, normalised, place_layer
from cost_models.arrays import Floats, Ints, as_floats

BALANCE_CAP = 0.02
"""Load of a node above the mean that gathering may leave."""
MOST_SWAPS = 2000
SAMPLED_TOKENS = 600
"""Tokens that CP-SAT counts nodes of."""


def co_activation(chosen: Ints, experts: int) -> Floats:
    """Tokens that choose both experts of a pair, (experts, experts), zero diagonal; chosen : (tokens, top k)."""
    hot = np.zeros((len(chosen), experts), dtype=np.float32)
    np.put_along_axis(hot, chosen, 1.0, axis=1)
    pairs = as_floats(hot.T @ hot)
    np.fill_diagonal(pairs, 0.0)
    return pairs


def nodes_per_token(chosen: Ints, placed: Ints, gpus_per_node: int, experts: int) -> float:
    """Nodes that a token's experts lie on, mean over tokens; a token takes any of an expert's replicas alike.

    chosen : (tokens, top k); placed : (gpus, slots per GPU). Sum over nodes of 1 - product over the token's experts of
    (1 - share of the expert's replicas on the node).
    """
    by_node = placed.reshape(len(placed) // gpus_per_node, -1)
    share = np.stack([np.bincount(node, minlength=experts) for node in by_node]) / counts_of(placed, experts)
    missed = np.prod(1 - share[:, chosen], axis=2)
    return float((1 - missed).sum(axis=0).mean())


def place_by_node(loads: Loads, choices: Choices, slots: int, gpus: int, gpus_per_node: int, seconds: float = 0.0) -> Ints:
    """Experts by layer, GPU and slot, every expert's replicas on one node; raises ProblemError where nodes do not divide.

    seconds : for CP-SAT, over all layers.
    """
    nodes = gpus // gpus_per_node
    layers, experts = loads.counts.shape[1:]
    if gpus % gpus_per_node or nodes < 2 or experts % nodes or slots % nodes:
        raise ProblemError(
            f"gathering by node needs at least two whole nodes that share experts and slots evenly: {gpus} GPUs in nodes of "
            f"{gpus_per_node}, {experts} experts, {slots} slots"
        )
    found = []
    for layer in range(layers):
        shares = normalised(loads.layer(layer))
        home = gathered(shares, co_activation(choices.layer(layer), experts), balanced_homes(shares, nodes))
        if seconds > 0:
            home = solved_homes(shares, choices.layer(layer), home, seconds / layers)
        found.append(_within_nodes(shares, home, slots // nodes, gpus_per_node, nodes))
    return np.stack(found)


def balanced_homes(shares: Floats, nodes: int) -> Ints:
    """Node of every expert, equally many each: heaviest first, to the node where it hurts least."""
    room = shares.shape[1] // nodes
    home = np.zeros(shares.shape[1], dtype=np.int64)
    filled = np.zeros(nodes, dtype=np.int64)
    carried = np.zeros((len(shares), nodes))
    for expert in np.argsort(-shares.max(axis=0), kind="stable").tolist():
        cost = np.where(filled < room, (carried + shares[:, [expert]]).max(axis=0), np.inf)
        node = int(np.argmin(cost))
        home[expert] = node
        filled[node] += 1
        carried[:, node] += shares[:, expert]
    return home


def load_cap(shares: Floats, home: Ints) -> float:
    """What a node may carry in any scenario: the cap above the mean, or what the balanced start needs."""
    nodes = int(home.max()) + 1
    return max((1 + BALANCE_CAP) / nodes, float(_node_loads(shares, home, nodes).max()))


def gathered(shares: Floats, pairs: Floats, home: Ints) -> Ints:
    """Homes after the swaps that bring most co-activated pairs together, while no node passes the cap."""
    home = home.copy()
    nodes = int(home.max()) + 1
    cap = load_cap(shares, home)
    for _ in range(MOST_SWAPS):
        with_node = np.stack([pairs[:, home == node].sum(axis=1) for node in range(nodes)], axis=1)
        gain = with_node[:, home] - with_node[np.arange(len(home)), home][:, None]  # of moving an expert to another's node
        swap = np.where(home[:, None] != home[None], gain + gain.T - 2 * pairs, -np.inf)
        carried = _node_loads(shares, home, nodes)
        for scenario, load in zip(shares, carried, strict=True):
            after = load[home][None] + scenario[:, None] - scenario[None]  # of the second expert's node
            swap = np.where((after > cap) | (cap < after.T), -np.inf, swap)
        first, second = np.unravel_index(int(np.argmax(swap)), swap.shape)
        if swap[first, second] <= 0:
            break
        home[first], home[second] = home[second], home[first]
    return home


def solved_homes(shares: Floats, chosen: Ints, home: Ints, seconds: float) -> Ints:
    """CP-SAT, hinted with the given homes: fewest nodes of sampled tokens; kept only if all tokens agree."""
    cp_model = load_cp_model()
    nodes, experts = int(home.max()) + 1, len(home)
    sample = np.random.default_rng(0).permutation(chosen)[:SAMPLED_TOKENS]
    model = cp_model.CpModel()
    lives = [[model.new_bool_var("") for _ in range(nodes)] for _ in range(experts)]
    for expert, row in enumerate(lives):
        model.add_exactly_one(row)
        for node, variable in enumerate(row):
            model.add_hint(variable, bool(home[expert] == node))
    scale = 10**6
    cap = int(np.ceil(load_cap(shares, home) * scale)) + experts
    for node in range(nodes):
        model.add(sum(row[node] for row in lives) == experts // nodes)
        for scenario in np.rint(shares * scale).astype(np.int64).tolist():
            model.add(sum(load * row[node] for load, row in zip(scenario, lives, strict=True)) <= cap)
    visits = []
    for token in sample.tolist():
        for node in range(nodes):
            visit = model.new_bool_var("")
            for expert in token:
                model.add_implication(lives[expert][node], visit)
            model.add_hint(visit, bool((home[token] == node).any()))
            visits.append(visit)
    model.minimize(sum(visits))
    solver = best_within(model, seconds)
    if solver is None:
        return home
    found = np.array([next(n for n in range(nodes) if solver.boolean_value(row[n])) for row in lives])
    return found if _visits(chosen, found, nodes) < _visits(chosen, home, nodes) else home


def _visits(chosen: Ints, home: Ints, nodes: int) -> int:
    """Nodes of all tokens together."""
    return int(sum((home[chosen] == node).any(axis=1).sum() for node in range(nodes)))


def _node_loads(shares: Floats, home: Ints, nodes: int) -> Floats:
    return np.stack([np.bincount(home, weights=scenario, minlength=nodes) for scenario in shares])


def _within_nodes(shares: Floats, home: Ints, slots: int, gpus: int, nodes: int) -> Ints:
    parts = []
    for node in range(nodes):
        local = np.flatnonzero(home == node)
        parts.append(local[place_layer(as_floats(shares[:, local]), slots, gpus)])
    return np.concatenate(parts)
