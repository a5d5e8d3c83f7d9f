"""Loads and a topology -> a placement of every layer, beside EPLB's and the bound."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.errors import ProblemError
from autotune.placement.affinity import nodes_per_token, place_by_node
from autotune.placement.eplb import global_placement, hierarchical_placement
from autotune.placement.loads import Choices, Loads
from autotune.placement.moving import replace_some
from autotune.placement.repack import Held, moves_between, repack
from autotune.placement.solve import gpu_loads, lower_bound, normalised, place_layers, worst_gpu
from cost_models.arrays import Floats, Ints, quantile_of
from cost_models.specs.base import Spec
from cost_models.specs.model import ModelSpec

MOST_REPLICAS = 4
"""Redundant experts, over experts: four times as many slots as experts are beyond any engine's use."""
MOST_SWAPPED = 2**19
"""Slots squared over GPUs: the pairs that one round of swaps looks at."""
REFINED_LAYER_S = 3.0
"""CP-SAT on one layer, at most."""


class Balance(Spec):
    """Balancedness (mean / max over GPUs) of a placement, averaged over layers."""

    by_scenario: tuple[float, ...]
    worst_scenario: float
    worst_layer: float
    """Lowest of any layer in any scenario."""
    skew: float
    """Max / mean over GPUs, averaged over layers, in the worst scenario: `expert_balance.skew` of a deployment."""


class LayerBalance(Spec):
    """One layer in its worst scenario."""

    layer: int
    placed: float
    eplb: float
    bound: float
    """No placement is more balanced than this."""


class NodesPerToken(Spec):
    """Nodes that a token's experts lie on, mean over tokens and layers."""

    placed: float
    eplb: float
    eplb_hierarchical: float | None
    by_layer: tuple[float, ...]
    eplb_by_layer: tuple[float, ...]


class Placement(Spec):
    """Where every replica lies."""

    model: str
    gpus: int
    slots: int
    """Physical experts."""
    scenarios: tuple[str, ...]
    experts: tuple[tuple[tuple[int, ...], ...], ...]
    """Logical experts by MoE layer, GPU and slot."""
    balance: Balance
    eplb: Balance
    eplb_hierarchical: Balance | None
    """None where groups do not divide over the nodes."""
    layers: tuple[LayerBalance, ...]
    moves: int | None = None
    """Replicas that move from the placement it starts from; none for a fresh one."""
    nodes_per_token: NodesPerToken | None = None
    """Where the experts of each token were recorded, on two nodes or more."""
    median_gap: float
    """Busiest GPU above the lower bound in the worst scenario, relative, median over layers."""


def place(
    loads: Loads, model: ModelSpec, gpus: int, redundant_experts: int, gpus_per_node: int, refine_s: float = 0.0
) -> Placement:
    """Place every layer; raises ProblemError for slots that do not divide.

    refine_s : time for CP-SAT to pack the layers furthest above their bound again.
    """
    assert model.moe is not None
    slots = model.moe.experts + redundant_experts
    _check(model, gpus, slots, redundant_experts)
    placed = place_layers(np.stack([loads.layer(i) for i in range(loads.counts.shape[1])]), slots, gpus)
    return described_placement(loads, model, refined(loads, placed, refine_s), gpus_per_node)


def place_gathered(
    loads: Loads, choices: Choices, model: ModelSpec, gpus: int, redundant_experts: int, gpus_per_node: int, refine_s: float = 0.0
) -> Placement:
    """Experts that are chosen together on one node; raises ProblemError where slots or nodes do not divide.

    refine_s : time for CP-SAT to gather them further.
    """
    assert model.moe is not None
    slots = model.moe.experts + redundant_experts
    _check(model, gpus, slots, redundant_experts)
    placed = place_by_node(loads, choices, slots, gpus, gpus_per_node, refine_s)
    return described_placement(loads, model, placed, gpus_per_node, choices=choices)


def place_again(
    loads: Loads, model: ModelSpec, current: Placement, max_moves: int, gpus_per_node: int, refine_s: float = 0.0
) -> Placement:
    """Change a placement by at most `max_moves` replicas for new loads; raises ProblemError where they do not belong together."""
    found = held_experts(current, model, loads.counts.shape[1])
    placed, _ = replace_some(loads, found, max_moves)
    placed = refined(loads, placed, refine_s, Moves(found, max_moves))
    moves = sum(moves_between(old, new) for old, new in zip(found, placed, strict=True))
    return described_placement(loads, model, placed, gpus_per_node, moves)


def held_experts(current: Placement, model: ModelSpec, layers: int) -> Ints:
    """Experts (layers, gpus, slots) of a placement to change.

    Raises ProblemError where it is another model's, is ragged, names experts that are not there, or leaves one nowhere.
    """
    if current.model != model.name or len(current.experts) != layers:
        raise ProblemError(f"the placement is of {current.model} with {len(current.experts)} layers, the loads of {model.name}")
    return checked_experts(current.experts, model)


