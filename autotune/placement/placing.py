"""Loads and a topology -> a placement of every layer, beside EPLB's and the bound."""

from __future__ import annotations

import numpy as np

from autotune.errors import ProblemError
from autotune.placement.eplb import global_placement, hierarchical_placement
from autotune.placement.loads import Loads
from autotune.placement.moving import replace_some
from autotune.placement.solve import gpu_loads, lower_bound, normalised, place_layer
from cost_models.arrays import Floats, Ints
from cost_models.specs.base import Spec
from cost_models.specs.model import ModelSpec


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
    median_gap: float
    """Busiest GPU above the lower bound in the worst scenario, relative, median over layers."""


def place(loads: Loads, model: ModelSpec, gpus: int, redundant_experts: int, gpus_per_node: int) -> Placement:
    """Place every layer; raises ProblemError for slots that do not divide."""
    assert model.moe is not None
    slots = model.moe.experts + redundant_experts
    _check(model, gpus, slots, redundant_experts)
    placed = np.stack([place_layer(loads.layer(i), slots, gpus) for i in range(loads.counts.shape[1])])
    return _described(loads, model, placed, gpus_per_node, None)


def place_again(loads: Loads, model: ModelSpec, current: Placement, max_moves: int, gpus_per_node: int) -> Placement:
    """Change a placement by at most `max_moves` replicas for new loads; raises ProblemError where they do not belong together."""
    found = np.array(current.experts)
    if current.model != model.name or found.shape[0] != loads.counts.shape[1]:
        raise ProblemError(f"the placement is of {current.model} with {len(current.experts)} layers, the loads of {model.name}")
    placed, moves = replace_some(loads, found, max_moves)
    return _described(loads, model, placed, gpus_per_node, moves)


def _described(loads: Loads, model: ModelSpec, placed: Ints, gpus_per_node: int, moves: int | None) -> Placement:
    """A placement with its balance beside EPLB's and the bound."""
    count, gpus, per_gpu = placed.shape
    slots = gpus * per_gpu
    baseline = np.stack([global_placement(_summed(loads, i), slots, gpus) for i in range(count)])
    bounds = np.array([lower_bound(loads.layer(i), slots, gpus) for i in range(count)])
    ours, theirs = balancedness(loads, placed), balancedness(loads, baseline)
    best = 1 / gpus / bounds
    dense = model.layers - model.moe_layers
    return Placement(
        model=model.name,
        gpus=gpus,
        slots=slots,
        scenarios=loads.names,
        experts=tuple(tuple(tuple(row) for row in layer) for layer in placed.tolist()),
        balance=_balance(ours),
        eplb=_balance(theirs),
        eplb_hierarchical=_hierarchical(loads, model, gpus, slots, gpus_per_node),
        layers=tuple(
            LayerBalance(layer=dense + i, placed=float(ours[:, i].min()), eplb=float(theirs[:, i].min()), bound=float(best[i]))
            for i in range(count)
        ),
        moves=moves,
        median_gap=float(np.median(best / ours.min(axis=0) - 1)),
    )


class RedundancyChoice(Spec):
    """One number of redundant experts; balancedness of each layer in its worst scenario, averaged over layers."""

    redundant_experts: int
    slots_per_gpu: int
    placed: float
    eplb: float
    bound: float
    """No placement of so many slots is more balanced."""


MOST_EXTRA_SLOTS = 4


def sweep(loads: Loads, model: ModelSpec, gpus: int) -> list[RedundancyChoice]:
    """The fewest slots per GPU, and up to MOST_EXTRA_SLOTS more: what another replica of everything would buy."""
    assert model.moe is not None
    fewest = -model.moe.experts % gpus
    found = []
    for extra in range(MOST_EXTRA_SLOTS + 1):
        redundant = fewest + extra * gpus
        placement = place(loads, model, gpus, redundant, gpus)
        found.append(
            RedundancyChoice(
                redundant_experts=redundant,
                slots_per_gpu=placement.slots // gpus,
                placed=float(np.mean([layer.placed for layer in placement.layers])),
                eplb=float(np.mean([layer.eplb for layer in placement.layers])),
                bound=float(np.mean([layer.bound for layer in placement.layers])),
            )
        )
    return found


def _check(model: ModelSpec, gpus: int, slots: int, redundant_experts: int) -> None:
    if slots % gpus:
        nearest = -slots % gpus
        raise ProblemError(
            f"{slots} physical experts do not divide over {gpus} GPUs; use {redundant_experts + nearest} redundant experts "
            f"({(slots + nearest) // gpus} per GPU)"
        )
    assert model.moe is not None
    if redundant_experts < 0:
        raise ProblemError(f"{slots} slots are fewer than the {model.moe.experts} experts of {model.name}")


def _summed(loads: Loads, layer: int) -> Floats:
    """What EPLB sees: every scenario with the same weight."""
    summed: Floats = normalised(loads.layer(layer)).sum(axis=0)
    return summed


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


def _hierarchical(loads: Loads, model: ModelSpec, gpus: int, slots: int, gpus_per_node: int) -> Balance | None:
    assert model.moe is not None
    nodes, groups = gpus // gpus_per_node, model.moe.groups
    if not groups or gpus % gpus_per_node or nodes < 2 or groups % nodes or slots % nodes:
        return None
    count = loads.counts.shape[1]
    placed = np.stack([hierarchical_placement(_summed(loads, i), slots, gpus, groups, nodes) for i in range(count)])
    return _balance(balancedness(loads, placed))
