"""What a search weighed: one line per layout and step size, for charts and for questions about a choice."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from autotune.documents.prediction import NOT_GROUPED
from cost_models.specs.base import Spec


class Candidates(Spec):
    """Costed candidates as columns of equal length; the best variant (backend, overlap, drafts) of each layout and step size."""

    format: Literal["autotune-candidates/1"] = "autotune-candidates/1"
    phase: Literal["decode", "prefill"]
    latency_limit_s: float
    memory_limit_bytes: float
    layouts: tuple[str, ...]
    """Names of the layouts, e.g. DP48 EP48."""
    layout: tuple[int, ...]
    """Position in `layouts`."""
    size: tuple[int, ...]
    """Sequences (decode) or tokens (prefill) of a DP rank and step."""
    gpus: tuple[int, ...]
    """Of one instance."""
    variant: tuple[str, ...]
    """All-to-all backend, overlap and drafts, in words."""
    latency_s: tuple[float, ...]
    """Time per output token, or of one prompt."""
    tokens_per_s_per_gpu: tuple[float, ...]
    memory_bytes: tuple[float, ...]
    """Of one GPU."""
    chance: tuple[float, ...]
    """Of meeting the latency limit, as if all its error were log-normal with the best plan's error per operator."""
    violates: tuple[str, ...]
    """Constraint families that it breaks, separated by blanks; empty where it is feasible."""
    operators: dict[str, tuple[float, ...]]
    """Seconds of a step by operator; `overlap` is what it hides and negative."""
    groups: dict[str, str] = Field(default_factory=dict)
    """What kind of work each operator is; files of before have none."""

    @model_validator(mode="after")
    def _columns_are_equally_long(self) -> Candidates:
        columns = (self.size, self.gpus, self.variant, self.latency_s, self.tokens_per_s_per_gpu, self.memory_bytes, self.chance)
        lengths = {len(column) for column in (*columns, self.layout, self.violates, *self.operators.values())}
        if len(lengths) > 1:
            raise ValueError(f"columns of {sorted(lengths)} lines")
        if any(not 0 <= i < len(self.layouts) for i in self.layout):
            raise ValueError(f"layout numbers must lie in 0..{len(self.layouts) - 1}")
        return self

    def group_of(self, operator: str) -> str:
        """The group that a chart draws an operator in."""
        return self.groups.get(operator, NOT_GROUPED)

    def __len__(self) -> int:
        return len(self.layout)
