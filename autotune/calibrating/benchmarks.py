"""Engine benchmark results: what they say about host time, and whether the GPU's share fits.

Read: `vllm bench serve` (--save-result, one object, or one per line with --append-result), `vllm bench latency`
(--output-json), `vllm bench sweep` (its run files or summary.json), SGLang `bench_serving` and `bench_one_batch`
(JSON lines). They time whole steps, so they inform the host's coefficients, given the deployment that was served; kernels
keep theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autotune.calibrating.timings import sha256_of
from autotune.documents.deployment import MAX_BATCH, Deployment
from autotune.errors import ProblemError
from autotune.predicting.step import predict_decode, resolve
from cost_models.calibration import Entry, FitReport
from cost_models.catalog import validated
from cost_models.errors import InputError
from cost_models.reading import RESULT, parse_json, read_text, reading
from cost_models.specs.workload import MAX_LENGTH_TOKENS, Workload

MOST_NAME = 300
LARGEST = 1e12
"""Of any number of a result."""
HOST = ("host", "default")
HOST_OPERATORS = ("host", "output_processing_wait")
METHOD = "non-negative least squares of step time less predicted GPU time, relative residuals"


GPU_KEYS = ("gpu", "gpu_type", "gpu_name", "hw", "hardware", "device", "accelerator")
"""Where results name what they ran on (vllm bench serve --metadata gpu=H200)."""


@dataclass(frozen=True, slots=True)
class ServedLoad:
    """What a serving benchmark sent, and what its requests saw."""

    requests: int
    rate_per_s: float | None
    """Asked; none for an unlimited rate."""
    max_concurrency: int | None
    in_flight: float
    """Mean, sent and not answered."""
    output_tokens_per_s: float
    ttft_s: dict[str, float]
    """mean, p50, p95, p99: those that the result has."""
    mean_tpot_s: float


@dataclass(frozen=True, slots=True)
class BenchmarkPoint:
    """One measured operating point."""

    sequences: float
    """Sequences decoding at once, over all ranks."""
    isl_tokens: float
    osl_tokens: float
    token_s: float
    """Time between two tokens of a sequence: median inter-token latency, or TPOT where it is missing [s]."""
    tokens_per_step: float
    """Tokens that a sequence gains per step (speculative decoding) [-]."""
    kind: str
    source: str
    model: str = ""
    """As the result names it, where it does."""
    gpu: str = ""
    """As the result names it, where it does."""
    served: ServedLoad | None = None
    """Of serving benchmarks."""

    def lengths(self, workload: Workload) -> Workload:
        """A workload with the lengths of this point."""
        isl, osl = max(round(self.isl_tokens), 1), max(round(self.osl_tokens), 1)
        return workload.model_copy(update={"isl_tokens": isl, "osl_tokens": osl, "mean_context_tokens": None})


@dataclass(frozen=True, slots=True)
class HostPoint:
    """A point with its prediction."""

    point: BenchmarkPoint
    sequences_per_rank: int
    measured_step_s: float
    gpu_s: float
    """Predicted step without host time."""
    host_s: float
    """Predicted host time."""

    @property
    def residual_s(self) -> float:
        """What the step took beyond the predicted GPU time."""
        return self.measured_step_s - self.gpu_s


def looks_like_benchmark(path: Path) -> bool:
    """Whether a JSON or JSON-lines file holds benchmark results."""
    try:
        objects = _objects(path)
    except ProblemError:
        return False
    return any(_kind(item) for item in objects)


def read_benchmark(path: Path) -> tuple[list[BenchmarkPoint], int]:
    """Points of a result file and how many objects were something else; raises ProblemError when there are none."""
    source = f"{path.name} sha256 {sha256_of(path)}"
    points, other = [], 0
    for item in _objects(path):
        kind = _kind(item)
        if kind is None:
            other += 1
            continue
        gpu = next((str(item[key])[:MOST_NAME] for key in GPU_KEYS if isinstance(item.get(key), str)), "")
        model = str(item.get("model_id") or "")[:MOST_NAME]
        points.append(_sized(path, dataclasses.replace(READERS[kind](item, source), model=model, gpu=gpu)))
    if not points:
        raise ProblemError(f"{path}: no benchmark result in it; known: {', '.join(READERS)}")
    return points, other


def _sized(path: Path, point: BenchmarkPoint) -> BenchmarkPoint:
    """The point; raises ProblemError for one that no engine can have run."""
    if point.sequences > MAX_BATCH:
        raise ProblemError(f"{path}: {point.sequences:,.0f} sequences at once, at most {MAX_BATCH:,} make sense")
    if (longest := max(point.isl_tokens, point.osl_tokens)) > MAX_LENGTH_TOKENS:
        raise ProblemError(f"{path}: {longest:,.0f} tokens of a request, at most {MAX_LENGTH_TOKENS:,} make sense")
    return point


def _objects(path: Path) -> list[dict[str, Any]]:
    with reading(path, "cannot be read", ProblemError):
        text = read_text(path, RESULT)
    try:
        whole = parse_json(text, path)
        items = whole if isinstance(whole, list) else [whole]
    except InputError:
        items = []
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                with reading(path, f"line {number} is not JSON: truncated?", ProblemError):
                    items.append(parse_json(line, f"{path}: line {number} is not JSON: truncated?"))
    return [item for item in items if isinstance(item, dict)]


def _kind(item: dict[str, Any]) -> str | None:
    """Which tool wrote an object, by the keys that only it writes."""
    if "median_decode_latency" in item and "batch_size" in item:
        return "sglang bench_one_batch"
    if "avg_latency" in item and "percentiles" in item:
        return "vllm bench latency"
    if "median_tpot_ms" in item or "median_itl_ms" in item:
        return "sglang bench_serving" if "sharegpt_output_len" in item or "random_input_len" in item else "vllm bench serve"
    return None


def _serve(item: dict[str, Any], source: str) -> BenchmarkPoint:
    completed = max(_number(item, "completed"), 1)
    osl = _number(item, "total_output_tokens") / completed
    token_s = _positive(item, "median_itl_ms" if item.get("median_itl_ms") else "median_tpot_ms") / 1e3
    accepted = _given(item, "spec_decode_acceptance_length") or _given(item, "accept_length") or 1.0
    # mean concurrency by Little's law; the cap where the client says no more
    busy = _given(item, "concurrency") or _number(item, "output_throughput") * _number(item, "mean_tpot_ms") / 1e3
    cap = _given(item, "max_concurrency")
    sequences = min(busy, cap) if cap else busy
    isl = _number(item, "total_input_tokens") / completed
    kind = _kind(item) or ""
    return BenchmarkPoint(sequences, isl, osl, token_s, max(accepted, 1.0), kind, source, served=_served(item, busy))


TTFT_KEYS = {"mean": "mean_ttft_ms", "p50": "median_ttft_ms", "p95": "p95_ttft_ms", "p99": "p99_ttft_ms"}


def _served(item: dict[str, Any], decoding: float) -> ServedLoad:
    """What was sent and seen; decoding : mean sequences decoding at once."""
    asked = item.get("request_rate")
    rate = float(asked) if isinstance(asked, int | float) and not isinstance(asked, bool) and 0 < asked < LARGEST else None
    cap = _given(item, "max_concurrency")
    waiting = _number(item, "mean_ttft_ms") / 1e3 if "mean_ttft_ms" in item else 0.0
    per_s = _given(item, "request_throughput")
    return ServedLoad(
        requests=int(max(_number(item, "completed"), 1)),
        rate_per_s=rate,
        max_concurrency=int(cap) if cap else None,
        in_flight=decoding + waiting * per_s,
        output_tokens_per_s=_positive(item, "output_throughput"),
        ttft_s={name: _positive(item, key) / 1e3 for name, key in TTFT_KEYS.items() if key in item},
        mean_tpot_s=_positive(item, "mean_tpot_ms") / 1e3,
    )


def _one_batch(item: dict[str, Any], source: str) -> BenchmarkPoint:
    return BenchmarkPoint(
        _positive(item, "batch_size"),
        _number(item, "input_len"),
        _number(item, "output_len"),
        _positive(item, "median_decode_latency"),
        1.0,
        "sglang bench_one_batch",
        source,
    )


def _latency(item: dict[str, Any], source: str) -> BenchmarkPoint:
    """Whole-batch latency; the command's lengths must be in the file (--metadata of sweeps) because the tool omits them."""
    output = _positive(item, "output_len")
    return BenchmarkPoint(
        _positive(item, "batch_size"),
        _number(item, "input_len"),
        output,
        _positive(item, "avg_latency") / output,
        1.0,
        "vllm bench latency",
        source,
    )


