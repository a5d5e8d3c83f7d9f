"""Trials of a tuned service: host, launch gaps, overlap and queueing coefficients moved until their replays look like the runs.

What a load generator sees mixes everything, so kernels keep theirs: they move with kernel timings or a trace alone. Coefficients
are fitted together by least squares of log(predicted / measured), each tied to where it was by how far such coefficients are
known to lie apart; none is fitted below zero.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autotune.calibrating.benchmarks import HOST
from autotune.calibrating.document import write_document
from autotune.documents.deployment import CalibrationChoice
from autotune.documents.prediction import ServicePrediction
from autotune.documents.tuned import RATE, TrialRecord
from autotune.errors import ProblemError
from autotune.serving.predicting import predict_service
from cost_models.arrays import Floats, as_floats
from cost_models.calibration import Calibration, Entry, FitReport
from cost_models.catalog import load_calibration, load_hardware, validated
from cost_models.errors import AutotuneError

SERVICE_FIT = (
    "least squares of log(predicted / measured) of rate, TPOT and TTFT of whole services, tied to the coefficients before"
)
WEIGHTS = {RATE: 20.0, "tpot_s": 20.0, "ttft_s": 6.0, "ttft_p50_s": 5.0, "ttft_p99_s": 3.0}
"""One over the relative error that is a standard deviation: first tokens, and their tails, scatter more."""
STEADY = (RATE, "tpot_s")
"""What a fit must not make worse of its own trials: else something other than these coefficients is wrong, and none moves."""
FEWEST_TRIALS = 2
HELD_OUT_FROM = 6
"""Trials from which every second one is also predicted from the others."""
STEP = 0.25
"""Of a scale, for the derivatives: replays are stepwise in small changes."""
MOST_EVALUATIONS = 12
FAR = 100.0
"""Where the fit's variables start: their steps are relative to them."""
MOST_SCALES = 10.0
"""That a coefficient may move up."""
NEGLIGIBLE = 0.02
"""Of a scale: a coefficient that moved less stays as it was."""


@dataclass(frozen=True, slots=True)
class Movable:
    """One coefficient that trials may move."""

    family: str
    variant: str
    name: str
    scale: float
    """How far such coefficients lie apart between machines and versions."""


QUEUE = ("serving", "default")
MOVABLE = (
    Movable(*HOST, "step_s", 1.5e-3),
    Movable(*HOST, "per_sequence_s", 1e-5),
    Movable(*HOST, "small_kernel_s", 1e-6),
    Movable(*HOST, "eager_operator_s", 3e-5),
    Movable(*HOST, "eager_experts_s", 8e-4),
    Movable(*QUEUE, "frontend_s", 1e-2),
    Movable(*QUEUE, "frontend_prompt_s", 2e-3),
    Movable(*QUEUE, "frontend_output_s", 3e-5),
    Movable(*QUEUE, "prefill_switch_s", 3e-3),
)
SHARPNESS = 1.0
"""Scale of the overlap's sharpness [-]."""


@dataclass(frozen=True, slots=True)
class ServiceFit:
    """Entries fitted to trials, and how far the trials lay from their predictions before and after."""

    entries: tuple[tuple[str, str, Entry], ...]
    moved: tuple[tuple[Movable, float, float], ...]
    """(coefficient, before, after)."""
    before: Mapping[str, float]
    """Quantity -> mean absolute relative error."""
    after: Mapping[str, float]
    held_out: Mapping[str, float]
    """The same of every second trial, predicted by a fit to the others; empty with few trials."""
    trials: int


def fit_service(records: Sequence[TrialRecord], base: Calibration, source: str) -> ServiceFit:
    """Move the coefficients of `base` towards trials on its GPU; raises ProblemError for too few, or for those of another GPU."""
    if len(records) < FEWEST_TRIALS:
        raise ProblemError(
            f"{len(records)} measured trials: {FEWEST_TRIALS} at least, under different loads, tell coefficients apart"
        )
    other = {load_hardware(r.deployment.hardware).gpu.name for r in records} - set(base.applies_to.gpus)
    if other:
        raise ProblemError(
            f"the trials ran on {', '.join(sorted(other))}, calibration {base.id} is of {', '.join(base.applies_to.gpus)}"
        )
    movable = [*_present(base, MOVABLE), *_overlaps(records, base)]
    with tempfile.TemporaryDirectory() as folder:
        trial = _Trial(records, base, movable, Path(folder))
        values = trial.fitted(range(len(records)))
        held = {}
        if len(records) >= HELD_OUT_FROM:
            odd = range(1, len(records), 2)
            held = trial.errors(trial.fitted(range(0, len(records), 2)), odd)
        before, after = (trial.errors(found, range(len(records))) for found in (trial.start, values))
        if any(after[name] > before[name] for name in STEADY if name in before):
            values, after, held = trial.start, before, {}
    moved = tuple(
        (m, float(was), float(now))
        for m, was, now in zip(movable, trial.start, values, strict=True)
        if abs(now - was) > NEGLIGIBLE * m.scale
    )
    report = _report(len(records), held, after)
    return ServiceFit(_entries(base, moved, source, report), moved, before, after, held, len(records))


