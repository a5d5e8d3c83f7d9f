"""A plan: one deployment, its prediction, and how it was chosen."""

from __future__ import annotations

from typing import Literal

from autotune.documents.deployment import Deployment
from autotune.documents.planned_placement import PlannedPlacement
from autotune.documents.prediction import MeasurementValue, PlanOdds, Prediction, PrefillPrediction
from cost_models.specs.base import Spec
from cost_models.specs.layout import Layout
from search_spaces.schema import Value


class Setting(Spec):
    """A flag that the plan sets otherwise than the engine would, and what the engine's value would cost."""

    name: str
    chosen: Value
    default: Value
    loss: float
    """Throughput lost with the default, everything else as chosen, relative."""
    violates: tuple[str, ...]
    """Constraints that the default breaks."""


class FlagSummary(Spec):
    """What the flag search found for a layout; rates are tokens/s/GPU."""

    origin: str
    """Which candidate won: study, exact, analytic or defaults."""
    tuned: float
    defaults: float
    defaults_latency_s: float
    defaults_violate: tuple[str, ...]
    random: float | None
    """Random search with as many trials; null without trials or when none was feasible."""
    study: float | None
    exact: float | None
    """Exact optimum; null when the space is too large to enumerate."""
    space_size: int
    trials: int
    feasible_trials: int
    settings: tuple[Setting, ...] = ()


class SolverSummary(Spec):
    """What CP-SAT proved about the choice."""

    status: str
    objective: float
    bound: float
    gap: float


class AlternativeSummary(Spec):
    """The best plan of another kind of layout and why it lost."""

    kind: str
    label: str
    tokens_per_s_per_gpu: float
    latency_s: float
    """Time per output token, or of one prompt."""
    reason: str


class RebalancingPoint(Spec):
    """One interval between rebalances with its best window."""

    window_steps: int
    interval_steps: int
    max_over_mean: float
    """Busiest rank / mean, averaged over the interval."""
    tokens_per_s_per_gpu: float
    """Less what placing and moving experts costs."""


class SizeSummary(Spec):
    """The best plan of one instance size; shares are of its step."""

    gpus: int
    label: str
    tokens_per_rank: int
    tokens_per_s_per_gpu: float
    compute_share: float
    """Kernels and small-kernel traffic."""
    communication_share: float
    """Dispatch, combine and all-reduces, less what overlap hides."""
    waiting_share: float
    """Host, launch gaps and copies of offloaded weights that are not hidden."""
    memory_bytes: float


class Plan(Spec):
    """One ranked plan."""

    rank: int
    label: str
    deployment: Deployment
    prediction: Prediction | PrefillPrediction
    flags: FlagSummary
    solver: SolverSummary
    odds: PlanOdds
    placement: PlannedPlacement | None = None
    """Best plan, from recorded expert loads, where the engine loads a map."""

    @property
    def layout(self) -> Layout:
        return self.deployment.pool.layout


class SearchStatistics(Spec):
    """What was searched."""

    layouts: int
    rows: int
    feasible_rows: int
    rows_after_pruning: int
    seconds: dict[str, float]
    """Wall time by stage."""


class SearchResult(Spec):
    """Everything a search returns; the same document as --json prints and plan.yaml stores."""

    format: Literal["autotune-plan/2"] = "autotune-plan/2"
    plans: tuple[Plan, ...]
    alternatives: tuple[AlternativeSummary, ...]
    sizes: tuple[SizeSummary, ...] = ()
    """Prefill: the best of every instance size."""
    rebalancing: tuple[RebalancingPoint, ...] = ()
    """Of the best plan, where experts are rebalanced."""
    statistics: SearchStatistics
    assumed: tuple[str, ...]
    notes: tuple[str, ...]
    measurements: tuple[MeasurementValue, ...] = ()
    """What to measure to be surer of the choice, most valuable first."""

    @property
    def best(self) -> Plan:
        return self.plans[0]
