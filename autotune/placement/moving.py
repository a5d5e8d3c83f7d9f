"""Re-placing with few moves: the steps from a current placement that relieve most per replica moved.

A step swaps two replicas (two moves) or overwrites a spare replica with one more of the busiest GPU's heaviest expert
(one move). Steps are taken over all layers by the load of busiest GPUs they take off per move, until the moves are used.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from autotune.placement.loads import Loads
from autotune.placement.solve import after_swaps, counts_of, gpu_loads, holders, normalised, worst_gpu
from cost_models.arrays import Floats, Ints

WORTH = 1e-6
"""Least load per move, of a layer's total, that is worth taking."""


@dataclass(frozen=True, slots=True)
class Move:
    """One change of a layer's placement."""

    placed: Ints
    """(gpus, slots per GPU) after it."""
    moves: int
    gain: float
    """Load that the busiest GPU of the layer loses, in the worst scenario."""


def replace_some(loads: Loads, current: Ints, max_moves: int) -> tuple[Ints, int]:
    """The current placement (layers, gpus, slots) changed by at most `max_moves` replicas, and how many moved.

    Never worse than the current one in any layer, in the worst scenario.
    """
    placed = current.copy()
    shares = [normalised(loads.layer(i)) for i in range(len(placed))]
    queue: list[tuple[float, int, Move]] = []

    def offer(layer: int) -> None:
        step = best_step(shares[layer], placed[layer])
        if step is not None:
            heapq.heappush(queue, (-step.gain / step.moves, layer, step))

    for layer in range(len(placed)):
        offer(layer)
    used = 0
    while queue:
        _, layer, step = heapq.heappop(queue)
        if used + step.moves > max_moves:
            continue  # a shorter step of another layer may still fit
        placed[layer] = step.placed
        used += step.moves
        offer(layer)
    return placed, used


def best_step(share: Floats, placed: Ints) -> Move | None:
    """The step of a layer with most gain per move; None when none is worth it. share : (scenarios, experts)."""
    steps = [step for step in (_swap(share, placed), _overwrite(share, placed)) if step is not None]
    return max(steps, key=lambda step: step.gain / step.moves, default=None)


def _swap(loads: Floats, placed: Ints) -> Move | None:
    """The swap with the busiest GPU that relieves most."""
    share = loads / counts_of(placed, loads.shape[1])
    carried = gpu_loads(loads, placed)
    busiest = int(np.argmax(carried.max(axis=0)))
    after = after_swaps(share, carried, placed, busiest, holders(placed, loads.shape[1]))
    slot, gpu, other = np.unravel_index(int(np.argmin(after)), after.shape)
    changed = placed.copy()
    changed[busiest, slot], changed[gpu, other] = placed[gpu, other], placed[busiest, slot]
    return _worth(loads, placed, changed, 2)


def _overwrite(loads: Floats, placed: Ints) -> Move | None:
    """One more replica of the busiest GPU's heaviest expert, in the place of a replica that is not its expert's last."""
    counts = counts_of(placed, loads.shape[1])
    carried = gpu_loads(loads, placed)
    busiest = placed[int(np.argmax(carried.max(axis=0)))]
    heaviest = int(busiest[np.argmax((loads.max(axis=0) / counts)[busiest])])
    lacking = ~(placed == heaviest).any(axis=1)
    spare = np.argwhere((counts[placed] > 1) & lacking[:, None])
    best: Move | None = None
    for gpu, slot in spare.tolist():
        changed = placed.copy()
        changed[gpu, slot] = heaviest
        step = _worth(loads, placed, changed, 1)
        if step is not None and (best is None or step.gain > best.gain):
            best = step
    return best


def _worth(loads: Floats, placed: Ints, changed: Ints, moves: int) -> Move | None:
    gain = worst_gpu(loads, placed) - worst_gpu(loads, changed)
    return Move(changed, moves, gain) if gain > WORTH * moves else None
