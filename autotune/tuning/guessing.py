"""What the model says of candidates before anything is measured: the prior mean of everything that is learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.documents.deployment import Deployment, Load
from autotune.documents.prediction import ServicePrediction
from autotune.documents.tuned import LAG, RATE, Quantities, lag_of
from autotune.serving.errors import QUANTILE_SIGMAS, service_errors
from autotune.serving.predicting import predict_service
from autotune.tuning.space import TuneCandidate, TuneSpace
from cost_models.errors import AutotuneError

BANDS = {"ttft_s": "ttft", "ttft_p50_s": "ttft_p50", "ttft_p95_s": "ttft_p99", "ttft_p99_s": "ttft_p99", "tpot_s": "tpot"}
"""Quantity -> the error band of services that it lies in."""


@dataclass(frozen=True, slots=True)
class PriorBand:
    """Of log(measured / predicted) of one quantity, before anything is measured."""

    mean: float
    sigma: float


@dataclass
class Guesses:
    """Predictions of candidates, each made once."""

    space: TuneSpace
    known: dict[TuneCandidate, Quantities | str] = field(default_factory=dict)

    def of(self, candidate: TuneCandidate) -> Quantities | None:
        """What the model predicts; none where it says that the candidate does not run."""
        found = self._found(candidate)
        return found if isinstance(found, dict) else None

    def why_not(self, candidate: TuneCandidate) -> str:
        """Why there is no prediction; empty where there is one."""
        found = self._found(candidate)
        return found if isinstance(found, str) else ""

    def _found(self, candidate: TuneCandidate) -> Quantities | str:
        if candidate not in self.known:
            try:
                self.known[candidate] = predicted_quantities(self.space.one_instance(candidate))
            except AutotuneError as error:
                self.known[candidate] = str(error)
        return self.known[candidate]

    def all(self) -> dict[TuneCandidate, Quantities]:
        """Every candidate of the space that the model says runs."""
        found = {candidate: self.of(candidate) for candidate in self.space.everything()}
        return {candidate: guess for candidate, guess in found.items() if guess is not None}

    def bands(self) -> dict[str, PriorBand]:
        """How far services on this engine lay from their predictions."""
        errors = service_errors().of(False, self.space.deployment.engine.name)
        ratios = {RATE: errors.tokens_per_s, **{name: getattr(errors, band) for name, band in BANDS.items()}}
        return {LAG: LAG_BAND, **{name: _band(ratio.low, ratio.high) for name, ratio in ratios.items()}}


LAG_BAND = PriorBand(0.0, 0.1)
"""Assumed: runs of an open loop last as long as predicted, where throughput does."""


def predicted_quantities(one: Deployment) -> Quantities:
    """Of one instance under its load, by name, as `MeasuredLoad.quantities`."""
    prediction = predict_service(one)
    ttft, load = prediction.ttft_s, one.load
    found = {} if load is None or not load.rate_per_s or not load.requests else {LAG: _lag(one, load, prediction)}
    return found | {
        RATE: prediction.tokens_per_s_per_gpu,
        "ttft_s": ttft.mean,
        "ttft_p50_s": ttft.p50,
        "ttft_p95_s": ttft.p95,
        "ttft_p99_s": ttft.p99,
        "tpot_s": prediction.tpot_s.mean,
    }


def _lag(one: Deployment, load: Load, prediction: ServicePrediction) -> float:
    osl = one.workload.osl_tokens * (1 + load.shortest) / 2
    assert load.rate_per_s
    assert load.requests
    duration_s = load.requests * osl / prediction.tokens_per_s
    return lag_of(duration_s, load.requests, load.rate_per_s, osl * prediction.tpot_s.mean)


def worst_excess(values: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """The largest of value / limit - 1 over the limits; met at 0 and below."""
    return max((values[name] / limit - 1 for name, limit in limits.items() if name in values), default=-1.0)


def _band(low: float, high: float) -> PriorBand:
    """A log-normal ratio between its 10 % and 90 % quantiles."""
    return PriorBand((math.log(low) + math.log(high)) / 2, (math.log(high) - math.log(low)) / QUANTILE_SIGMAS)