READERS = {
    "vllm bench serve": _serve,
    "vllm bench latency": _latency,
    "sglang bench_serving": _serve,
    "sglang bench_one_batch": _one_batch,
}


def _number(item: dict[str, Any], name: str) -> float:
    value = item.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LARGEST:
        raise ProblemError(f"a benchmark result's {name} is {value!r:.60}, not a number of zero or more, up to {LARGEST:g}")
    return float(value)


def _positive(item: dict[str, Any], name: str) -> float:
    value = _number(item, name)
    if not value:
        raise ProblemError(f"a benchmark result's {name} is 0: nothing was measured")
    return value


def _given(item: dict[str, Any], name: str) -> float:
    """A number that may be absent or null; 0 then."""
    return _number(item, name) if item.get(name) is not None else 0.0


def host_points(points: Sequence[BenchmarkPoint], deployment: Deployment) -> list[HostPoint]:
    """Each point against the deployment at its batch and lengths."""
    results = []
    for point in points:
        at = at_point(point, deployment)
        prediction = predict_decode(resolve(at))
        host = sum(line.time_s for line in prediction.operators if line.name in HOST_OPERATORS)
        measured = point.token_s * point.tokens_per_step
        results.append(HostPoint(point, at.pool.batch_per_dp_rank, measured, prediction.step_s - host, host))
    return results


