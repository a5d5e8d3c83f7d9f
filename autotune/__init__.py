"""Optimization-based parallelism autotuner for LLM inference.

import autotune
result = autotune.search(autotune.Problem(hardware="gb200-nvl72"))
print(result.best.label, result.best.prediction.tokens_per_s_per_gpu)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.deployment import Deployment
    from autotune.errors import NoFeasiblePlan
    from autotune.exporters import export
    from autotune.plan import Plan, SearchResult
    from autotune.predicting import predict
    from autotune.prediction import Prediction
    from autotune.problem import Problem
    from autotune.searching import search
    from autotune.services.plan import ServicePlan, ServiceResult
    from autotune.services.searching import search_services
    from autotune.serving.predicting import predict_service
    from cost_models.errors import AutotuneError

_PUBLIC = {
    "AutotuneError": "cost_models.errors",
    "Deployment": "autotune.deployment",
    "NoFeasiblePlan": "autotune.errors",
    "Plan": "autotune.plan",
    "Prediction": "autotune.prediction",
    "Problem": "autotune.problem",
    "SearchResult": "autotune.plan",
    "ServicePlan": "autotune.services.plan",
    "ServiceResult": "autotune.services.plan",
    "export": "autotune.exporters",
    "predict": "autotune.predicting",
    "predict_service": "autotune.serving.predicting",
    "search": "autotune.searching",
    "search_services": "autotune.services.searching",
}

__all__ = [
    "AutotuneError",
    "Deployment",
    "NoFeasiblePlan",
    "Plan",
    "Prediction",
    "Problem",
    "SearchResult",
    "ServicePlan",
    "ServiceResult",
    "export",
    "predict",
    "predict_service",
    "search",
    "search_services",
]


def __getattr__(name: str) -> Any:
    """Load public names on first use, so that `autotune --help` stays quick."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'autotune' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
