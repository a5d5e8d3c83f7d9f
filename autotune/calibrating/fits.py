"""Timing table -> calibration entries, one fit per operator and variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.calibrating.operators import OPERATORS
from autotune.calibrating.timings import TimingTable
from autotune.errors import ProblemError
from cost_models.calibration import Calibration, Entry
from cost_models.catalog import validated
from cost_models.errors import CatalogError, MissingFactError
from cost_models.fitting import METHOD, Fit, FitError
from cost_models.specs.hardware import HardwareSpec

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class FittedEntry:
    """An entry for the new document."""

    family: str
    variant: str
    entry: Entry
    fit: Fit


def fit_table(table: TimingTable, hardware: HardwareSpec, base: Calibration) -> tuple[list[FittedEntry], dict[str, str]]:
    """Fit every (operator, variant) of a table; also returns why the others could not be fitted.

    base : calibration whose coefficients stand where the timings do not determine them.
    Raises ProblemError when the table is of another GPU or nothing could be fitted.
    """
    if table.rows.empty:
        left_out = "; ".join(f"{count} of {reason}" for reason, count in table.dropped.items()) or "none was read"
        raise ProblemError(f"no timing is left to fit ({left_out})")
    wrong = sorted(set(table.rows.gpu) - {hardware.gpu.name})
    if wrong:
        raise ProblemError(f"the timings are of {', '.join(wrong)}, {hardware.name} has {hardware.gpu.name}")
    fitted, skipped = [], {}
    for operator, variant, rows in table.groups():
        try:
            fit = _fit(operator, variant, rows, hardware, base)
            entry = _entry(fit, operator, rows)
        except (FitError, MissingFactError, CatalogError) as error:
            skipped[f"{operator}.{variant}"] = str(error)
            continue
        fitted.append(FittedEntry(OPERATORS[operator].family, variant, entry, fit))
    if not fitted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ProblemError(f"nothing could be fitted: {reasons}")
    return fitted, skipped


def _fit(operator: str, variant: str, rows: pd.DataFrame, hardware: HardwareSpec, base: Calibration) -> Fit:
    kind = OPERATORS[operator]
    columns = {name: rows[name].to_numpy(float) for name in kind.columns}
    if kind.fit_module is not None:
        return kind.fit_module(columns, rows.latency_s.to_numpy(float), variant, hardware, base)
    assert kind.fit is not None
    known = base.entry(kind.family, variant).coefficients if base.has(kind.family, variant) else {}
    return kind.fit(columns, rows.latency_s.to_numpy(float), variant, hardware, known)


def _entry(fit: Fit, operator: str, rows: pd.DataFrame) -> Entry:
    described = OPERATORS[operator].described
    box = {
        name: (float(rows[name].min()), float(rows[name].max())) for name in OPERATORS[operator].columns if name not in described
    }
    fields = {
        "coefficients": {name: float(f"{value:.5g}") for name, value in fit.values.items()},
        "ci95": {name: (float(f"{a:.4g}"), float(f"{b:.4g}")) for name, (a, b) in fit.ci95.items()},
        "status": "measured",
        "source": "; ".join(sorted(set(rows.source))),
        "box": box,
        "fit": {  # checked with the entry: what is not finite is said of the fit
            "method": METHOD,
            "points": fit.points,
            "held_out": fit.held_out,
            "median_error": round(fit.median_error, 4),
            "p90_error": round(fit.p90_error, 4),
            "bias": round(fit.bias, 4),
            "measured_over_predicted_80": (round(fit.ratio_80[0], 4), round(fit.ratio_80[1], 4)),
        },
    }
    return validated(Entry, fields, f"the fit of {operator}")
