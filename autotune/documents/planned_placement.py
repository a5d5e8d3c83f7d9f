"""A placement as a plan stores it: one line of text per layer."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from cost_models.specs.base import Spec

GPU = r"[0-9]{1,6}( [0-9]{1,6})*"
Line = Annotated[str, StringConstraints(pattern=rf"^{GPU}( \| {GPU})*$")]
"""Experts of a layer: GPUs separated by " | ", their slots by blanks."""


class PlannedPlacement(Spec):
    """Where every replica lies, and how balanced that is in the worst recorded workload."""

    gpus: int
    slots: int
    balanced: float
    """Mean / max load over GPUs, averaged over layers, in the worst workload."""
    eplb_balanced: float
    """The same of EPLB's placement."""
    median_gap: float
    layers: tuple[Line, ...]
    """Logical experts of every MoE layer."""

    @property
    def experts(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Logical experts by MoE layer, GPU and slot."""
        return tuple(tuple(tuple(map(int, gpu.split())) for gpu in line.split("|")) for line in self.layers)
