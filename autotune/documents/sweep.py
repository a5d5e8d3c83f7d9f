"""What a sweep found: one row for every problem, in the order of its scenario file."""

from __future__ import annotations

from typing import Any, Literal

from autotune.documents.deployment import Deployment
from cost_models.specs.base import Spec

Status = Literal["plan", "infeasible", "bad", "failed"]
"""plan: there is one. infeasible: there is none, and the message says why. bad: input that makes no sense. failed: no answer (a
worker died, a fault of the program); tried again when the sweep is run again."""


class Found(Spec):
    """What the search of one problem found; of its best plan, where there is one."""

    status: Status
    message: str = ""
    kind: str | None = None
    """decode, prefill, or aggregated and disaggregated services."""
    label: str | None = None
    gpus: int | None = None
    """That the plan uses."""
    tokens_per_s_per_gpu: float | None = None
    low_tokens_per_s_per_gpu: float | None = None
    """80 % interval."""
    high_tokens_per_s_per_gpu: float | None = None
    tokens_per_s: float | None = None
    requests_per_s: float | None = None
    """Services: carried within the limits."""
    tpot_s: float | None = None
    """Time per output token; the mean of a service."""
    prompt_s: float | None = None
    """Prefill: one prompt when nothing waits."""
    ttft_p99_s: float | None = None
    probability: float | None = None
    """Of meeting the latency limit; services: the limit least likely to be met."""
    deployment: Deployment | None = None


class SweptRow(Spec):
    """One problem of a scenario file and what was found."""

    number: int
    """From 1, in the order of the file; grids count their last field fastest."""
    line: int | None = None
    """Of the scenario file: where the problem, or the value of the grid that makes it bad, stands."""
    problem: dict[str, Any]
    """As asked."""
    found: Found


class SweepResult(Spec):
    """Everything a sweep returns; the same document as --json prints."""

    format: Literal["autotune-sweep/1"] = "autotune-sweep/1"
    rows: tuple[SweptRow, ...]
    solved: int
    """Problems solved in this run; the others were known already, alike or bad."""
    seconds: float
    """Wall time of this run."""

    def with_status(self, status: Status) -> tuple[SweptRow, ...]:
        """Rows of one status."""
        return tuple(row for row in self.rows if row.found.status == status)