def _present(base: Calibration, movable: Sequence[Movable]) -> list[Movable]:
    return [m for m in movable if base.has(m.family, m.variant)]


def _overlaps(records: Sequence[TrialRecord], base: Calibration) -> list[Movable]:
    """Sharpness of the overlap of every all-to-all that trials ran in two batches."""
    pools = [pool for record in records for pool in record.deployment.pools.values()]
    used = sorted({pool.all2all_backend for pool in pools if pool.overlap == "two_batch"})
    return _present(base, [Movable("overlap", backend, "two_batch_sharpness", SHARPNESS) for backend in used])


class _Trial:
    """Trials as a function of coefficients."""

    def __init__(self, records: Sequence[TrialRecord], base: Calibration, movable: Sequence[Movable], folder: Path) -> None:
        self.records, self.base, self.movable, self.folder = records, base, movable, folder
        self.start = as_floats([base.entry(m.family, m.variant).coefficients.get(m.name, 0.0) for m in movable])
        self.scales = as_floats([m.scale for m in movable])
        self.measured = [_geometric(record) for record in records]
        self.files = 0
        self.kernels = _changed_from_shipped(base)

    def fitted(self, rows: Sequence[int]) -> Floats:
        """Coefficients at the least squares over some trials, (movable,)."""
        from scipy.optimize import least_squares

        def values_at(y: Floats) -> Floats:
            return as_floats(np.maximum(self.start + (y - FAR) * self.scales, 0.0))

        def residuals(y: Floats) -> Floats:
            logs = self.logs(values_at(y), rows)
            weighted = [WEIGHTS[name] * value for line in logs for name, value in line.items()]
            return as_floats([*weighted, *(y - FAR)])

        found = least_squares(
            residuals,
            np.full(len(self.movable), FAR),
            bounds=(FAR - self.start / self.scales, FAR + MOST_SCALES),
            method="dogbox",  # many coefficients start at their bound of zero, where ellipses of trust shrink to nothing
            diff_step=np.full(len(self.movable), STEP / FAR),
            max_nfev=MOST_EVALUATIONS,
            xtol=NEGLIGIBLE / FAR,  # where a step moves coefficients by no more, in the mean square: relative to y near FAR
        )
        return values_at(found.x)

    def errors(self, values: Floats, rows: Sequence[int]) -> dict[str, float]:
        """Mean absolute relative error by quantity."""
        logs = self.logs(values, rows)
        names = [name for name in WEIGHTS if any(name in line for line in logs)]
        return {name: float(np.mean([abs(math.exp(line[name]) - 1) for line in logs if name in line])) for name in names}

    def logs(self, values: Floats, rows: Sequence[int]) -> list[dict[str, float]]:
        """log(predicted / measured) by quantity, of each trial."""
        choice = CalibrationChoice(file=str(self._file(values)))
        found = []
        for row in rows:
            record, seen = self.records[row], self.measured[row]
            predicted = quantities_of(predict_service(record.deployment.model_copy(update={"calibration": choice})))
            both = [name for name in WEIGHTS if seen.get(name, 0) > 0 and predicted[name] > 0]
            found.append({name: math.log(predicted[name] / seen[name]) for name in both})
        return found

    def _file(self, values: Floats) -> Path:
        """A calibration document with other coefficients, under a name of its own."""
        self.files += 1
        path = self.folder / f"{self.files}.yaml"
        changed = [(m, 0.0, float(value)) for m, value in zip(self.movable, values, strict=True)]
        entries = _entries(self.base, changed, "a candidate", None)
        write_document(
            {
                "inherits": self.base.id,
                "id": path.stem,
                "title": "a candidate",
                "applies_to": self.base.applies_to.model_dump(mode="json"),
                "date": self.base.date,
                "families": _families([*self.kernels, *entries]),
            },
            path,
        )
        return path


