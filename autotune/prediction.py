"""What a prediction says, as typed documents that print, serialise and compare."""

from __future__ import annotations

from cost_models.specs.base import Spec


class OperatorLine(Spec):
    """One operator of a step."""

    name: str
    time_s: float
    share: float
    """Share of the step."""
    bound_s: float
    """Roofline: peak FLOPs, bytes at full bandwidth, or link line rate; 0 where none is defined."""
    status: str
    """measured, transferred, assumed or datasheet."""
    outside_box: tuple[str, ...] = ()
    family: str = ""
    """Calibration family and variant that priced it."""
    held_out_sigma: float | None = None
    """Standard deviation of log(measured / predicted) on held-out shapes, where it was fitted."""

    @property
    def over_bound(self) -> float | None:
        """Time / roofline."""
        return self.time_s / self.bound_s if self.bound_s > 0 else None


class MemoryLine(Spec):
    """One line of a GPU's memory."""

    name: str
    bytes: float


class Prediction(Spec):
    """A predicted decode step and what follows from it."""

    tokens_per_s_per_gpu: float
    tokens_per_s: float
    """All instances together."""
    tpot_s: float
    step_s: float
    accepted_tokens_per_step: float
    gpus: int
    concurrency: int
    """Sequences decoding at once in all instances."""
    context_tokens: float
    operators: tuple[OperatorLine, ...]
    layer_kinds: dict[str, float]
    """Seconds per step in dense layers, MoE layers, head and host."""
    memory: tuple[MemoryLine, ...]
    memory_total_bytes: float
    memory_limit_bytes: float
    kv_capacity_tokens: float
    """KV tokens of one DP rank that the memory limit leaves room for."""
    fits: bool
    bottleneck: str
    calibration: str
    notes: tuple[str, ...] = ()
