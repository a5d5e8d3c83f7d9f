"""What `autotune check` says of a plan."""

from __future__ import annotations

from typing import Literal

from autotune.auditing.goals import GoalLine
from autotune.documents.deployment import PoolRole
from autotune.documents.prediction import MemoryLine
from cost_models.specs.base import Spec

Answer = Literal["works", "does not work", "cannot say"]
"""Cannot say: an option changes what the answer rests on, and no model here knows how."""
EXIT_CODES: dict[Answer, int] = {"works": 0, "does not work": 2, "cannot say": 3}
"""Of `autotune check`; 1 is an error."""


class PoolMemory(Spec):
    """One GPU of a pool."""

    phase: PoolRole
    lines: tuple[MemoryLine, ...]
    """Largest first."""
    total_bytes: float
    limit_bytes: float

    @property
    def over_bytes(self) -> float:
        """Memory missing; negative when it fits."""
        return self.total_bytes - self.limit_bytes

    @property
    def fits(self) -> bool:
        return self.over_bytes <= 0


class SmallestChange(Spec):
    """A plan that works, and what has to change for it."""

    changes: tuple[str, ...]
    tokens_per_s_per_gpu: float
    latency_s: float
    gpus: int
    missing: tuple[str, ...] = ()
    """What still does not hold; empty when it works."""


class Verdict(Spec):
    """What is to be said of a plan."""

    works: bool
    """Starts, fits, and meets every goal, as far as it can be said."""
    answer: Answer
    unmodelled: tuple[str, ...]
    """Why it cannot be said; empty where it can."""
    conflicts: tuple[str, ...]
    """Why the engine would not start it."""
    fits: bool
    memory: tuple[PoolMemory, ...]
    """Of every pool."""
    goals: tuple[GoalLine, ...]
    tokens_per_s_per_gpu: float | None
    """None where the plan cannot be priced because it does not fit."""
    latency_s: float | None
    """Of a decode pool or a service: mean time per output token. Of a prefill pool: of one prompt."""
    ttft_p99_s: float | None
    """Of a service."""
    gpus: int
    bottleneck: str
    remarks: tuple[str, ...]
    """Settings that waste something, and what the engine ignores."""
    changes: tuple[SmallestChange, ...]
    """Fewest changes first; empty when the plan works. When nothing looked at works, the one that comes nearest."""
    looked_at: int
