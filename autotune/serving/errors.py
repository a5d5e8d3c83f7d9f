"""Error bars of services: how far measured points lay from their predictions."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import NamedTuple, Self

from pydantic import Field, model_validator

from autotune.documents.prediction import Percentiles, ServiceIntervals, SkewedInterval
from autotune.files import packaged
from cost_models.specs.base import Spec

QUANTILE_SIGMAS = 2.563
"""Standard deviations between the 10 % and 90 % quantiles of a normal distribution."""


class ErrorBand(Spec):
    """10, 50 and 90 % quantiles of measured / predicted [-]."""

    low: float = Field(gt=0)
    middle: float = Field(gt=0)
    high: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.middle < self.high:
            raise ValueError(f"quantiles must grow: {self.low}, {self.middle}, {self.high}")
        return self

    def around(self, predicted: float) -> SkewedInterval:
        return SkewedInterval(low=predicted * self.low, middle=predicted * self.middle, high=predicted * self.high)


class ModeErrors(Spec):
    """Bands of aggregated, or of disaggregated, services of one engine."""

    points: int = Field(gt=0)
    """Measured."""
    ttft: ErrorBand
    """Of the mean."""
    ttft_p50: ErrorBand
    ttft_p99: ErrorBand
    tpot: ErrorBand
    tokens_per_s: ErrorBand

    def intervals(self, ttft_s: Percentiles, tpot_s: Percentiles, tokens_per_s_per_gpu: float) -> ServiceIntervals:
        """80 % intervals; not centred, because the errors are not."""
        return ServiceIntervals(
            ttft_s=self.ttft.around(ttft_s.mean),
            ttft_p50_s=self.ttft_p50.around(ttft_s.p50),
            ttft_p95_s=self.ttft_p99.around(ttft_s.p95),
            ttft_p99_s=self.ttft_p99.around(ttft_s.p99),
            tpot_s=self.tpot.around(tpot_s.mean),
            tokens_per_s_per_gpu=self.tokens_per_s.around(tokens_per_s_per_gpu),
        )


class ServiceErrors(Spec):
    """Bands that ship with the package."""

    source: str
    aggregated: dict[str, ModeErrors]
    """By engine; `default` of engines without measured services."""
    disaggregated: dict[str, ModeErrors]

    def of(self, disaggregated: bool, engine: str) -> ModeErrors:
        """Bands of a kind of service on an engine."""
        bands = self.disaggregated if disaggregated else self.aggregated
        return bands.get(engine, bands["default"])


@functools.cache
def service_errors() -> ServiceErrors:
    """Load the bands, once."""
    return packaged(ServiceErrors, "service_errors.yaml")


class Spread(NamedTuple):
    """Quantiles of measured over predicted (10, 50, 90 %) [-]: log-normal on either side of the median, each its own.

    One log-normal through the outer two would put the median of a long tail where few runs are: of aggregated SGLang (TTFT P99
    0.6 to 7.5 times predicted) at 2.15 instead of 1.15.
    """

    low: float
    middle: float
    high: float

    def probability_below(self, ratio: float) -> float:
        """Share of runs whose measured / predicted stays below a ratio."""
        away = math.log(ratio / self.middle)
        side = math.log(self.middle / self.low) if away < 0 else math.log(self.high / self.middle)
        return NormalDist().cdf(away / side * QUANTILE_SIGMAS / 2)

    def quantile(self, probability: float) -> float:
        """The ratio that runs stay below with a probability."""
        sigmas = NormalDist().inv_cdf(probability)
        side = math.log(self.middle / self.low) if sigmas < 0 else math.log(self.high / self.middle)
        return self.middle * math.exp(sigmas * side / QUANTILE_SIGMAS * 2)


def spread_of(interval: SkewedInterval, predicted: float) -> Spread:
    """Of measured over predicted; predicted : what the interval is about, above 0."""
    middle = interval.middle if interval.middle is not None else math.sqrt(interval.low * interval.high)
    return Spread(interval.low / predicted, middle / predicted, interval.high / predicted)


def probability_below(predicted: float, limit: float, interval: SkewedInterval) -> float:
    """Of a measured value staying under a limit; 1 where 0 is predicted (answers of one token have no time between tokens)."""
    if predicted <= 0:
        return 1.0
    return spread_of(interval, predicted).probability_below(limit / predicted)
