"""Measured deployments and their predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from autotune.documents.deployment import Deployment
from autotune.documents.prediction import Interval, Prediction, PrefillPrediction, ServicePrediction
from autotune.files import packaged
from autotune.predicting.step import predict
from autotune.predicting.uncertainty import uncertainty
from autotune.serving.predicting import predict_service
from cost_models.catalog import read_yaml, validated
from cost_models.errors import AutotuneError
from cost_models.specs.base import Spec

PUBLISHED = ("published_decode.yaml", "published_prefill.yaml", "published_service.yaml")


MeasuredRate = Annotated[float, Field(ge=1e-6, le=1e12)]
"""[1/s]; errors are relative to it."""
MeasuredTime = Annotated[float, Field(ge=1e-9, le=1e9)]
"""[s]."""


class Measured(Spec):
    """What was measured; at least the throughput."""

    tokens_per_s_per_gpu: MeasuredRate
    """Generated tokens of a decode pool, prompt tokens of a prefill pool."""
    tpot_s: MeasuredTime | None = None
    ttft_s: MeasuredTime | None = None
    """Mean time to first token of a service."""


class Case(Spec):
    """One measured deployment."""

    id: str
    title: str
    source: str
    date: str
    named: bool = True
    """Counts in the headline error; the others are reported beside it."""
    decision: str | None = None
    """Cases of the same name are alternatives: which of them is best?"""
    assumptions: tuple[str, ...] = ()
    deployment: Deployment
    measured: Measured


class CaseFile(Spec):
    """A file of cases; `autotune schema case` publishes its JSON schema."""

    format: Literal["autotune-cases/1"] = "autotune-cases/1"
    title: str
    not_expressed: tuple[str, ...] = ()
    cases: tuple[Case, ...] = Field(min_length=1)


class CaseResult(Spec):
    """A case with its prediction."""

    case: Case
    prediction: Prediction | PrefillPrediction | ServicePrediction

    @property
    def throughput_error(self) -> float:
        """Relative error of tokens/s/GPU; positive when the prediction is high."""
        return self.prediction.tokens_per_s_per_gpu / self.case.measured.tokens_per_s_per_gpu - 1

    @property
    def predicted_tpot_s(self) -> float | None:
        """Mean TPOT; none for a prefill pool."""
        if isinstance(self.prediction, ServicePrediction):
            return self.prediction.tpot_s.mean
        return self.prediction.tpot_s if isinstance(self.prediction, Prediction) else None

    @property
    def tpot_error(self) -> float | None:
        measured, predicted = self.case.measured.tpot_s, self.predicted_tpot_s
        return None if measured is None or predicted is None else predicted / measured - 1

    @property
    def ttft_error(self) -> float | None:
        measured = self.case.measured.ttft_s
        if measured is None or not isinstance(self.prediction, ServicePrediction):
            return None
        return self.prediction.ttft_s.mean / measured - 1

    @property
    def interval(self) -> Interval:
        """80 % interval of tokens/s/GPU."""
        if isinstance(self.prediction, ServicePrediction):
            return self.prediction.intervals.tokens_per_s_per_gpu
        return uncertainty(self.prediction).tokens_per_s_per_gpu

    @property
    def covered(self) -> bool:
        """Whether the measured throughput lies in the 80 % interval."""
        return self.interval.low <= self.case.measured.tokens_per_s_per_gpu <= self.interval.high


def load_cases(path: Path) -> CaseFile:
    """A user's case file."""
    return validated(CaseFile, read_yaml(path), str(path))


def published() -> list[CaseFile]:
    """The published cases that ship with the package, one file per phase."""
    return [packaged(CaseFile, "cases", name) for name in PUBLISHED]


class Unpriced(Spec):
    """A case that has no prediction."""

    id: str
    reason: str


def run_cases(cases: CaseFile) -> list[CaseResult]:
    """Predict every case; raises AutotuneError where one cannot be priced."""
    return [CaseResult(case=case, prediction=predict_any(case.deployment)) for case in cases.cases]


def try_cases(cases: CaseFile) -> tuple[list[CaseResult], list[Unpriced]]:
    """Predict every case that can be priced, and name the others."""
    results: list[CaseResult] = []
    unpriced: list[Unpriced] = []
    for case in cases.cases:
        try:
            results.append(CaseResult(case=case, prediction=predict_any(case.deployment)))
        except AutotuneError as error:
            unpriced.append(Unpriced(id=case.id, reason=str(error)))
    return results, unpriced


def predict_any(deployment: Deployment) -> Prediction | PrefillPrediction | ServicePrediction:
    """The prediction of a deployment of any phase."""
    return predict_service(deployment) if deployment.phase == "serve" else predict(deployment)
