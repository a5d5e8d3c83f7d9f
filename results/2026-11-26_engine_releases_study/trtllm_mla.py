"""MLA decode kernels of TensorRT-LLM up to 1.0: fit to the silicon tables of those releases, written into the calibrations.

usage (from the repository's root; scripts/refit runs it):
  PYTHONPATH=. python results/2026-11-26_engine_releases_study/trtllm_mla.py WHEEL FOLDER   calibrations that it changes
  PYTHONPATH=. python results/2026-11-26_engine_releases_study/trtllm_mla.py WHEEL          both releases beside each other

WHEEL: aiconfigurator-0.8.0-py3-none-any.whl (PyPI, Apache-2.0), the last package with tables of TensorRT-LLM 1.0.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from autotune.calibrating.fits import fit_table
from autotune.calibrating.silicon_kernels import mla_decode_rows
from autotune.calibrating.timings import checked_rows
from autotune.documents.results import dump_yaml
from cost_models import catalog
from cost_models.attention.decode import DecodeAttentionCoefficients, mla_decode_time_s
from cost_models.catalog import load_hardware, read_yaml
from cost_models.specs.hardware import HardwareSpec

LAST = "1.0"
"""Last release that these kernels are priced for: 1.0.0rc6 has them, 1.1.0 is as fast as 1.3 (GB200); between them nothing was timed."""
TABLES = {
    "h100": ("hgx-h100", "h100_sxm/trtllm/1.0.0rc3"),
    "h200": ("hgx-h200", "h200_sxm/trtllm/1.0.0rc3"),
    "b200": ("hgx-b200", "b200_sxm/trtllm/1.0.0rc6"),
    "gb200": ("gb200-nvl72", "gb200/trtllm/1.0.0rc6"),
}
"""Calibration -> machine and folder of its table."""
HEADS = 128
BATCHES, CONTEXTS = (32, 256, 1024), (1024, 2048, 8192)


def table(wheel: Path, folder: str) -> tuple[pd.DataFrame, str]:
    """Rows of generation_mla_perf.txt with dtypes as newer tables call them, and where they are from."""
    inside = f"aiconfigurator/systems/data/{folder}/generation_mla_perf.txt"
    with zipfile.ZipFile(wheel) as archive:
        raw = archive.read(inside)
    rows = pd.read_csv(io.BytesIO(raw)).replace("float16", "bfloat16")
    return rows[rows.latency > 0], f"aiconfigurator 0.8.0 {folder}/generation_mla_perf.txt sha256 {hashlib.sha256(raw).hexdigest()}"


def apply(wheel: Path, folder: Path) -> None:
    """Write the entries of older releases."""
    for name, (hardware, inside) in TABLES.items():
        path = folder / f"{name}-trtllm.yaml"
        machine = load_hardware(hardware)
        raw, source = table(wheel, inside)
        rows, _ = mla_decode_rows(raw, "trtllm")
        timings = checked_rows(rows.assign(gpu=machine.gpu.name), inside, source)
        fitted, _ = fit_table(timings, machine, catalog.load_calibration(str(path)))
        document = read_yaml(path)
        families = document.pop("families")
        entries = {one.variant: one.entry.model_dump(mode="json", exclude_none=True, exclude_defaults=True) for one in fitted}
        document["earlier"] = {LAST: {"mla_decode": entries}}
        document["families"] = families  # last: readers of headers stop there
        path.write_text(dump_yaml(document))


def beside(wheel: Path) -> None:
    """What the old table has, how its fit and the newest release's lie to it."""
    for name, (hardware, inside) in TABLES.items():
        machine, calibration = load_hardware(hardware), catalog.load_calibration(f"{name}-trtllm")
        raw, _ = table(wheel, inside)
        raw = raw[(raw.num_heads == HEADS) & (raw.tp_size == 1)].assign(context=raw.isl + raw.step)
        for dtype, bytes_each in (("bfloat16", 2.0), ("fp8", 1.0)):
            kept = raw[(raw.kv_cache_dtype == dtype) & raw.batch_size.isin(BATCHES) & raw.context.isin(CONTEXTS)]
            variant = "bf16" if dtype == "bfloat16" else dtype
            releases = (calibration.at("1.0.0"), calibration)
            each = [one.get("mla_decode", variant, DecodeAttentionCoefficients) for one in releases]
            shape = (machine, variant, bytes_each)
            fit, newest = (predicted_s(kept, *shape, c) / (kept.latency * 1e-3) for c in each)
            for at, row in kept.iterrows():
                print(f"| {name} | {dtype} | {row.batch_size} | {row.context} | {row.latency * 1e3:.0f} us | {fit[at]:.2f} | {newest[at]:.2f} |")


def predicted_s(rows: pd.DataFrame, machine: HardwareSpec, dtype: str, kv_bytes: float, c: DecodeAttentionCoefficients) -> np.ndarray:
    """Each row by one set of coefficients [s]."""
    gpu = machine.gpu
    peak = gpu.peak_flops_per_s("fp8" if dtype == "fp8" and gpu.architecture == "blackwell" else "bf16")
    return mla_decode_time_s(
        rows.batch_size, rows.context, rows.num_heads, 1, latent_dim=512, rope_dim=64, kv_bytes=kv_bytes, peak_flops_per_s=peak,
        hbm_bytes_per_s=gpu.hbm_bytes_per_s.value, processors=gpu.processors.value, coefficients=c,
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[2:]:
        apply(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        beside(Path(sys.argv[1]))