def at_point(point: BenchmarkPoint, deployment: Deployment) -> Deployment:
    """The deployment's decode pool with the sequences and lengths of a measured point."""
    per_rank = max(round(point.sequences / deployment.pool.dp / deployment.pool.instances), 1)
    pool = deployment.pool.model_copy(update={"batch_per_dp_rank": per_rank})
    return deployment.alone("decode", pool).model_copy(update={"workload": point.lengths(deployment.workload)})


def fit_host(results: Sequence[HostPoint], base: Entry, dp: int) -> tuple[Entry, list[str]]:
    """Host entry with its step time and time per sequence fitted to the residuals; returns warnings too.

    One point determines the step time alone. Points whose step is shorter than the predicted GPU time say that kernels
    or deployment differ; when all are, ProblemError.
    """
    from scipy.optimize import nnls

    usable = [r for r in results if r.residual_s > 0]
    warnings = [
        f"{r.point.kind} at {r.sequences_per_rank} sequences per rank: measured {r.measured_step_s * 1e3:.2f} ms, "
        f"predicted GPU time {r.gpu_s * 1e3:.2f} ms: kernels or deployment differ; left out"
        for r in results
        if r.residual_s <= 0
    ]
    if not usable:
        raise ProblemError(
            "every measured step is shorter than the predicted GPU time: wrong deployment?\n" + "\n".join(warnings)
        )
    sync = base.coefficients["data_parallel_sync_s"] if dp > 1 else 0.0
    batch = np.array([r.sequences_per_rank for r in usable], dtype=float)
    residual = np.maximum(np.array([r.residual_s for r in usable]) - sync, 0.0)
    weight = 1 / np.array([r.measured_step_s for r in usable])
    columns = [np.ones(len(usable))] + ([batch] if len(set(batch)) > 1 else [])
    solution, _ = nnls(np.stack(columns, axis=1) * weight[:, None], residual * weight)
    step_s, per_sequence_s = float(solution[0]), float(solution[1]) if len(solution) > 1 else 0.0
    errors = np.abs((step_s + per_sequence_s * batch - residual) * weight)
    coefficients = {**base.coefficients, "step_s": float(f"{step_s:.4g}"), "per_sequence_s": float(f"{per_sequence_s:.4g}")}
    sources = sorted({r.point.source for r in usable})
    report = FitReport(
        method=METHOD,
        points=len(usable),
        held_out=0,
        median_error=round(float(np.median(errors)), 4),
        p90_error=round(float(np.quantile(errors, 0.9)), 4),
    )
    fields = {"coefficients": coefficients, "status": "measured", "source": "; ".join(sources), "box": _box(batch), "fit": report}
    return validated(Entry, fields, "the fit of host times"), warnings


def _box(batch: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, tuple[float, float]]:
    return {"sequences": (float(batch.min()), float(batch.max()))}
