"""Gates in FP32, FlashInfer's CUTLASS experts and launches of recurrent prompts: entries of the calibrations.

usage (from the repository's root; scripts/refit runs it):
  PYTHONPATH=. python results/2026-11-27_gates_and_launches_study/study.py FOLDER     calibrations that it changes
  PYTHONPATH=. python results/2026-11-27_gates_and_launches_study/study.py            how the fit of the gates holds

gates.csv: torch.nn.functional.linear of FP32 inputs and weights (fp32: float32_matmul_precision highest, tf32: high; bf16 beside
them, cast: inputs widened) under a CUDA graph, weights rotating over more than the L2. launches.csv: time from Python to the last
launch, of SGLang 0.5.9's kernels for a prompt in a gated delta layer. Both on one H100, PyTorch 2.11, CUDA 13.0.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from autotune.documents.results import dump_yaml
from cost_models.catalog import load_hardware, read_yaml
from cost_models.dense_gemm import fit_dense_gemm
from cost_models.expert_kernels import WHOLE_EXPERTS
from cost_models.fitting import Fit

HERE = Path(__file__).parent
GATES = {"h100-vllm": "measured", "h200-vllm": "transferred", "gb200-vllm": "transferred"}
"""Calibration -> status of its FP32 GEMM; others inherit from these."""
WIDENED_BYTES = 6.0
"""Widening an input to FP32 reads 2 bytes and writes 4."""
SHARED_KERNELS = {"h100-vllm": "h100-trtllm", "h200-vllm": "h200-trtllm"}
"""Calibration -> the one with TensorRT-LLM's timings of the same CUTLASS experts in FP8 blocks."""
LAST_PADDED = "0.14"
LAST_OF_CUTLASS = "0.16"
"""Last releases of vLLM that decode over spare rows, and that prefer FlashInfer's CUTLASS whatever the parallelism (0.15.1 and
0.16.0, fused_moe/oracle/fp8.py, AVAILABLE_BACKENDS)."""
LAUNCHING = ("h200-sglang", "gb200-sglang", "h200-vllm", "gb200-vllm", "b200-vllm", "b300-vllm")
"""Calibrations with a `host` of their own."""
APART = ("h200-sglang", "gb200-sglang")
LAST_APART = "0.5.9"
"""Last release of SGLang that has four input projections in a layer of Qwen3.5 (models/qwen3_5.py; two from 0.5.10 on)."""
COUNTED = 2
"""Operators of a scan that the floor counts already: the convolution and the recurrence."""


def rows_of(name: str) -> list[dict[str, str]]:
    with open(HERE / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def gates() -> Fit:
    """The FP32 GEMM; one row is another kernel (GEMV) and is left out."""
    found = [row for row in rows_of("gates.csv") if row["mode"] == "fp32" and int(row["m"]) > 1]
    m, n, k, latency_ms = (np.array([float(row[name]) for row in found]) for name in ("m", "n", "k", "latency_ms"))
    gpu = load_hardware("hgx-h100").gpu
    return fit_dense_gemm(
        m, n, k, latency_ms * 1e-3, weight_bytes=4, activation_bytes=4, peak_flops_per_s=gpu.peak_flops_per_s("fp32"),
        hbm_bytes_per_s=gpu.hbm_bytes_per_s.value, processors=gpu.processors.value, architecture=gpu.architecture, quantised=False,
    )  # fmt: skip


def gate_entry(status: str) -> dict[str, Any]:
    fit = gates()
    values = {name: float(f"{value:.5g}") for name, value in fit.values.items()}
    return {
        "coefficients": {**values, "quantise_bytes": WIDENED_BYTES},
        "status": status,
        "source": f"cuBLAS 13.0 timed by us on an H100 over ten routers' shapes ({HERE.name}: {fit.points + fit.held_out} timings); "
        "widening its inputs counted",
        "fit": {
            "method": "soft-L1 least squares on log residuals",
            "points": fit.points,
            "held_out": fit.held_out,
            "median_error": round(fit.median_error, 4),
            "p90_error": round(fit.p90_error, 4),
            "bias": round(fit.bias, 4),
            "measured_over_predicted_80": [round(ratio, 4) for ratio in fit.ratio_80],
        },
    }


def scan_floor_s(operator_s: float) -> float:
    """Launches of a prompt's recurrence beyond what its operators are charged [s]."""
    whole: dict[tuple[str, ...], float] = {}
    for row in rows_of("launches.csv"):
        shape = (row["tokens"], row["sequences"], row["key_heads"])
        whole[shape] = whole.get(shape, 0.0) + float(row["host_us"]) * 1e-6
    return float(f"{median(whole.values()) - COUNTED * operator_s:.3g}")


def apply(folder: Path) -> None:
    """Write the entries; what is there of them already is replaced."""
    names = dict.fromkeys([*GATES, *SHARED_KERNELS, *LAUNCHING])
    for name in names:
        document = read_yaml(folder / f"{name}.yaml")
        families = document["families"]
        if name in GATES:
            families["dense_gemm"]["fp32"] = gate_entry(GATES[name])
        if name in SHARED_KERNELS:
            timed = dict(read_yaml(folder / f"{SHARED_KERNELS[name]}.yaml")["families"]["grouped_gemm"]["fp8_block"])
            source = f"the same kernels as TensorRT-LLM runs them, whose sources FlashInfer took: {timed['source']}"
            entry = {**timed, "status": "transferred", "source": source}
            families["grouped_gemm"][f"fp8_block.{WHOLE_EXPERTS}"] = entry
            earlier = document["earlier"]  # Triton ran where 0.14 and older did not pad
            earlier[LAST_OF_CUTLASS] = {"grouped_gemm": {"fp8_block": bare(entry)}}
            earlier[LAST_PADDED]["grouped_gemm"]["fp8_block"] = bare(families["grouped_gemm"]["fp8_block"])
        if name in LAUNCHING:
            floors(families)
            for earlier in document.get("earlier", {}).values():
                floors(earlier)
        if name in APART:
            earlier = document.setdefault("earlier", {}).setdefault(LAST_APART, {})
            earlier["gated_delta"] = {"projections": projections_entry()}
        document["families"] = document.pop("families")  # last: readers of headers stop there
        (folder / f"{name}.yaml").write_text(dump_yaml(document))


def projections_entry() -> dict[str, Any]:
    return {"coefficients": {"gemms": 4.0}, "status": "measured", "source": "counted in SGLang 0.5.9, models/qwen3_5.py"}


def bare(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without what its fit says of itself."""
    return {name: entry[name] for name in ("coefficients", "status", "source")}


def floors(families: dict[str, Any]) -> None:
    """Add the floor of a scan to the host's coefficients, where they have one of an operator."""
    values = families.get("host", {}).get("default", {}).get("coefficients", {})
    if "eager_operator_s" in values:
        values["eager_scan_s"] = scan_floor_s(values["eager_operator_s"])


if __name__ == "__main__":
    if sys.argv[1:]:
        apply(Path(sys.argv[1]))
    else:
        fit = gates()
        print(fit.values, f"held out: median {fit.median_error:.1%}, nine in ten within {fit.p90_error:.1%}, bias {fit.bias:+.1%}")
