"""Error bars of services: how far measured points lay from their predictions."""

from __future__ import annotations

import functools
import math

from pydantic import Field

from autotune.documents.prediction import Interval, Percentiles, ServiceIntervals
from autotune.files import packaged
from cost_models.specs.base import Spec

QUANTILE_SIGMAS = 2.563
"""Standard deviations between the 10 % and 90 % quantiles of a normal distribution."""


class ErrorBand(Spec):
    """10 % and 90 % quantiles of measured / predicted [-]."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)

    def around(self, predicted: float) -> Interval:
        return Interval(low=predicted * self.low, high=predicted * self.high)


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


def probability_below(predicted: float, limit: float, low: float, high: float) -> float:
    """Of a measured value staying under a limit; measured over predicted is log-normal between its quantiles low and high."""
    if predicted <= 0:  # answers of one token have no time between tokens
        return 1.0
    low, high = math.log(low), math.log(high)
    z = (math.log(limit / predicted) - (low + high) / 2) / ((high - low) / QUANTILE_SIGMAS)
    return float(0.5 * math.erfc(-z / math.sqrt(2)))
