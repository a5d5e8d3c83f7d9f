"""A service plan: both pools or an aggregated one, what requests see, and what it costs."""

from __future__ import annotations

from typing import Literal

from autotune.documents.deployment import Deployment
from autotune.documents.plan import SearchStatistics, SolverSummary
from autotune.documents.prediction import ServicePrediction
from cost_models.specs.base import Spec

Kind = Literal["aggregated", "disaggregated"]


class LimitOutcome(Spec):
    """One limit on what requests see."""

    name: str
    predicted: float
    limit: float
    probability: float
    """Of meeting it, from how far measured services lay from their predictions."""

    @property
    def met(self) -> bool:
        """Whether the prediction meets it."""
        return self.predicted <= self.limit


class PoolSummary(Spec):
    """One pool of a service plan."""

    phase: Literal["prefill", "decode", "serve"]
    label: str
    hardware: str
    gpus: int
    planned_requests_per_s: float
    """What it was planned for: full steps less room for Poisson arrivals. A replay may find that it carries more, or less."""
    transfer_requests_per_s: float | None
    """What its links can hand over; none for an aggregated pool."""


class ServicePlan(Spec):
    """One ranked service."""

    rank: int
    kind: Kind
    label: str
    deployment: Deployment
    prediction: ServicePrediction
    objectives: tuple[LimitOutcome, ...]
    pools: tuple[PoolSummary, ...]
    bound_by: str
    """What keeps it from serving more."""
    usd_per_million_tokens: float | None
    """Of output, where prices are given."""
    solver: SolverSummary

    @property
    def meets_limits(self) -> bool:
        """Whether every limit is predicted to hold and the load is carried."""
        return all(objective.met for objective in self.objectives) and not self.prediction.overloaded


class ParetoPoint(Spec):
    """The best of one kind at one speed per user, before rounding to whole instances."""

    kind: Kind
    tokens_per_s_per_user: float
    tokens_per_s_per_gpu: float
    label: str


class ServiceResult(Spec):
    """Everything a service search returns; the same document as --json prints and plan.yaml stores."""

    format: Literal["autotune-service-plan/2"] = "autotune-service-plan/2"
    plans: tuple[ServicePlan, ...]
    verdict: str
    """Aggregated or disaggregated, by how much and why."""
    pareto: tuple[ParetoPoint, ...]
    statistics: SearchStatistics
    assumed: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> ServicePlan:
        return self.plans[0]
