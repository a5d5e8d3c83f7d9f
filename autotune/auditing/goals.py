"""What a plan is asked to reach, and with what probability it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from autotune.documents.prediction import Prediction, PrefillPrediction, ServicePrediction, SkewedInterval
from autotune.documents.problem import MAX_GOAL
from autotune.predicting.uncertainty import step_factors
from autotune.serving.errors import probability_below
from cost_models.arrays import Floats, as_floats
from cost_models.specs.base import Spec
from cost_models.specs.bounds import MOST_SECONDS


class Goals(Spec):
    """Limits and targets; none where nothing is asked."""

    tpot_s: float | None = Field(default=None, gt=0, le=MOST_SECONDS)
    """Mean over requests, of a service."""
    ttft_s: float | None = Field(default=None, gt=0, le=MOST_SECONDS)
    """Of one prompt when nothing waits (prefill pools), mean (services)."""
    ttft_p50_s: float | None = Field(default=None, gt=0, le=MOST_SECONDS)
    ttft_p95_s: float | None = Field(default=None, gt=0, le=MOST_SECONDS)
    ttft_p99_s: float | None = Field(default=None, gt=0, le=MOST_SECONDS)
    tokens_per_s: float | None = Field(default=None, gt=0, le=MAX_GOAL)
    """All instances together: generated, or of prompts for a prefill pool."""
    concurrency: int | None = Field(default=None, gt=0, le=MAX_GOAL)
    """Sequences decoding at once."""
    context_tokens: int | None = Field(default=None, gt=0, le=MAX_GOAL)
    """Tokens of every sequence that the KV cache must hold at once."""


TTFT = ("ttft_s", "ttft_p50_s", "ttft_p95_s", "ttft_p99_s")
GOALS_OF = {
    "decode": ("tpot_s", "tokens_per_s", "concurrency", "context_tokens"),
    "prefill": ("ttft_s", "tokens_per_s"),
    "serve": (*TTFT, "tpot_s", "tokens_per_s", "concurrency"),
}
"""What can be asked of each phase."""


class GoalLine(Spec):
    """One goal."""

    name: str
    wanted: float
    predicted: float
    met: bool
    probability: float | None
    """From the error bars; none for what is counted, not predicted."""

    @property
    def short(self) -> float:
        """How much is missing, relative; 0 when met."""
        if self.met:
            return 0.0
        return max(self.predicted / self.wanted, self.wanted / max(self.predicted, 1e-12)) - 1


@dataclass(frozen=True, slots=True)
class Measure:
    """A predicted quantity of a plan."""

    value: float
    at_most: bool
    """Whether it must stay below what is wanted."""
    draws: Floats | None = None
    """With the errors of a step's prediction."""
    interval: SkewedInterval | None = None
    """Of a service, around the value."""

    def odds(self, wanted: float) -> float | None:
        """Probability of reaching what is wanted; none for what is counted."""
        if self.draws is not None:
            return float(self.reached(self.draws, wanted).mean())
        if self.interval is None:
            return None
        below = probability_below(self.value, wanted, self.interval)
        return below if self.at_most else 1 - below

    def reached(self, values: Floats, wanted: float) -> Floats:
        """1 where a value is good enough, (draws,)."""
        return as_floats(values <= wanted if self.at_most else values >= wanted)


def pool_goals(goals: Goals, prediction: Prediction | PrefillPrediction, dp: int, *, odds: bool = True) -> tuple[GoalLine, ...]:
    """Every goal that is asked and applies to the pool; dp : attention-DP ranks of all instances, odds : with probabilities."""
    factors = step_factors(prediction) if odds else None
    latency = Measure(prediction.latency_s, True, draws=None if factors is None else prediction.latency_s * factors)
    rate = Measure(prediction.tokens_per_s, False, draws=None if factors is None else prediction.tokens_per_s / factors)
    measures = {"tokens_per_s": rate}
    if isinstance(prediction, Prediction):
        sequences = prediction.concurrency
        measures |= {
            "tpot_s": latency,
            "concurrency": Measure(sequences, False),
            "context_tokens": Measure(prediction.kv_capacity_tokens * dp / max(sequences, 1), False),
        }
    else:
        measures["ttft_s"] = latency
    return _lines(goals, measures)


def service_goals(goals: Goals, service: ServicePrediction) -> tuple[GoalLine, ...]:
    """Every goal that is asked of a service; each percentile with its own band."""
    bands, ttft_s = service.intervals, service.ttft_s
    bars = bands.tokens_per_s_per_gpu
    middle = None if bars.middle is None else bars.middle * service.gpus
    rate = SkewedInterval(low=bars.low * service.gpus, middle=middle, high=bars.high * service.gpus)
    measures = {
        "ttft_s": Measure(ttft_s.mean, True, interval=bands.of_ttft("mean")),
        "ttft_p50_s": Measure(ttft_s.p50, True, interval=bands.of_ttft("p50")),
        "ttft_p95_s": Measure(ttft_s.p95, True, interval=bands.of_ttft("p95")),
        "ttft_p99_s": Measure(ttft_s.p99, True, interval=bands.of_ttft("p99")),
        "tpot_s": Measure(service.tpot_s.mean, True, interval=bands.tpot_s),
        "tokens_per_s": Measure(service.tokens_per_s, False, interval=rate),
        "concurrency": Measure(service.decode_slots, False),
    }
    return _lines(goals, measures)


def _lines(goals: Goals, measures: Mapping[str, Measure]) -> tuple[GoalLine, ...]:
    asked = {name: getattr(goals, name) for name in measures}
    return tuple(_line(name, float(wanted), measures[name]) for name, wanted in asked.items() if wanted is not None)


def _line(name: str, wanted: float, measure: Measure) -> GoalLine:
    met = bool(measure.reached(as_floats(measure.value), wanted))
    return GoalLine(name=name, wanted=wanted, predicted=measure.value, met=met, probability=measure.odds(wanted))
