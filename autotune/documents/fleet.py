"""A fleet: several models with their loads and limits on several clusters, and the plan that serves them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from autotune.documents.deployment import LEAST_RATE_PER_S, Deployment
from autotune.documents.plan import SolverSummary
from autotune.documents.problem import DEFAULT_LENGTH_TOKENS, DEFAULT_TPOT_S, MAX_GPUS, MAX_SEED, MAX_USD
from cost_models.specs.base import Spec
from cost_models.specs.workload import Workload

MAX_RACKS = 10_000


class FleetModel(Spec):
    """One model to serve: its load and what its users must see."""

    name: str
    """Of the service; two services may run the same model."""
    model: str
    rate_per_s: float = Field(ge=LEAST_RATE_PER_S, le=1e6)
    """Requests per second to serve."""
    workload: Workload = Workload(isl_tokens=DEFAULT_LENGTH_TOKENS, osl_tokens=DEFAULT_LENGTH_TOKENS)
    tpot_limit_s: float = Field(default=DEFAULT_TPOT_S, gt=0, le=60)
    ttft_p50_limit_s: float | None = Field(default=None, gt=0, le=3600)
    ttft_p95_limit_s: float | None = Field(default=None, gt=0, le=3600)
    ttft_p99_limit_s: float | None = Field(default=None, gt=0, le=3600)
    """As of a problem with target `serve`: P99 within 3 s when no percentile is given."""
    precision: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    clusters: tuple[str, ...] = ()
    """Where it may run; everywhere when empty."""


class Cluster(Spec):
    """Racks of one hardware, those that are there and those that may be bought."""

    name: str
    hardware: str
    racks: int = Field(default=0, ge=0, le=MAX_RACKS)
    """That are there."""
    most_racks: int | None = Field(default=None, ge=0, le=MAX_RACKS)
    """There may be, with those bought; none may be bought when absent."""
    rack_gpus: int | None = Field(default=None, gt=0, le=MAX_GPUS)
    """GPUs of a rack: whole scale-up domains; one of them when absent."""
    rack_usd: float | None = Field(default=None, gt=0, le=MAX_USD)
    """Price of one more; needed where racks may be bought."""
    gpu_hour_usd: float | None = Field(default=None, gt=0, le=MAX_USD)
    """What a GPU in use costs; all clusters have it, or none."""

    @model_validator(mode="after")
    def _buyable(self) -> Cluster:
        if self.most_racks is not None and self.most_racks < self.racks:
            raise ValueError(f"most_racks {self.most_racks} is less than the {self.racks} racks that are there")
        if self.for_sale and self.rack_usd is None:
            raise ValueError("give rack_usd, the price of a rack, where more may be bought")
        if not self.racks and not self.for_sale:
            raise ValueError("it has no racks and none may be bought; give racks, or most_racks and rack_usd")
        return self

    @property
    def for_sale(self) -> int:
        """Racks that may be bought."""
        return 0 if self.most_racks is None else self.most_racks - self.racks


class FleetProblem(Spec):
    """What `autotune fleet` is asked; a YAML file has the same fields."""

    models: tuple[FleetModel, ...] = Field(min_length=1)
    clusters: tuple[Cluster, ...] = Field(min_length=1)
    budget_usd: float | None = Field(default=None, ge=0, le=MAX_USD)
    """For racks."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)

    @model_validator(mode="after")
    def _consistent(self) -> FleetProblem:
        for kind, names in (("model", [m.name for m in self.models]), ("cluster", [c.name for c in self.clusters])):
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"the {kind} name '{sorted(twice)[0]}' stands twice; names tell them apart")
        known = {c.name for c in self.clusters}
        for model in self.models:
            if missing := [name for name in model.clusters if name not in known]:
                raise ValueError(
                    f"{model.name} may run on '{missing[0]}', which is no cluster; clusters: {', '.join(sorted(known))}"
                )
        if len({c.gpu_hour_usd is None for c in self.clusters}) > 1:
            raise ValueError("gpu_hour_usd: clusters are compared by cost only when all have a price per GPU hour")
        return self


class FleetPlacement(Spec):
    """One model's service on one cluster: so many replicas of one plan."""

    model: str
    cluster: str
    replicas: int
    gpus_each: int
    """Reserved for a replica, so that replicas of all sizes fill the scale-up domains without gaps."""
    label: str
    kind: str
    requests_per_s_each: float
    """That a replica carries within the limits."""
    share_per_s_each: float
    """That a replica is sent."""
    tpot_s: float
    """At what it carries."""
    ttft_p99_s: float
    probability: float
    """Of meeting the limit least likely to be met, at what it carries."""
    deployment: Deployment
    """Of one replica, with its share of the load."""

    @property
    def gpus(self) -> int:
        """Of all replicas."""
        return self.replicas * self.gpus_each


class ClusterUse(Spec):
    """One cluster of the plan."""

    name: str
    hardware: str
    racks: int
    """With those bought."""
    bought: int
    gpus: int
    used_gpus: int
    usd: float
    """For the racks bought."""


class NextRack(Spec):
    """What one more rack would buy."""

    cluster: str
    growth: float
    """All loads could grow to so many times what they are, served by the fleet with it."""


class FleetResult(Spec):
    """Everything a fleet plan holds; the same document as --json prints and fleet.yaml stores."""

    format: Literal["autotune-fleet/1"] = "autotune-fleet/1"
    placements: tuple[FleetPlacement, ...]
    clusters: tuple[ClusterUse, ...]
    purchase_usd: float
    usd_per_hour: float | None
    """Of the GPUs in use, where they have a price."""
    purchase: SolverSummary
    """Proof that no cheaper racks serve the loads [USD]."""
    running: SolverSummary
    """Proof that no cheaper use of them does: cents an hour, or GPUs in use."""
    growth: float
    """All loads could grow to so many times what they are with these racks."""
    next_racks: tuple[NextRack, ...]
    options: int
    """Services that were found for a model, a cluster and a size."""
    seconds: dict[str, float]

    def of(self, model: str) -> tuple[FleetPlacement, ...]:
        """The plan of one model."""
        return tuple(p for p in self.placements if p.model == model)
