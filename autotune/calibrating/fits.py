"""Timing table -> calibration entries, one fit per operator and dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autotune.calibrating.timings import OPERATORS, TimingTable
from autotune.errors import ProblemError
from cost_models.attention import fit_gqa_decode, fit_mla_decode
from cost_models.calibration import Entry, FitReport
from cost_models.dense_gemm import fit_dense_gemm
from cost_models.errors import MissingFactError
from cost_models.fitting import METHOD, Fit, FitError
from cost_models.grouped_gemm import fit_grouped_gemm
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.precision import DTYPES

if TYPE_CHECKING:
    import pandas as pd

MLA_LATENT, MLA_ROPE = 512, 64
BLACKWELL_FP8_ATTENTION = ("blackwell",)


@dataclass(frozen=True, slots=True)
class FittedEntry:
    """An entry for the new document."""

    family: str
    variant: str
    entry: Entry
    fit: Fit


def fit_table(table: TimingTable, hardware: HardwareSpec) -> tuple[list[FittedEntry], dict[str, str]]:
    """Fit every (operator, dtype) of a table; also returns why the others could not be fitted.

    Raises ProblemError when the table is of another GPU or nothing could be fitted.
    """
    wrong = sorted(set(table.rows.gpu) - {hardware.gpu.name})
    if wrong:
        raise ProblemError(f"the timings are of {', '.join(wrong)}, {hardware.name} has {hardware.gpu.name}")
    fitted, skipped = [], {}
    for operator, dtype in table.groups():
        rows = table.of(operator, dtype)
        try:
            fit = _fit(operator, dtype, rows, hardware)
        except (FitError, MissingFactError) as error:
            skipped[f"{operator}.{dtype}"] = str(error)
            continue
        fitted.append(FittedEntry(operator, dtype, _entry(fit, operator, rows, table.sources), fit))
    if not fitted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ProblemError(f"nothing could be fitted: {reasons}")
    return fitted, skipped


def _fit(operator: str, dtype: str, rows: pd.DataFrame, hardware: HardwareSpec) -> Fit:
    gpu = hardware.gpu
    if dtype not in DTYPES:
        raise FitError(f"dtype {dtype} is not modelled; known: {', '.join(sorted(DTYPES))}")
    info = DTYPES[dtype]
    columns: dict[str, Any] = {name: rows[name].to_numpy(float) for name in OPERATORS[operator]}
    latency = rows.latency_s.to_numpy(float)
    common: dict[str, Any] = {"hbm_bytes_per_s": gpu.hbm_bytes_per_s.value}
    if operator == "dense_gemm":
        return fit_dense_gemm(
            **columns,
            latency_s=latency,
            weight_bytes=info.weight_bytes,
            activation_bytes=info.activation_bytes,
            peak_flops_per_s=gpu.peak_flops_per_s(info.compute),
            processors=gpu.processors.value,
            quantised=dtype != "bf16",
            **common,
        )
    if operator == "grouped_gemm":
        hidden, intermediate = _single(columns, "hidden"), _single(columns, "intermediate")
        return fit_grouped_gemm(
            **columns,
            latency_s=latency,
            hidden=hidden,
            intermediate=intermediate,
            weight_bytes=info.weight_bytes,
            activation_bytes=info.activation_bytes,
            peak_flops_per_s=gpu.peak_flops_per_s(info.compute),
            **common,
        )
    compute = "fp8" if dtype == "fp8" and gpu.architecture in BLACKWELL_FP8_ATTENTION else "bf16"
    common |= {
        "kv_bytes": info.weight_bytes,
        "peak_flops_per_s": gpu.peak_flops_per_s(compute),
        "processors": gpu.processors.value,
    }
    if operator == "mla_decode":
        return fit_mla_decode(**columns, latency_s=latency, latent_dim=MLA_LATENT, rope_dim=MLA_ROPE, **common)
    head_dim = _single(columns, "head_dim")
    return fit_gqa_decode(**columns, latency_s=latency, head_dim=head_dim, **common)


def _single(columns: dict[str, Any], name: str) -> int:
    """A column that must be the same in every row, taken out of the columns."""
    values = sorted(set(columns.pop(name)))
    if len(values) != 1:
        raise FitError(f"one {name} per table is needed, found {values}")
    return int(values[0])


def _entry(fit: Fit, operator: str, rows: pd.DataFrame, sources: tuple[str, ...]) -> Entry:
    box = {name: (float(rows[name].min()), float(rows[name].max())) for name in OPERATORS[operator]}
    return Entry(
        coefficients={name: float(f"{value:.5g}") for name, value in fit.values.items()},
        ci95={name: (float(f"{a:.4g}"), float(f"{b:.4g}")) for name, (a, b) in fit.ci95.items()},
        status="measured",
        source="; ".join(sources),
        box=box,
        fit=FitReport(
            method=METHOD,
            points=fit.points,
            held_out=fit.held_out,
            median_error=round(fit.median_error, 4),
            p90_error=round(fit.p90_error, 4),
            bias=round(fit.bias, 4),
            measured_over_predicted_80=(round(fit.ratio_80[0], 4), round(fit.ratio_80[1], 4)),
        ),
    )