def checked_experts(placed: Sequence[Sequence[Sequence[int]]], model: ModelSpec) -> Ints:
    """Experts (layers, gpus, slots) of a map from a document.

    Raises ProblemError where it has other layers than the model, is ragged, names experts that are not there, or leaves one
    nowhere.
    """
    if model.moe is None or len(placed) != len(model.moe_positions):
        raise ProblemError(f"the placement has {len(placed)} layers, {model.name} has {len(model.moe_positions)} with experts")
    sizes = {(len(layer), len(slots)) for layer in placed for slots in layer} or {(0, 0)}
    gpus, slots = next(iter(sizes))
    if len(sizes) > 1 or not gpus * slots:
        shown = ", ".join(f"{g} GPUs x {s} slots" for g, s in sorted(sizes)[:4])
        raise ProblemError(f"the placement's layers and GPUs differ in size: {shown}")
    experts = model.moe.experts
    _check(model, gpus, gpus * slots, gpus * slots - experts)
    for number, layer in zip(model.moe_positions, placed, strict=True):
        held = {expert for of_gpu in layer for expert in of_gpu}
        if foreign := sorted(held - set(range(experts))):
            raise ProblemError(f"the placement has expert {foreign[0]} in layer {number}; {model.name} has 0..{experts - 1}")
        if lost := sorted(set(range(experts)) - held):
            raise ProblemError(
                f"the placement has no replica of expert {lost[0]} in layer {number} ({len(lost)} such): repair it"
            )
    return np.array(placed)


@dataclass(frozen=True, slots=True)
class Moves:
    """A placement in use (layers, gpus, slots), and how many replicas of it may move in all layers."""

    placed: Ints
    most: int


def refined(loads: Loads, placed: Ints, seconds: float, moves: Moves | None = None) -> Ints:
    """CP-SAT on one layer after the other, furthest above its bound first, for `seconds`; no layer gets worse."""
    placed = placed.copy()
    if seconds <= 0:
        return placed
    count, gpus, per_gpu = placed.shape
    gap = [
        worst_gpu(normalised(loads.layer(i)), placed[i]) / lower_bound(loads.layer(i), gpus * per_gpu, gpus) for i in range(count)
    ]
    used = [0] * count if moves is None else [moves_between(moves.placed[i], placed[i]) for i in range(count)]
    end = time.perf_counter() + seconds
    for layer in np.argsort(gap)[::-1].tolist():
        left = min(end - time.perf_counter(), REFINED_LAYER_S)
        if left <= 0:
            break
        held = None
        if moves is not None:
            held = Held(moves.placed[layer], moves.most - (sum(used) - used[layer]))
        placed[layer] = repack(loads.layer(layer), placed[layer], left, held)
        used[layer] = moves_between(held.placed, placed[layer]) if held else 0
    return placed


def described_placement(
    loads: Loads, model: ModelSpec, placed: Ints, gpus_per_node: int, moves: int | None = None, choices: Choices | None = None
) -> Placement:
    """A placement with its balance beside EPLB's and the bound."""
    count, gpus, per_gpu = placed.shape
    slots = gpus * per_gpu
    baseline = global_placement(_summed(loads), slots, gpus)
    bounds = np.array([lower_bound(loads.layer(i), slots, gpus) for i in range(count)])
    grouped = _hierarchical(loads, model, gpus, slots, gpus_per_node)
    ours, theirs = balancedness(loads, placed), balancedness(loads, baseline)
    best = 1 / gpus / bounds
    return Placement(
        model=model.name,
        gpus=gpus,
        slots=slots,
        scenarios=loads.names,
        experts=tuple(tuple(tuple(row) for row in layer) for layer in placed.tolist()),
        balance=_balance(ours),
        eplb=_balance(theirs),
        eplb_hierarchical=None if grouped is None else _balance(balancedness(loads, grouped)),
        layers=tuple(
            LayerBalance(
                layer=model.moe_positions[i], placed=float(ours[:, i].min()), eplb=float(theirs[:, i].min()), bound=float(best[i])
            )
            for i in range(count)
        ),
        moves=moves,
        nodes_per_token=_nodes_per_token(choices, (placed, baseline, grouped), gpus_per_node, loads.counts.shape[2]),
        median_gap=quantile_of(best / ours.min(axis=0) - 1, 0.5),
    )


class RedundancyChoice(Spec):
    """One number of redundant experts; balancedness of each layer in its worst scenario, averaged over layers."""

    redundant_experts: int
    slots_per_gpu: int
    placed: float
    eplb: float
    bound: float
    """No placement of so many slots is more balanced."""
    by_layer: float
    """As many slots in all, but more where they help more: for an engine that would allow it (none of those known does)."""
    weights_bytes_per_gpu: float
    """Experts of all layers at one byte per weight; KV cache has that much less."""


MOST_EXTRA_SLOTS = 4


