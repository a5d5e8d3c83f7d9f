"""Predictions beside measurements -> error bands of services, with their coverage when a run is left out.

usage: python fit_errors.py cases.csv percentiles.csv vllm.csv > service_errors.yaml

cases.csv : of `autotune validate cases.yaml --out FOLDER`, means. percentiles.csv : of percentiles.py. vllm.csv : of vllm_h100.py.
Bands are quantiles of measured / predicted by kind of service and engine, about 10 % and 90 %: as far out as it takes to cover 80 % of
the runs that were left out, drawn in or stretched about their middle where no quantile comes near enough. An engine with fewer than NEEDED rows takes the band
of all engines.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict

import numpy as np

NEEDED = 12
COVERED = 0.80
NEAR = 0.02
"""As near as a share should come to COVERED; among those that do, the quantiles nearest to 10 and 90 %, stretched least."""
LEVELS = tuple(np.arange(0.25, 0.0199, -0.005).tolist())
"""Quantiles tried, from inside the 80 % interval on: what a run left out of few needs."""
STRETCHES = tuple(np.arange(0.8, 2.01, 0.02).tolist())
"""Factors on the log of a band's width."""
MEANS = {"ttft": "ttft_s", "tpot": "tpot_s", "tokens_per_s": "tokens_per_s_per_gpu"}
Ratios = dict[tuple[str, str, str], list[tuple[str, float]]]
"""(kind, engine, metric) -> (run, measured / predicted)."""


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add(ratios: Ratios, kind: str, engine: str, metric: str, run: str, measured: str, predicted: str) -> None:
    if measured and predicted and float(measured) > 0 and float(predicted) > 0:
        ratios[kind, engine, metric].append((run, float(measured) / float(predicted)))


def collected(cases: str, percentiles: str, vllm: str) -> Ratios:
    """All ratios of the three tables."""
    ratios: Ratios = defaultdict(list)
    for row in rows_of(cases):
        if row["named"] == "True":
            kind = "disaggregated" if "_disagg_" in row["id"] else "aggregated"
            engine = "sglang" if "_sglang_" in row["id"] else "trtllm"
            run = "_".join(row["id"].split("_")[:-4])
            for metric, column in MEANS.items():
                add(ratios, kind, engine, metric, run, row[f"measured_{column}"], row[f"predicted_{column}"])
    for row in rows_of(percentiles):
        kind = "disaggregated" if row["mode"] == "disagg" else "aggregated"
        for which in ("p50", "p99"):
            name = f"ttft_{which}_s"
            add(
                ratios,
                kind,
                row["engine"],
                f"ttft_{which}",
                row["id"].rsplit("_c", 1)[0],
                row[f"measured_{name}"],
                row[f"predicted_{name}"],
            )
    for row in rows_of(vllm):
        for metric in ("ttft", "ttft_p50", "ttft_p99", "tpot", "tokens_per_s"):
            add(
                ratios,
                "aggregated",
                "vllm",
                metric,
                f"{row['model']} {row['layout']}",
                row[f"measured_{metric}"],
                row[f"predicted_{metric}"],
            )
    return ratios


def limits(values: np.ndarray, level: float, stretch: float) -> tuple[float, float]:
    """Quantiles at level and 1 - level, drawn apart about their middle on a log scale."""
    low, high = np.log(np.quantile(values, (level, 1 - level)))
    middle, half = (low + high) / 2, (high - low) / 2 * stretch
    return float(np.exp(middle - half)), float(np.exp(middle + half))


def covered(runs: np.ndarray, values: np.ndarray, level: float, stretch: float) -> float:
    """Share of the points inside the band of the other runs."""
    inside = 0
    for run in set(runs.tolist()):
        left = runs == run
        low, high = limits(values[~left] if (~left).any() else values, level, stretch)
        inside += int(((values[left] >= low) & (values[left] <= high)).sum())
    return inside / len(values)


def band(found: list[tuple[str, float]]) -> tuple[float, float, float]:
    """(low, high, share inside with its run left out): of the bands whose left-out runs are covered, the least bent one."""
    runs, values = np.array([run for run, _ in found]), np.array([ratio for _, ratio in found])
    tried = [(level, stretch, covered(runs, values, level, stretch)) for level in LEVELS for stretch in STRETCHES]
    nearest = min(abs(share - COVERED) for *_, share in tried)
    kept = [each for each in tried if abs(each[2] - COVERED) <= max(nearest, NEAR)]
    level, stretch, share = min(
        kept, key=lambda each: (abs(np.log(each[1])) + abs(np.log(each[0] / 0.1)), abs(each[2] - COVERED))
    )
    return (*limits(values, level, stretch), share)


def main() -> None:
    """Print the document."""
    ratios = collected(*sys.argv[1:4])
    print(
        "# Measured / predicted, about 80 % of runs left out lie inside; made by results/2026-11-21_inferencex_serving_study/fit_errors.py"
    )
    print("source: InferenceX points of DeepSeek-R1 without a note, and vLLM 0.24 on one and two H100")
    for kind in ("aggregated", "disaggregated"):
        print(f"{kind}:")
        pooled = {m: [r for (k, _, metric), found in ratios.items() if (k, metric) == (kind, m) for r in found] for m in METRICS}
        engines = sorted({engine for k, engine, _ in ratios if k == kind})
        for engine in ("default", *engines):
            own = {m: ratios.get((kind, engine, m), []) for m in METRICS}
            chosen = {m: own[m] if len(own[m]) >= NEEDED else pooled[m] for m in METRICS}
            print(f"  {engine}:\n    points: {len(chosen['tpot'])}")
            for metric, found in chosen.items():
                low, high, inside = band(found)
                middle = float(np.median([ratio for _, ratio in found]))
                print(
                    f"    {metric}: {{low: {low:.3g}, middle: {middle:.3g}, high: {high:.3g}}}  # {len(found)} points, {inside:.0%} inside with their run left out"
                )


METRICS = ("ttft", "ttft_p50", "ttft_p99", "tpot", "tokens_per_s")

if __name__ == "__main__":
    main()
