"""Services that a fleet can be made of: every model on every cluster in every size, swept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autotune.documents.fleet import Cluster, FleetModel, FleetProblem
from autotune.documents.sweep import Found, SweptRow
from autotune.errors import ProblemError
from autotune.layouts.enumerate import instance_sizes
from cost_models.catalog import load_hardware
from cost_models.specs.hardware import HardwareSpec

DOMAINS = (2, 4, 8)
"""Scale-up domains of one service, beyond the parts of one domain."""
MILLI = 1000


@dataclass(frozen=True, slots=True)
class Site:
    """A cluster with its hardware."""

    cluster: Cluster
    hardware: HardwareSpec
    rack_gpus: int

    @classmethod
    def of(cls, cluster: Cluster) -> Site:
        """Raises ProblemError where racks are no whole domains, or hold more than the hardware has."""
        hardware = load_hardware(cluster.hardware)
        domain = hardware.scale_up.domain_gpus
        gpus = cluster.rack_gpus or domain
        if gpus % domain:
            raise ProblemError(f"cluster {cluster.name}: rack_gpus {gpus} are no whole scale-up domains of {domain} GPUs")
        most = gpus * (cluster.racks + cluster.for_sale)
        if hardware.max_gpus and most > hardware.max_gpus:
            raise ProblemError(f"cluster {cluster.name}: {most} GPUs, {hardware.name} has {hardware.max_gpus}")
        return cls(cluster, hardware, gpus)

    @property
    def most_gpus(self) -> int:
        return self.rack_gpus * (self.cluster.racks + self.cluster.for_sale)

    def sizes(self) -> list[int]:
        """GPUs of a service: parts of a domain, each a divisor of the next, then whole domains.

        Services of such sizes fill domains without gaps, largest first, whenever their sum fits: GPUs need only be counted.
        """
        domain = self.hardware.scale_up.domain_gpus
        parts = [domain]
        for size in sorted(instance_sizes(self.hardware, domain), reverse=True):
            if size < parts[-1] and parts[-1] % size == 0:
                parts.append(size)
        return [size for size in [*sorted(parts), *(domain * n for n in DOMAINS)] if size <= self.most_gpus]


@dataclass(frozen=True, slots=True)
class FleetOption:
    """One service of a model on a cluster."""

    model: FleetModel
    site: Site
    gpus: int
    found: Found

    @property
    def rate_milli(self) -> int:
        """Requests that it carries [mHz], rounded down."""
        return int((self.found.requests_per_s or 0.0) * MILLI)


@dataclass(frozen=True, slots=True)
class Asked:
    """A service to look for."""

    model: FleetModel
    site: Site
    gpus: int

    def problem(self) -> dict[str, Any]:
        """As a problem that serves as much as its limits allow."""
        same = ("model", "tpot_limit_s", "ttft_p50_limit_s", "ttft_p95_limit_s", "ttft_p99_limit_s", "precision", "engine",
                "engine_version")  # fmt: skip
        asked = self.model.model_dump(mode="json", exclude_none=True)
        return {
            "hardware": self.site.cluster.hardware,
            "target": "serve",
            "gpus": self.gpus,
            "objective": "tokens_per_s",
            "workload": asked["workload"],
            **{name: asked[name] for name in same if name in asked},
        }


def asked_of(problem: FleetProblem) -> list[Asked]:
    """Every model on every cluster that it may run on, in every size."""
    sites = [Site.of(cluster) for cluster in problem.clusters]
    return [
        Asked(model, site, gpus)
        for model in problem.models
        for site in sites
        if not model.clusters or site.cluster.name in model.clusters
        for gpus in site.sizes()
    ]


def options_of(asked: Sequence[Asked], rows: Sequence[SweptRow]) -> list[FleetOption]:
    """Those services that there are; raises ProblemError for input that makes no sense, and for what failed."""
    options = []
    for one, row in zip(asked, rows, strict=True):
        if row.found.status in ("bad", "failed"):
            raise ProblemError(f"{one.model.name} on {one.site.cluster.name}, {one.gpus} GPUs: {row.found.message}")
        option = FleetOption(one.model, one.site, one.gpus, row.found)
        if row.found.status == "plan" and option.rate_milli > 0:
            options.append(option)
    return options
