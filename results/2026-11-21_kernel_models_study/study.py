"""Held-out errors, interval coverage and extrapolation of the kernel models on the public silicon database.

    python study.py > errors.csv          (needs the extra `silicon`; about two minutes)
"""

from __future__ import annotations

import csv
import sys

import numpy as np

from autotune.calibrating.operators import OPERATORS
from autotune.calibrating.silicon import read_silicon
from cost_models.catalog import calibration_for, load_hardware

MACHINES = (("GB200", "gb200-nvl72", "trtllm"), ("GB200", "gb200-nvl72", "sglang"), ("H200", "hgx-h200", "trtllm"), ("H200", "hgx-h200", "sglang"))
SPLITS = {
    "dense_gemm": ("m <= 512 -> m >= 1,024", "m", 512, 1024),
    "mla_decode": ("context <= 4K -> >= 16K", "context_tokens", 4096, 16384),
    "mla_prefill": ("prompt <= 2K -> >= 6K", "new_tokens", 2048, 6144),
    "gqa_prefill": ("prompt <= 2K -> >= 6K", "new_tokens", 2048, 6144),
    "gqa_decode": ("context <= 4K -> >= 16K", "context_tokens", 4096, 16384),
    "grouped_gemm": ("tokens <= 1,024 -> >= 4,096", "input_tokens", 1024, 4096),
    "nvlink_one_sided.dispatch": ("EP <= 8 -> 16, 32", "ranks", 8, 16),
    "nvlink_one_sided.combine": ("EP <= 8 -> 16, 32", "ranks", 8, 16),
    "deepep_low_latency.dispatch": ("EP <= 16 -> 32, 64", "ranks", 16, 32),
    "deepep_low_latency.combine": ("EP <= 16 -> 32, 64", "ranks", 16, 32),
    "allgather_reducescatter.dispatch": ("2, 4 GPUs -> 8, 16", "ranks", 4, 8),
    "allgather_reducescatter.combine": ("2, 4 GPUs -> 8, 16", "ranks", 4, 8),
    "all_reduce": ("2, 4 GPUs -> 8, 16", "ranks", 4, 8),
}
SECOND_SPLITS = {"mla_decode": ("context <= 16K -> >= 64K", "context_tokens", 16384, 65536)}


def fit(operator, variant, rows, hardware, base, held_out=None):
    kind = OPERATORS[operator]
    columns = {name: rows[name].to_numpy(float) for name in kind.columns}
    if kind.fit_module is not None:
        return kind.fit_module(columns, rows.latency_s.to_numpy(float), variant, hardware, base)
    known = base.entry(kind.family, variant).coefficients if base.has(kind.family, variant) else {}
    if held_out is not None:
        columns["held_out"] = held_out
    return kind.fit(columns, rows.latency_s.to_numpy(float), variant, hardware, known)


def coverage(ratios, splits=50):
    """Split conformal: the 80 % range of a random half of the held-out rows, judged on the other half."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(splits):
        order = rng.permutation(len(ratios))
        first, second = ratios[order[: len(order) // 2]], ratios[order[len(order) // 2 :]]
        low, high = np.quantile(first, (0.1, 0.9))
        shares.append(np.mean((second >= low) & (second <= high)))
    return float(np.mean(shares))


def main() -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["gpu", "engine", "operator", "variant", "test", "rows", "median_error", "p90_error", "bias", "coverage_80"])
    for gpu, hw, engine in MACHINES:
        hardware, base = load_hardware(hw), calibration_for(gpu, engine)
        for operator, variant, rows in read_silicon(gpu, engine).groups():
            try:
                plain = fit(operator, variant, rows, hardware, base)
            except Exception as error:  # noqa: BLE001  # a study reports what cannot be fitted
                print(gpu, engine, operator, variant, error, file=sys.stderr)
                continue
            share = coverage(plain.ratios)
            errors = (f"{plain.median_error:.4f}", f"{plain.p90_error:.4f}", f"{plain.bias:.4f}")
            out.writerow([gpu, engine, operator, variant, "held out", plain.held_out, *errors, f"{share:.3f}"])
            for splits in (SPLITS, SECOND_SPLITS):
                if operator not in splits:
                    continue
                name, column, low, high = splits[operator]
                kept = rows[(rows[column] <= low) | (rows[column] >= high)]
                mask = (kept[column] >= high).to_numpy()
                if not mask.any() or mask.all():
                    continue
                try:
                    far = fit(operator, variant, kept, hardware, base, mask)
                except Exception as error:  # noqa: BLE001
                    print(gpu, engine, operator, variant, name, error, file=sys.stderr)
                    continue
                errors = (f"{far.median_error:.4f}", f"{far.p90_error:.4f}", f"{far.bias:.4f}")
                out.writerow([gpu, engine, operator, variant, name, far.held_out, *errors, ""])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
