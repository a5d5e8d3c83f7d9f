"""A measured run against what was predicted for it: inside the error bars or not, within its limits, and where a miss points."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from autotune.auditing.goals import Goals
from autotune.auditing.naming import is_run_of
from autotune.calibrating.benchmarks import BenchmarkPoint, ServedLoad, at_point, read_benchmark
from autotune.documents.deployment import Deployment, Load
from autotune.documents.prediction import Interval, ServicePrediction, StepPrediction
from autotune.errors import ProblemError
from autotune.predicting.step import predict, predict_decode, resolve
from autotune.predicting.uncertainty import measurement_values, uncertainty
from autotune.serving.predicting import predict_service
from cost_models.catalog import load_hardware, validated
from cost_models.specs.base import Spec

SUSPECTS = 3
FULL = 0.9
"""Share of the concurrency limit in flight from which it, not the rate, is what was sent."""
BUSY = 0.8
"""Use of the prefill from which waiting in line makes most of the TTFT."""


class VerifiedLine(Spec):
    """One quantity of one operating point."""

    name: str
    """As in Goals."""
    measured: float
    predicted: float
    interval: Interval
    """80 % interval of the prediction."""
    inside: bool
    limit: float | None
    within_limit: bool | None
    suspects: tuple[str, ...]
    """Where outside: coefficients that could explain it, most uncertain first."""

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1


class VerifiedPoint(Spec):
    """One operating point."""

    kind: str
    sequences: float
    """Decoding at once, in all instances."""
    isl_tokens: float
    osl_tokens: float
    lines: tuple[VerifiedLine, ...]

    @property
    def passed(self) -> bool:
        """Whether everything lies in its interval and within its limit."""
        return all(line.inside and line.within_limit is not False for line in self.lines)


def verify(paths: list[Path], deployment: Deployment, limits: Goals | None = None) -> tuple[VerifiedPoint, ...]:
    """Every operating point of benchmark results against the deployment at its load and lengths.

    A decode pool is compared in its time per output token, a service in TTFT, TPOT and throughput. Raises ProblemError for
    files that hold no such result, or one of another model or GPU.
    """
    if deployment.phase == "prefill":
        raise ProblemError("verify compares decode pools and services: benchmarks of a prefill pool alone are not read")
    found = []
    for path in paths:
        points, _ = read_benchmark(path)
        _check_run(path, points, deployment)
        found += [verified(path, point, deployment, limits or Goals()) for point in points]
    return tuple(found)


def verified(path: Path, point: BenchmarkPoint, deployment: Deployment, limits: Goals) -> VerifiedPoint:
    """One point."""
    if deployment.phase != "serve":
        lines = [_token_line(point, deployment, limits)]
    elif point.served is None:
        raise ProblemError(
            f"{path} is a result of {point.kind}: a service is verified with one of a serving benchmark (bench.sh)"
        )
    else:
        lines = list(_service_lines(point, point.served, deployment, limits))
    return VerifiedPoint(
        kind=point.kind,
        sequences=point.sequences,
        isl_tokens=point.isl_tokens,
        osl_tokens=point.osl_tokens,
        lines=tuple(lines),
    )


def _token_line(point: BenchmarkPoint, deployment: Deployment, limits: Goals) -> VerifiedLine:
    """Time per output token of a decode pool."""
    prediction = predict_decode(resolve(at_point(point, deployment)))
    bars = uncertainty(prediction).tpot_s
    assert bars is not None
    faster = ("or the run is not what the deployment says: even expert load, a prefix cache, fewer sequences than counted",)
    suspects = (*_suspects(prediction), *(faster if point.token_s < bars.low else ()))
    return _line("tpot_s", point.token_s, prediction.tpot_s, bars, limits, suspects)


def _service_lines(point: BenchmarkPoint, served: ServedLoad, deployment: Deployment, limits: Goals) -> Iterator[VerifiedLine]:
    """What requests saw; each percentile beside its own band."""
    as_run = _as_run(point, served, deployment)
    service = predict_service(as_run)
    bands = service.intervals
    waiting = _waiting_suspects(as_run, service)
    for name, measured in served.ttft_s.items():
        predicted = getattr(service.ttft_s, name)
        goal = "ttft_s" if name == "mean" else f"ttft_{name}_s"
        yield _line(goal, measured, predicted, bands.of_ttft(name), limits, waiting)
    suspects = _suspects(predict_decode(resolve(at_point(point, as_run))))
    yield _line("tpot_s", served.mean_tpot_s, service.tpot_s.mean, bands.tpot_s, limits, suspects)
    rate = _scaled(bands.tokens_per_s_per_gpu, service.gpus)
    yield _line("tokens_per_s", served.output_tokens_per_s, service.tokens_per_s, rate, limits, suspects, at_most=False)


def _line(
    name: str,
    measured: float,
    predicted: float,
    bars: Interval,
    limits: Goals,
    suspects: tuple[str, ...],
    *,
    at_most: bool = True,
) -> VerifiedLine:
    limit = getattr(limits, name)
    within = None if limit is None else measured <= limit if at_most else measured >= limit
    inside = bars.low <= measured <= bars.high
    return VerifiedLine(
        name=name,
        measured=measured,
        predicted=predicted,
        interval=bars,
        inside=inside,
        limit=limit,
        within_limit=within,
        suspects=() if inside else suspects,
    )


def _as_run(point: BenchmarkPoint, served: ServedLoad, deployment: Deployment) -> Deployment:
    """The service with the lengths and the load of the benchmark."""
    cap = served.max_concurrency
    if served.rate_per_s is not None and not (cap and served.in_flight >= FULL * cap):
        load = validated(Load, {"rate_per_s": served.rate_per_s}, "the benchmark's load")
    else:
        sent = {"concurrency": cap or served.requests, "requests": served.requests}
        load = validated(Load, sent, "the benchmark's load")
    return deployment.model_copy(update={"workload": point.lengths(deployment.workload), "load": load})


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(low=interval.low * factor, high=interval.high * factor)


def _suspects(prediction: StepPrediction) -> tuple[str, ...]:
    """What a miss points at: families by their share of the uncertainty."""
    values = measurement_values([prediction], count=SUSPECTS)
    return tuple(f"{value.family} ({', '.join(value.operators)}): {value.variance_share:.0%} of the variance" for value in values)


def _waiting_suspects(deployment: Deployment, service: ServicePrediction) -> tuple[str, ...]:
    """What a TTFT that misses points at."""
    found = []
    if service.prefill_busy > BUSY:
        found.append(f"waiting in line: prefill is busy {service.prefill_busy:.0%}, where a small error of its rate weighs much")
    if "prefill" in deployment.pools:
        step = predict(deployment.alone("prefill", deployment.pools["prefill"]))
        found += [f"prefill: {suspect}" for suspect in _suspects(step)]
    return (
        *found,
        "serving/default (frontend_s, prefill_switch_s), kv_transfer/default (start_s): what an engine does around its steps",
    )


def _check_run(path: Path, points: list[BenchmarkPoint], deployment: Deployment) -> None:
    """A result that names its model or GPU must name the deployment's."""
    wrong = sorted({point.model for point in points if point.model and not is_run_of(point.model, deployment.model)})
    if wrong:
        raise ProblemError(f"{path} is a run of {', '.join(wrong)}, the deployment serves {deployment.model}")
    gpu = load_hardware(deployment.hardware).gpu.name
    other = sorted(
        {point.gpu for point in points if point.gpu and gpu.lower() not in point.gpu.lower().replace("-", " ").split()}
    )
    if other:
        raise ProblemError(f"{path} was measured on {', '.join(other)}, the deployment runs on {gpu}")
