"""A measured run against what was predicted for it: inside the error bars or not, and where a miss points."""

from __future__ import annotations

from pathlib import Path

from autotune.auditing.commands import is_of
from autotune.calibrating.benchmarks import BenchmarkPoint, at_point, read_benchmark
from autotune.deployment import Deployment
from autotune.errors import ProblemError
from autotune.predicting import predict_decode, resolve
from autotune.prediction import Interval, Prediction
from autotune.uncertainty import measurement_values, uncertainty
from cost_models.catalog import load_model
from cost_models.specs.base import Spec


class VerifiedPoint(Spec):
    """One operating point."""

    kind: str
    sequences: float
    """Decoding at once, in all instances."""
    isl_tokens: float
    osl_tokens: float
    measured_tpot_s: float
    predicted_tpot_s: float
    interval: Interval
    """80 % interval of the predicted TPOT."""
    inside: bool
    limit_tpot_s: float | None
    within_limit: bool | None
    suspects: tuple[str, ...]
    """Where outside: coefficients that could explain it, most uncertain first."""

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_tpot_s / self.measured_tpot_s - 1


def verify(paths: list[Path], deployment: Deployment, limit_tpot_s: float | None = None) -> tuple[VerifiedPoint, ...]:
    """Every operating point of benchmark results against the deployment at its concurrency and lengths.

    Raises ProblemError for files that hold no result, or one of another model.
    """
    if deployment.phase != "decode":
        raise ProblemError(
            f"verify compares time per output token: a deployment of phase decode is needed, not {deployment.phase}"
        )
    found = []
    for path in paths:
        points, _ = read_benchmark(path)
        _check_model(path, points, deployment)
        found += [verified(point, deployment, limit_tpot_s) for point in points]
    return tuple(found)


def verified(point: BenchmarkPoint, deployment: Deployment, limit_tpot_s: float | None) -> VerifiedPoint:
    """One point."""
    prediction = predict_decode(resolve(at_point(point, deployment)))
    bars = uncertainty(prediction).tpot_s
    assert bars is not None
    inside = bars.low <= point.token_s <= bars.high
    return VerifiedPoint(
        kind=point.kind,
        sequences=point.sequences,
        isl_tokens=point.isl_tokens,
        osl_tokens=point.osl_tokens,
        measured_tpot_s=point.token_s,
        predicted_tpot_s=prediction.tpot_s,
        interval=bars,
        inside=inside,
        limit_tpot_s=limit_tpot_s,
        within_limit=None if limit_tpot_s is None else point.token_s <= limit_tpot_s,
        suspects=() if inside else _suspects(prediction, faster=point.token_s < bars.low),
    )


def _suspects(prediction: Prediction, *, faster: bool) -> tuple[str, ...]:
    """What a miss points at: families by their share of the uncertainty; the run itself where it is faster."""
    values = measurement_values([prediction], count=3)
    named = tuple(
        f"{value.family} ({', '.join(value.operators)}): {value.variance_share:.0%} of the variance" for value in values
    )
    if faster:
        return (
            *named,
            "or the run is not what the deployment says: even expert load, a prefix cache, fewer sequences than counted",
        )
    return named


def _check_model(path: Path, points: list[BenchmarkPoint], deployment: Deployment) -> None:
    """A result that names its model must name the deployment's."""
    spec = load_model(deployment.model)
    wrong = sorted({point.model for point in points if point.model and not is_of(point.model, spec)})
    if wrong:
        raise ProblemError(f"{path} is a run of {', '.join(wrong)}, the deployment serves {spec.name}")
