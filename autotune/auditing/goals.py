"""What a plan is asked to reach, and with what probability it does."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.prediction import Prediction, PrefillPrediction
from autotune.uncertainty import step_factors
from cost_models.arrays import Floats, as_floats
from cost_models.specs.base import Spec


class Goals(Spec):
    """Limits and targets; none where nothing is asked."""

    tpot_s: float | None = None
    ttft_s: float | None = None
    """Of one prompt when nothing waits (prefill pools)."""
    tokens_per_s: float | None = None
    """All instances together: generated, or of prompts for a prefill pool."""
    concurrency: int | None = None
    """Sequences decoding at once."""
    context_tokens: int | None = None
    """Tokens of every sequence that the KV cache must hold at once."""


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
    draws: Floats | None
    """With the errors of the prediction; none where there are none."""
    at_most: bool
    """Whether it must stay below what is wanted."""


def goal_lines(goals: Goals, prediction: Prediction | PrefillPrediction, dp: int) -> tuple[GoalLine, ...]:
    """Every goal that is asked and applies to the pool; dp : attention-DP ranks of all instances."""
    factors = step_factors(prediction)
    latency = Measure(prediction.latency_s, prediction.latency_s * factors, True)
    measures = {"tokens_per_s": Measure(prediction.tokens_per_s, prediction.tokens_per_s / factors, False)}
    if isinstance(prediction, Prediction):
        sequences = prediction.concurrency
        held = prediction.kv_capacity_tokens * dp / max(sequences, 1)
        measures |= {
            "tpot_s": latency,
            "concurrency": Measure(sequences, None, False),
            "context_tokens": Measure(held, None, False),
        }
    else:
        measures["ttft_s"] = latency
    asked = {name: getattr(goals, name) for name in measures}
    return tuple(_line(name, float(wanted), measures[name]) for name, wanted in asked.items() if wanted is not None)


def _line(name: str, wanted: float, measure: Measure) -> GoalLine:
    def reached(values: Floats) -> Floats:
        return as_floats(values <= wanted if measure.at_most else values >= wanted)

    odds = None if measure.draws is None else float(reached(measure.draws).mean())
    return GoalLine(
        name=name, wanted=wanted, predicted=measure.value, met=bool(reached(as_floats(measure.value))), probability=odds
    )