def _changed_from_shipped(base: Calibration) -> list[tuple[str, str, Entry]]:
    """What `base` has beyond the document of its name: entries that a trace or a table gave before."""
    shipped = load_calibration(base.id)
    return [
        (family, variant, entry)
        for family, variants in base.families.items()
        for variant, entry in variants.items()
        if not shipped.has(family, variant) or shipped.entry(family, variant) != entry
    ]


def _families(entries: Sequence[tuple[str, str, Entry]]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for family, variant, entry in entries:
        found.setdefault(family, {})[variant] = entry.model_dump(mode="json", exclude_none=True)
    return found


def _entries(
    base: Calibration, changed: Sequence[tuple[Movable, float, float]], source: str, report: FitReport | None
) -> tuple[tuple[str, str, Entry], ...]:
    """The base's entries with other coefficients."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for movable, _, value in changed:
        key = movable.family, movable.variant
        coefficients = found.setdefault(key, dict(base.entry(*key).coefficients))
        coefficients[movable.name] = float(f"{value:.4g}")
    entries = []
    for (family, variant), coefficients in found.items():
        said = f"{source}; before: {base.entry(family, variant).source}"[:600]
        fields = {"coefficients": coefficients, "status": "measured", "source": said, "fit": report}
        entries.append((family, variant, validated(Entry, fields, "the fit to trials")))
    return tuple(entries)


def _report(trials: int, held: Mapping[str, float], after: Mapping[str, float]) -> FitReport:
    errors = held or after
    shown = [errors[name] for name in (RATE, "tpot_s") if name in errors] or list(errors.values())
    return FitReport(
        method=SERVICE_FIT,
        points=trials,
        held_out=trials // 2 if held else 0,
        median_error=round(float(np.median(shown)), 4),
        p90_error=round(float(max(shown)), 4),
    )


def _geometric(record: TrialRecord) -> dict[str, float]:
    """Geometric means over a trial's runs."""
    pool = record.deployment.pool
    gpus = pool.layout.gpus * pool.instances
    logs: dict[str, list[float]] = {}
    for load in record.loads:
        for name, value in load.quantities(gpus).items():
            if value > 0:
                logs.setdefault(name, []).append(math.log(value))
    return {name: math.exp(sum(values) / len(values)) for name, values in logs.items() if len(values) == len(record.loads)}


def quantities_of(prediction: ServicePrediction) -> dict[str, float]:
    """What trials measure, as the model predicts it."""
    ttft = prediction.ttft_s
    return {
        RATE: prediction.tokens_per_s_per_gpu,
        "tpot_s": prediction.tpot_s.mean,
        "ttft_s": ttft.mean,
        "ttft_p50_s": ttft.p50,
        "ttft_p99_s": ttft.p99,
    }


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """The best service for what was tuned, with the old and the new document."""

    before: str
    after: str
    rate_before: float
    rate_after: float


def service_change(records: Sequence[TrialRecord], calibration: Path, limits: Mapping[str, float]) -> ServiceChange | None:
    """What `autotune search --target serve` would choose for the tuned model, GPUs and lengths; none where it finds nothing.

    limits : of the search, by the problem's own names.
    """
    from autotune.documents.problem import Problem
    from autotune.searching.services.searching import search_services

    ran = max(records, key=lambda r: r.deployment.pool.layout.gpus * r.deployment.pool.instances).deployment
    asked = {
        "hardware": ran.hardware,
        "model": ran.model,
        "target": "serve",
        "engine": ran.engine.name,
        "engine_version": ran.engine.version,
        "precision": ran.precision if isinstance(ran.precision, str) else ran.precision.recipe,
        "workload": ran.workload,
        "gpus": ran.pool.layout.gpus * ran.pool.instances,
        "top_k": 1,
        **limits,
    }
    try:
        plans = [
            search_services(Problem.model_validate({**asked, "calibration": choice})).best
            for choice in (CalibrationChoice(), CalibrationChoice(file=str(calibration)))
        ]
    except (AutotuneError, ValueError):
        return None
    rates = [plan.prediction.tokens_per_s_per_gpu for plan in plans]
    return ServiceChange(plans[0].label, plans[1].label, rates[0], rates[1])
