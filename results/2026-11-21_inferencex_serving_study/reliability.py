"""Whether runs hold limits as often as said: probabilities of runs that were left out, beside the share that held.

usage: python reliability.py cases.csv percentiles.csv vllm.csv

Every point is asked whether it stays below each of LIMITS times its prediction, by the quantiles (10, 50, 90 %) of the other runs of its
kind of service and engine (of all engines where that has fewer than fit_errors.NEEDED). Beside it what one log-normal through the outer two
quantiles says, as before 26 November. Brier score: mean squared distance of the probability from 1 (held) or 0.
"""

from __future__ import annotations

import math
import sys
from statistics import NormalDist

import numpy as np
from fit_errors import METRICS, NEEDED, Ratios, collected

from autotune.serving.errors import QUANTILE_SIGMAS, Spread

LIMITS = (0.8, 1.0, 1.25, 1.6, 2.0, 3.0, 5.0, 10.0)
"""Times the prediction."""
LEAST = 5
"""Points that quantiles are taken of at least."""
NARROWEST = 1.02
"""Ratio of neighbouring quantiles at least: few left-out points may have none between."""
BINS = 5
Said = list[tuple[float, float, bool]]
"""(one log-normal, two halves, held)."""


def one_log_normal(spread: Spread, ratio: float) -> float:
    """Through the outer two quantiles."""
    middle, width = math.log(spread.low * spread.high) / 2, math.log(spread.high / spread.low)
    return NormalDist().cdf((math.log(ratio) - middle) / width * QUANTILE_SIGMAS)


def said(ratios: Ratios, metric: str) -> Said:
    """Of every limit of every point."""
    found: Said = []
    for (kind, _, name), own in ratios.items():
        if name != metric:
            continue
        pooled = [each for (k, _, m), rows in ratios.items() if (k, m) == (kind, metric) for each in rows]
        seen = own if len(own) >= NEEDED else pooled
        for run, ratio in own:
            others = [other for left, other in seen if left != run]
            if len(others) < LEAST:
                continue
            low, middle, high = np.quantile(others, (0.1, 0.5, 0.9)).tolist()
            spread = Spread(min(low, middle / NARROWEST), middle, max(high, middle * NARROWEST))
            found += [(one_log_normal(spread, limit), spread.probability_below(limit), ratio <= limit) for limit in LIMITS]
    return found


def main() -> None:
    """Print a table of the README."""
    ratios = collected(*sys.argv[1:4])
    print("| | said by | Brier score | " + " | ".join(f"{b * 100 // BINS}-{(b + 1) * 100 // BINS} %" for b in range(BINS)) + " |")
    print("|---|---|---:|" + "---:|" * BINS)
    for metric in METRICS:
        rows = np.array(said(ratios, metric), dtype=float)
        held = rows[:, 2]
        for column, name in ((0, "one log-normal"), (1, "two halves")):
            chance = rows[:, column]
            bins = np.minimum((chance * BINS).astype(int), BINS - 1)
            cells = [f"{chance[bins == b].mean():.0%}, {held[bins == b].mean():.0%} ({(bins == b).sum()})" for b in range(BINS)]
            print(f"| {metric} | {name} | {((chance - held) ** 2).mean():.3f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
