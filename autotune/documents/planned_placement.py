"""A placement as a plan stores it: one line of text per layer."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from cost_models.specs.base import Spec

GPU = r"[0-9]{1,6}( [0-9]{1,6})*"
Line = Annotated[str, StringConstraints(pattern=rf"^{GPU}( \| {GPU})*$")]
"""Experts of a layer: GPUs separated by " | ", their slots by blanks."""


class BusiestGpu(Spec):
    """Load of one MoE layer's busiest GPU over the mean of all, in that layer's worst workload."""

    layer: int
    in_order: float
    """Experts by number: before any placement."""
    eplb: float
    placed: float
    bound: float
    """No placement of so many slots has less."""


class PlannedPlacement(Spec):
    """Where every replica lies, and how balanced that is in the worst recorded workload."""

    gpus: int
    slots: int
    balanced: float
    """Mean / max load over GPUs, averaged over layers, in the worst workload."""
    eplb_balanced: float
    """The same of EPLB's placement."""
    median_gap: float
    busiest: tuple[BusiestGpu, ...] = ()
    """By layer; none in plans of older versions."""
    layers: tuple[Line, ...]
    """Logical experts of every MoE layer."""

    @property
    def experts(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Logical experts by MoE layer, GPU and slot."""
        return tuple(tuple(tuple(map(int, gpu.split())) for gpu in line.split("|")) for line in self.layers)
