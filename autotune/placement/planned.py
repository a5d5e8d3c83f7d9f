"""A placement as a plan stores it: one line of text per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cost_models.specs.base import Spec

if TYPE_CHECKING:
    from autotune.placement.placing import Placement


class PlannedPlacement(Spec):
    """Where every replica lies, and how balanced that is in the worst recorded workload."""

    gpus: int
    slots: int
    balanced: float
    """Mean / max load over GPUs, averaged over layers, in the worst workload."""
    eplb_balanced: float
    """The same of EPLB's placement."""
    median_gap: float
    layers: tuple[str, ...]
    """Logical experts of every MoE layer: GPUs separated by " | ", their slots by blanks."""

    @classmethod
    def of(cls, placement: Placement) -> PlannedPlacement:
        """A placement, shortened."""
        lines = tuple(" | ".join(" ".join(map(str, gpu)) for gpu in layer) for layer in placement.experts)
        return cls(
            gpus=placement.gpus,
            slots=placement.slots,
            balanced=placement.balance.worst_scenario,
            eplb_balanced=placement.eplb.worst_scenario,
            median_gap=placement.median_gap,
            layers=lines,
        )

    @property
    def experts(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Logical experts by MoE layer, GPU and slot."""
        return tuple(tuple(tuple(map(int, gpu.split())) for gpu in line.split("|")) for line in self.layers)
