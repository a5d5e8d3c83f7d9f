"""A measured step against its prediction -> calibration entries scaled to it, family by family.

One traced step says how long each family took, not how that depends on shapes: the form stays, its times are scaled.
Times and passes are multiplied by the ratio, efficiencies and bandwidths divided, so every shape's time scales alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.calibrating.traces import FamilyTimes
from autotune.documents.prediction import StepPrediction
from autotune.errors import ProblemError
from cost_models.calibration import Calibration, Entry
from cost_models.catalog import validated

FAMILY_OF_ENTRY = {
    "dense_gemm": "dense_gemm",
    "mla_decode": "attention",
    "gqa_decode": "attention",
    "mla_prefill": "attention",
    "gqa_prefill": "attention",
    "grouped_gemm": "experts",
    "all_reduce": "all_reduce",
    "elementwise": "elementwise",
}
"""Family of a calibration entry -> family of the kernel rules; dispatch and combine go by the variant's name."""
MULTIPLIED = ("_s", "_passes", "_bytes", "mid_factor")
DIVIDED = ("_efficiency", "_bytes_per_s")
SMALLEST_SHARE = 0.002
"""Families below this share of the step say nothing: rounding and rules decide them."""


@dataclass(frozen=True, slots=True)
class Rescaled:
    """One family against its prediction."""

    family: str
    measured_s: float
    predicted_s: float
    entries: tuple[tuple[str, str, Entry], ...]
    """(family, variant, entry) of the calibration, scaled; empty where the step prices nothing from it."""

    @property
    def ratio(self) -> float:
        return self.measured_s / self.predicted_s if self.predicted_s else float("inf")


def rescale(measured: FamilyTimes, prediction: StepPrediction, calibration: Calibration, context: str) -> list[Rescaled]:
    """Scale every family that both the trace and the prediction have.

    context : what was traced, for the source line. Raises ProblemError when a family ran faster than its roofline:
    then the deployment is not the one that was traced, or the rules mix families up.
    """
    predicted: dict[str, float] = {}
    bounds: dict[str, float] = {}
    used: dict[str, set[tuple[str, str]]] = {}
    for line in prediction.operators:
        family, _, variant = line.family.partition(".")
        kind = variant.rsplit(".", 1)[-1] if family == "dispatch" else FAMILY_OF_ENTRY.get(family)
        if kind is None:
            continue
        predicted[kind] = predicted.get(kind, 0.0) + line.time_s
        bounds[kind] = bounds.get(kind, 0.0) + line.bound_s
        if calibration.has(family, variant):
            used.setdefault(kind, set()).add((family, variant))
    results = []
    for kind, seconds in sorted(measured.per_step_s.items()):
        if kind not in predicted or seconds < SMALLEST_SHARE * prediction.step_s:
            continue
        if seconds < bounds[kind] * 0.99:
            raise ProblemError(
                f"{kind} took {seconds * 1e3:.3f} ms per step, below its roofline of {bounds[kind] * 1e3:.3f} ms: "
                "the deployment is not the one traced, --steps is wrong, or the rules put its kernels elsewhere"
            )
        ratio = seconds / predicted[kind]
        note = f"{measured.source}: {context}: {seconds * 1e3:.3f} ms per step, {ratio:.3f} of predicted"
        entries = tuple(
            (family, variant, scaled_entry(calibration.entry(family, variant), ratio, note))
            for family, variant in sorted(used.get(kind, ()))
        )
        results.append(Rescaled(kind, seconds, predicted[kind], entries))
    if not any(item.entries for item in results):
        raise ProblemError("no family of the trace appears in the deployment's step: wrong deployment or rules")
    return results


def scaled_entry(entry: Entry, ratio: float, source: str) -> Entry:
    """The entry with every time scaled by the ratio."""
    fields = {
        "coefficients": scaled_coefficients(entry.coefficients, ratio),
        "status": "measured",
        "source": f"{source}; form of: {entry.source}"[:600],
        "box": entry.box,
    }
    return validated(Entry, fields, f"times {ratio:.3g} times those predicted")


def scaled_coefficients(coefficients: Mapping[str, float], ratio: float) -> dict[str, float]:
    """Coefficients whose cost model gives `ratio` times the time for every shape."""
    scaled = {}
    traffic_only = "hidden_passes" in coefficients  # element-wise: passes over efficiency, so one of them is scaled
    for name, value in coefficients.items():
        if name.endswith(DIVIDED) and traffic_only:
            scaled[name] = value
        elif name.endswith(DIVIDED):
            scaled[name] = value / ratio
        elif name.endswith(MULTIPLIED):
            scaled[name] = value * ratio
        else:
            scaled[name] = value
    return {name: float(f"{value:.5g}") for name, value in scaled.items()}
