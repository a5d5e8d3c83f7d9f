"""How uneven recorded loads leave the ranks of a layout."""

from __future__ import annotations

import numpy as np

from autotune.documents.planned_placement import BusiestGpu, PlannedPlacement
from autotune.placement.eplb import global_placement
from autotune.placement.loads import Loads
from autotune.placement.placing import Placement, balancedness, place
from autotune.placement.solve import gpu_loads, in_order, normalised, pack_layers, replicate
from cost_models.arrays import Floats, Ints, as_floats, distinct_rows
from cost_models.rows import Rows
from cost_models.specs.model import ModelSpec

LAYERS_SAMPLED = 12


class RecordedSkew:
    """Busiest rank / mean of recorded loads, averaged over layers, in the worst workload.

    Engines that load a map are given this program's replicas (packed without swaps: slightly pessimistic), others their own
    EPLB. Every few layers are looked at; results are kept, because a search asks for the same layouts again and again.
    """

    def __init__(self, loads: Loads, *, loads_maps: bool) -> None:
        self.loads = loads
        count = loads.counts.shape[1]
        chosen = np.unique(np.linspace(0, count - 1, min(count, LAYERS_SAMPLED)).round().astype(np.int64))
        self.layers = [normalised(loads.layer(int(i))) for i in chosen]
        self.loads_maps = loads_maps
        self.known: dict[tuple[int, int, int], float] = {}

    def placement_of(self, model: ModelSpec, ep: int, redundant_experts: int, gpus_per_node: int) -> PlannedPlacement:
        """All layers placed for one layout."""
        return planned(place(self.loads, model, ep, redundant_experts, gpus_per_node), self.loads)

    def of_rows(self, rows: Rows) -> Floats:
        """(rows,); NaN where experts are not spread over ranks."""
        first, inverse = distinct_rows(rows.ep, rows.redundant_experts, rows.eplb)
        keys = zip(rows.ep[first], rows.redundant_experts[first], rows.eplb[first], strict=True)
        return as_floats(np.array([self.of(int(ep), int(spare), int(eplb)) for ep, spare, eplb in keys])[inverse])

    def of(self, ep: int, redundant_experts: int, eplb: int) -> float:
        """One layout; NaN where its experts do not divide."""
        key = (ep, redundant_experts, eplb)
        if key not in self.known:
            slots = self.layers[0].shape[1] + redundant_experts
            self.known[key] = np.nan if ep == 1 or slots % ep else self._skew(ep, slots, bool(eplb))
        return self.known[key]

    def _skew(self, ep: int, slots: int, balanced: bool) -> float:
        placed = self._placed(ep, slots, balanced)
        ratios = np.stack([gpu_loads(layer, one).max(axis=1) * ep for layer, one in zip(self.layers, placed, strict=True)])
        return float(ratios.mean(axis=0).max())

    def _placed(self, ep: int, slots: int, balanced: bool) -> Ints:
        """Of every layer looked at, (layers, ranks, slots per rank)."""
        if not balanced:
            return np.stack([in_order(layer.shape[1], slots, ep) for layer in self.layers])
        if self.loads_maps:
            return pack_layers(np.stack(self.layers), np.stack([replicate(layer, slots) for layer in self.layers]), ep)
        return global_placement(np.stack([layer.sum(axis=0) for layer in self.layers]), slots, ep)


def planned(placement: Placement, loads: Loads) -> PlannedPlacement:
    """A placement as plans store it, with the loads it was made from."""
    lines = tuple(" | ".join(" ".join(map(str, gpu)) for gpu in layer) for layer in placement.experts)
    return PlannedPlacement(
        gpus=placement.gpus,
        slots=placement.slots,
        balanced=placement.balance.worst_scenario,
        eplb_balanced=placement.eplb.worst_scenario,
        median_gap=placement.median_gap,
        busiest=_busiest(placement, loads),
        layers=lines,
    )


def _busiest(placement: Placement, loads: Loads) -> tuple[BusiestGpu, ...]:
    """Max / mean is the inverse of balancedness, mean / max."""
    layers, experts = loads.counts.shape[1:]
    before = balancedness(loads, np.stack([in_order(experts, placement.slots, placement.gpus)] * layers)).min(axis=0)
    return tuple(
        BusiestGpu(
            layer=entry.layer, in_order=1 / float(linear), eplb=1 / entry.eplb, placed=1 / entry.placed, bound=1 / entry.bound
        )
        for entry, linear in zip(placement.layers, before, strict=True)
    )
