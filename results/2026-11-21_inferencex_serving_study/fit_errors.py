"""cases.csv of `autotune validate cases.yaml --out FOLDER` -> error bands, with their coverage when a run is left out.

usage: python fit_errors.py FOLDER/cases.csv
"""

from __future__ import annotations

import csv
import sys

import numpy as np

METRICS = {
    "ttft": ("measured_ttft_s", "predicted_ttft_s"),
    "tpot": ("measured_tpot_s", "predicted_tpot_s"),
    "tokens_per_s": ("measured_tokens_per_s_per_gpu", "predicted_tokens_per_s_per_gpu"),
}


def main() -> None:
    """Print the bands."""
    with open(sys.argv[1], newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["named"] == "True"]
    for mode in ("aggregated", "disaggregated"):
        chosen = [row for row in rows if ("_disagg_" in row["id"]) == (mode == "disaggregated")]
        runs = np.array(["_".join(row["id"].split("_")[:-4]) for row in chosen])
        print(f"{mode}: {len(chosen)} points, {len(set(runs))} runs")
        for name, (measured, predicted) in METRICS.items():
            ratio = np.array([float(row[measured]) / float(row[predicted]) for row in chosen])
            low, high = np.quantile(ratio, (0.1, 0.9))
            inside = 0
            for run in set(runs):
                left = runs == run
                bounds = np.quantile(ratio[~left], (0.1, 0.9))
                inside += int(((ratio[left] >= bounds[0]) & (ratio[left] <= bounds[1])).sum())
            print(f"  {name}: {{low: {low:.3g}, high: {high:.3g}}}  # {inside / len(ratio):.0%} inside with their run left out")


if __name__ == "__main__":
    main()
