"""Ceilings, and shipped coefficients beside our own measurements; prints the README's first two tables.

usage: python study.py h200.csv hgx-h200 [h100.csv hgx-h100]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pandas as pd

from autotune.calibrating.operators import MLA_LATENT, MLA_QK, MLA_ROPE, MLA_V, _decode_shape, _dense_shape, _gemm_shape, _prefill_shape
from cost_models.attention.decode import DecodeAttentionCoefficients, mla_decode_time_s
from cost_models.calibration import Calibration
from cost_models.catalog import calibration_for, load_hardware
from cost_models.collectives import AllReduceCoefficients, all_reduce_time_s
from cost_models.dense_gemm import DenseGemmCoefficients, dense_gemm_time_s
from cost_models.grouped_gemm import GroupedGemmCoefficients, grouped_gemm_time_s
from cost_models.links import Links
from cost_models.attention.prompt import PrefillAttentionCoefficients, prefill_attention_time_s
from cost_models.specs.hardware import HardwareSpec

EXPERT_SHAPE = ("pairs", "local_experts", "active_experts", "input_tokens", "moe_tp")


def ceilings(rows: pd.DataFrame, hardware: HardwareSpec) -> None:
    """Best measured rates beside the datasheet's."""
    gpu = hardware.gpu
    copies = rows[rows.operator == "hbm_copy"]
    hosts = rows[(rows.operator == "host_copy") & (rows.at_once == 1)].set_index("dtype")
    found = [("HBM copy, read + written", (2 * copies.message_bytes / copies.latency_s).max() / 1e12, gpu.hbm_bytes_per_s.value / 1e12, "TB/s")]
    for dtype in ("bf16", "fp8"):
        gemms = rows[(rows.operator == "dense_gemm_kernel") & (rows.dtype == dtype)]
        rate = (2 * gemms.m * gemms.n * gemms.k / gemms.latency_s).max()
        found.append((f"dense GEMM {dtype}", rate / 1e12, gpu.peak_flops_per_s(dtype) / 1e12, "TFLOP/s"))
    gathers = rows[rows.operator == "allgather_reducescatter.dispatch"]
    if len(gathers):
        rate = (gathers.tokens * gathers.token_bytes * (gathers.ranks - 1) / gathers.latency_s).max()
        found.append(("NVLink, all-gather", rate / 1e9, hardware.scale_up.bytes_per_s.value / 1e9, "GB/s"))
    for direction in ("to_device", "to_host"):
        rate = hosts.message_bytes[direction] / hosts.latency_s[direction]
        found.append((f"pinned host copy {direction}", rate / 1e9, hardware.host_link.bytes_per_s.value / 1e9, "GB/s"))
    print(f"| {gpu.name} | measured | datasheet | |\n|---|---:|---:|---:|")
    for name, measured, nominal, unit in found:
        print(f"| {name} | {measured:,.2f} {unit} | {nominal:,.2f} | {measured / nominal:.0%} |")
    launches = rows[rows.operator == "launch"].set_index("dtype")
    for how in ("graph", "eager"):
        print(f"| dependent small kernel, {how} | {launches.latency_s[how] / launches.kernels[how] * 1e6:.2f} us | | |")


def shipped_time_s(part: pd.DataFrame, operator: str, dtype: str, hardware: HardwareSpec, base: Calibration) -> np.ndarray | None:
    """What the shipped coefficients say of measured rows; none where they have no such kernel."""
    columns = {name: part[name].to_numpy(float) for name in part.columns if pd.api.types.is_numeric_dtype(part[name])}

    def of(names: str) -> dict[str, np.ndarray]:
        return {name: columns[name] for name in names.split()}

    priced: dict[str, Callable[[], np.ndarray]] = {
        "dense_gemm_kernel": lambda: dense_gemm_time_s(
            **of("m n k"), **{k: v for k, v in _dense_shape(dtype, hardware).items() if k != "quantised"},
            coefficients=base.get("dense_gemm", dtype, DenseGemmCoefficients),
        ),
        "grouped_gemm": lambda: grouped_gemm_time_s(
            **of(" ".join(EXPERT_SHAPE)), **of("hidden intermediate"), **_gemm_shape(dtype, hardware),
            coefficients=base.get("grouped_gemm", dtype, GroupedGemmCoefficients),
        ),
        "grouped_gemm_kernel": lambda: grouped_gemm_time_s(
            **of("pairs local_experts active_experts moe_tp hidden intermediate"), input_tokens=0.0, **_gemm_shape(dtype, hardware),
            coefficients=base.get("grouped_gemm", dtype, GroupedGemmCoefficients),
        ),
        "mla_decode": lambda: mla_decode_time_s(
            **of("sequences context_tokens heads"), query_tokens=1, latent_dim=MLA_LATENT, rope_dim=MLA_ROPE,
            **_decode_shape(dtype, hardware), coefficients=base.get("mla_decode", dtype, DecodeAttentionCoefficients),
        ),
        "mla_prefill": lambda: prefill_attention_time_s(
            **of("sequences new_tokens prefix_tokens heads"), qk_dim=MLA_QK, v_dim=MLA_V,
            **{k: v for k, v in _prefill_shape(hardware).items() if k != "query_tile"},
            coefficients=base.get("mla_prefill", dtype, PrefillAttentionCoefficients),
        ),
        "all_reduce": lambda: all_reduce_time_s(
            **of("message_bytes ranks"), links=Links.of(hardware), coefficients=base.get("all_reduce", "default", AllReduceCoefficients)
        ),
    }  # fmt: skip
    family = operator.removesuffix("_kernel")
    if operator not in priced or not base.has(family, "default" if operator == "all_reduce" else dtype):
        return None
    return priced[operator]()


def beside_shipped(rows: pd.DataFrame, hardware: HardwareSpec) -> None:
    """Measured over shipped, by operator."""
    base = calibration_for(hardware.gpu.name, "vllm")
    print(f"| {hardware.gpu.name} | kernel measured | rows | measured / shipped, median | P10 | P90 |\n|---|---|---:|---:|---:|---:|")
    for (operator, dtype), part in rows.groupby(["operator", "dtype"]):
        predicted = shipped_time_s(part, operator, dtype, hardware, base)
        if predicted is None:
            continue
        low, middle, high = np.percentile(part.latency_s / predicted, [10, 50, 90])
        kernels = ", ".join(part.kernel.value_counts().index)
        print(f"| {operator} {dtype} | {kernels} | {len(part)} | {middle:.2f} | {low:.2f} | {high:.2f} |")


def main() -> None:
    """All tables of the given pairs of table and hardware."""
    for table, name in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        rows, hardware = pd.read_csv(table), load_hardware(name)
        ceilings(rows, hardware)
        print()
        beside_shipped(rows, hardware)
        print()


if __name__ == "__main__":
    main()
