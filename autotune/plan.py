"""A plan: one deployment, its prediction, and how it was chosen."""

from __future__ import annotations

from typing import Literal

from autotune.deployment import Deployment
from autotune.prediction import Prediction
from autotune.uncertainty import MeasurementValue, PlanOdds
from cost_models.specs.base import Spec
from cost_models.specs.layout import Layout


class FlagSummary(Spec):
    """What the flag search found for a layout; rates are tokens/s/GPU."""

    origin: str
    """Which candidate won: study, exact, analytic or defaults."""
    tuned: float
    defaults: float
    defaults_tpot_s: float
    defaults_violate: tuple[str, ...]
    random: float | None
    """Random search with as many trials; null without trials or when none was feasible."""
    study: float | None
    exact: float | None
    """Exact optimum; null when the space is too large to enumerate."""
    space_size: int
    trials: int
    feasible_trials: int


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
    tpot_s: float
    reason: str


class Plan(Spec):
    """One ranked plan."""

    rank: int
    label: str
    deployment: Deployment
    prediction: Prediction
    flags: FlagSummary
    solver: SolverSummary
    odds: PlanOdds

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

    format: Literal["autotune-plan/1"] = "autotune-plan/1"
    plans: tuple[Plan, ...]
    alternatives: tuple[AlternativeSummary, ...]
    statistics: SearchStatistics
    assumed: tuple[str, ...]
    notes: tuple[str, ...]
    measurements: tuple[MeasurementValue, ...] = ()
    """What to measure to be surer of the choice, most valuable first."""

    @property
    def best(self) -> Plan:
        return self.plans[0]
