"""Optimization-based parallelism autotuner for LLM inference.

import autotune
result = autotune.search(autotune.Problem(hardware="gb200-nvl72"))
print(result.best.label, result.best.prediction.tokens_per_s_per_gpu)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.documents.deployment import Deployment
    from autotune.documents.fleet import FleetProblem, FleetResult
    from autotune.documents.plan import Plan, SearchResult
    from autotune.documents.prediction import Prediction
    from autotune.documents.problem import Problem
    from autotune.documents.service_plan import ServicePlan, ServiceResult
    from autotune.documents.sweep import SweepResult
    from autotune.errors import NoFeasiblePlan
    from autotune.exporters import export
    from autotune.fleets.planning import fleet
    from autotune.predicting.step import predict
    from autotune.searching.pools import search
    from autotune.searching.services.searching import search_services
    from autotune.serving.predicting import predict_service
    from autotune.sweeping.running import sweep
    from cost_models.errors import AutotuneError

_PUBLIC = {
    "AutotuneError": "cost_models.errors",
    "Deployment": "autotune.documents.deployment",
    "NoFeasiblePlan": "autotune.errors",
    "Plan": "autotune.documents.plan",
    "Prediction": "autotune.documents.prediction",
    "Problem": "autotune.documents.problem",
    "SearchResult": "autotune.documents.plan",
    "ServicePlan": "autotune.documents.service_plan",
    "ServiceResult": "autotune.documents.service_plan",
    "export": "autotune.exporters",
    "fleet": "autotune.fleets.planning",
    "FleetProblem": "autotune.documents.fleet",
    "FleetResult": "autotune.documents.fleet",
    "predict": "autotune.predicting.step",
    "predict_service": "autotune.serving.predicting",
    "search": "autotune.searching.pools",
    "search_services": "autotune.searching.services.searching",
    "sweep": "autotune.sweeping.running",
    "SweepResult": "autotune.documents.sweep",
}

__all__ = [
    "AutotuneError",
    "Deployment",
    "FleetProblem",
    "FleetResult",
    "NoFeasiblePlan",
    "Plan",
    "Prediction",
    "Problem",
    "SearchResult",
    "ServicePlan",
    "ServiceResult",
    "SweepResult",
    "export",
    "fleet",
    "predict",
    "predict_service",
    "search",
    "search_services",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Load public names on first use, so that `autotune --help` stays quick."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'autotune' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
