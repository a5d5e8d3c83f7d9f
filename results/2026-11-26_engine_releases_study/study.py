"""Expert kernels of older vLLM releases on Hopper: fit to timings of the kernel, written into the calibrations.

usage (from the repository's root; scripts/refit runs it):
  PYTHONPATH=. python results/2026-11-26_engine_releases_study/study.py FOLDER     calibrations that it changes
  PYTHONPATH=. python results/2026-11-26_engine_releases_study/study.py            how the fit holds, halves left out

timings.csv: DeepGEMM 2.5.0's m_grouped_fp8_gemm_nt_contiguous, as vLLM 0.24 brings it, under a CUDA graph on one H100; the layer
of Qwen3-235B at TP2 and TP4, over all rows that vLLM 0.12 hands it and over those of active experts alone.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from autotune.documents.results import dump_yaml
from cost_models.catalog import load_hardware, read_yaml
from cost_models.expert_kernels import PADDED
from cost_models.grouped_gemm import GroupedGemmCoefficients, grouped_gemm_time_s

HERE = Path(__file__).parent
HOPPER = {"h100-vllm": "measured", "h200-vllm": "transferred"}
"""Calibration -> status of its entry: the kernel was timed on an H100."""
LAST_PADDED = "0.14"
"""Last release that gives decoding to DeepGEMM: vllm 0.14.1, fused_moe/oracle/fp8.py."""
SPARE_ROWS = 127.0
"""Most that padding one expert's tokens to 128 rows adds (fused_moe/deep_gemm_utils.py, compute_aligned_M)."""
EXPERTS, HIDDEN, WIDTH = 128, 4096, 1536
FITTED = {"start_s": 2e-5, "compute_efficiency": 0.8, "memory_efficiency": 0.9, "sharpness": 1.5, "per_active_expert_s": 1e-7}
MOST = {"compute_efficiency": 0.98, "memory_efficiency": 0.98, "sharpness": 8.0}
LAUNCHES_S = 6 * 2.2e-6
"""Around the two GEMMs: quantise, sort, scatter, activate, quantise, gather; 2.2 us each (2026-11-26_vllm_traces_study)."""
PASSES = 9 / 6 / 0.84
"""Activation and second quantisation move 9 bytes an element of the rank's width (2 x 2 in, 2 out; 2 in, 1 out), where the form
counts 6; a copy of the same rows ran at 0.84 of the datasheet's bandwidth."""


def timings() -> NDArray[np.float64]:
    """(rows, columns) of the timings: tp, tokens, active experts, pairs, rows, us of the two GEMMs, ..."""
    with open(HERE / "timings.csv", newline="", encoding="utf-8") as file:
        return np.array(list(csv.reader(file))[1:], dtype=float)


def gemms_s(rows: NDArray[np.float64], values: dict[str, float]) -> NDArray[np.float64]:
    """The two GEMMs of each row [s]."""
    gpu = load_hardware("hgx-h100").gpu
    c = GroupedGemmCoefficients(**values, spare_rows=SPARE_ROWS)
    return grouped_gemm_time_s(
        rows[:, 3], EXPERTS, rows[:, 2], rows[:, 1], rows[:, 0], hidden=HIDDEN, intermediate=WIDTH, weight_bytes=1.0,
        activation_bytes=1.0, peak_flops_per_s=gpu.peak_flops_per_s("fp8"), hbm_bytes_per_s=gpu.hbm_bytes_per_s.value, coefficients=c,
    )  # fmt: skip


def fitted(rows: NDArray[np.float64]) -> dict[str, float]:
    """Coefficients of the two GEMMs by least squares of logarithms."""
    measured = (rows[:, 5] + rows[:, 6]) * 1e-6
    start = np.log(list(FITTED.values()))
    most = np.log([MOST.get(name, 1.0) for name in FITTED])
    least = [0.0 if name == "sharpness" else -25.0 for name in FITTED]

    def named(x: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(FITTED, map(float, np.exp(x)), strict=True))

    found = least_squares(lambda x: np.log(gemms_s(rows, named(x)) / measured), start, bounds=(least, most))
    return named(found.x)


def entry(status: str) -> dict[str, Any]:
    """The kernel with what vLLM runs around it."""
    values = fitted(timings())
    values["start_s"] += LAUNCHES_S
    values |= {"pair_passes": PASSES, "spare_rows": SPARE_ROWS}
    source = (
        "DeepGEMM 2.5.0's contiguous kernel timed by us on an H100 over the rows that vLLM up to 0.14 hands it "
        f"({HERE.name}: 12 timings); launches and passes around it counted from vLLM 0.12"
    )
    return {"coefficients": {name: float(f"{value:.5g}") for name, value in values.items()}, "status": status, "source": source}


def apply(folder: Path) -> None:
    """Write the entries of older releases."""
    for name, status in HOPPER.items():
        document = read_yaml(folder / f"{name}.yaml")
        families = document.pop("families")
        document["earlier"] = {LAST_PADDED: {"grouped_gemm": {f"fp8_block.{PADDED}": entry(status)}}}
        document["families"] = families  # last: readers of headers stop there
        (folder / f"{name}.yaml").write_text(dump_yaml(document))


def table() -> None:
    """Each timing by a fit that saw the other half and by the one that is shipped."""
    rows = timings()
    for at, row in enumerate(rows):
        seen = [fitted(rows[1 - at % 2 :: 2]), fitted(rows)]
        errors = [gemms_s(rows[at : at + 1], values)[0] / ((row[5] + row[6]) * 1e-6) - 1 for values in seen]
        print(f"| {row[0]:.0f} | {row[1]:.0f} | {row[5] + row[6]:.0f} us | {errors[0]:+.1%} | {errors[1]:+.1%} |")


if __name__ == "__main__":
    if sys.argv[1:]:
        apply(Path(sys.argv[1]))
    else:
        table()