def sweep_redundancy(loads: Loads, model: ModelSpec, gpus: int) -> list[RedundancyChoice]:
    """The fewest slots per GPU, and up to MOST_EXTRA_SLOTS more: what another replica of everything would buy."""
    assert model.moe is not None
    fewest = -model.moe.experts % gpus
    redundant = [fewest + extra * gpus for extra in range(MOST_EXTRA_SLOTS + 1)]
    placements = [place(loads, model, gpus, spare, gpus) for spare in redundant]
    placed = np.array([[layer.placed for layer in placement.layers] for placement in placements])
    expert_bytes = float(model.moe.expert_parameters(model.hidden)) * model.moe_layers
    return [
        RedundancyChoice(
            redundant_experts=redundant[extra],
            slots_per_gpu=placement.slots // gpus,
            placed=float(placed[extra].mean()),
            eplb=float(np.mean([layer.eplb for layer in placement.layers])),
            bound=float(np.mean([layer.bound for layer in placement.layers])),
            by_layer=shared_out(placed, extra),
            weights_bytes_per_gpu=placement.slots // gpus * expert_bytes,
        )
        for extra, placement in enumerate(placements)
    ]


def shared_out(placed: Floats, extra: int) -> float:
    """Mean balancedness when `extra` slots per GPU and layer are given where they help most.

    placed : balancedness (extra slots, layers). Expert time is proportional to its inverse: always the steps with the largest
    fall of it per slot.
    """
    layers = placed.shape[1]
    time = 1 / placed
    taken = np.zeros(layers, dtype=np.int64)
    left = extra * layers
    while left > 0:
        steps = [_best_step(time[:, i], int(taken[i]), left) for i in range(layers)]
        layer = int(np.argmax([gain for gain, _ in steps]))
        if steps[layer][0] <= 0:
            break
        taken[layer] += steps[layer][1]
        left -= steps[layer][1]
    return float(placed[taken, np.arange(layers)].mean())


def _best_step(time: Floats, taken: int, left: int) -> tuple[float, int]:
    """(fall of time per slot, slots) of the best number of further slots of one layer."""
    steps = range(1, min(left, len(time) - 1 - taken) + 1)
    return max(((float(time[taken] - time[taken + n]) / n, n) for n in steps), default=(0.0, 0))


def _check(model: ModelSpec, gpus: int, slots: int, redundant_experts: int) -> None:
    assert model.moe is not None
    most = min(gpus - 1, MOST_REPLICAS) * model.moe.experts
    if redundant_experts > most:
        raise ProblemError(
            f"{redundant_experts:,} redundant experts: {gpus} GPUs use {most:,} at most, an expert once on each and "
            f"{MOST_REPLICAS} times more than once in the mean"
        )
    if slots * slots // gpus > MOST_SWAPPED:
        raise ProblemError(f"{slots:,} experts on {gpus} GPUs take too long to place; use more GPUs or fewer redundant experts")
    if slots % gpus:
        nearest = -slots % gpus
        raise ProblemError(
            f"{slots} physical experts do not divide over {gpus} GPUs; use {redundant_experts + nearest} redundant experts "
            f"({(slots + nearest) // gpus} per GPU)"
        )
    if redundant_experts < 0:
        raise ProblemError(f"{slots} slots are fewer than the {model.moe.experts} experts of {model.name}")


def _summed(loads: Loads) -> Floats:
    """What EPLB sees, (layers, experts): every scenario with the same weight."""
    return np.stack([normalised(loads.layer(i)).sum(axis=0) for i in range(loads.counts.shape[1])])


def balancedness(loads: Loads, placed: Ints) -> Floats:
    """Mean / max over GPUs, (scenarios, layers), of a placement (layers, gpus, slots)."""
    busiest = [gpu_loads(normalised(loads.layer(i)), placed[i]).max(axis=1) for i in range(len(placed))]
    return np.stack([1 / placed.shape[1] / b for b in busiest], axis=1)


def _balance(values: Floats) -> Balance:
    means = values.mean(axis=1)
    return Balance(
        by_scenario=tuple(float(x) for x in means),
        worst_scenario=float(means.min()),
        worst_layer=float(values.min()),
        skew=float((1 / values).mean(axis=1).max()),
    )


def _nodes_per_token(
    choices: Choices | None, placements: tuple[Ints, Ints, Ints | None], gpus_per_node: int, experts: int
) -> NodesPerToken | None:
    """Of this placement, EPLB's and the hierarchical one; None without choices or with one node."""
    gpus = placements[0].shape[1]
    if choices is None or gpus % gpus_per_node or gpus == gpus_per_node:
        return None
    found = [
        None if placed is None else [nodes_per_token(choices.layer(i), p, gpus_per_node, experts) for i, p in enumerate(placed)]
        for placed in placements
    ]
    ours, eplb, grouped = found
    assert ours is not None
    assert eplb is not None
    return NodesPerToken(
        placed=float(np.mean(ours)),
        eplb=float(np.mean(eplb)),
        eplb_hierarchical=None if grouped is None else float(np.mean(grouped)),
        by_layer=tuple(ours),
        eplb_by_layer=tuple(eplb),
    )


def _hierarchical(loads: Loads, model: ModelSpec, gpus: int, slots: int, gpus_per_node: int) -> Ints | None:
    assert model.moe is not None
    nodes, groups = gpus // gpus_per_node, model.moe.groups
    if not groups or gpus % gpus_per_node or nodes < 2 or groups % nodes or slots % nodes:
        return None
    return hierarchical_placement(_summed(loads), slots, gpus, groups, nodes)
