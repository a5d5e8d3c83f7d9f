"""Draw left_out.png: mean absolute error as shipped and with each source left out.

    python picture.py
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
NAMES = {"tokens_per_s": "tokens/s", "tpot": "TPOT", "ttft": "TTFT"}


def groups() -> dict[str, list[tuple[float, float]]]:
    """Label -> errors as shipped and without."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with (HERE / "errors.csv").open() as file:
        for row in csv.DictReader(file):
            name = row["name"].split("/")[-1] if row["left_out"] == "page" else row["name"]
            services = " services" if row["source"] == "InferenceX services" else ""
            steps = "" if services or row["left_out"] == "page" else " steps"
            label = f"{row['left_out']} {name}{services}{steps}, {NAMES[row['metric']]}"
            found[label].append((abs(float(row["error"])), abs(float(row["error_without"]))))
    return found


def main() -> None:
    found = groups()
    labels = sorted(found, reverse=True)
    own, without = (np.array([np.mean([pair[i] for pair in found[label]]) for label in labels]) * 100 for i in (0, 1))
    figure, axes = plt.subplots(figsize=(8, 0.34 * len(labels) + 1), layout="constrained")
    axes.hlines(range(len(labels)), own, without, color="0.75", linewidth=3, zorder=1)
    axes.scatter(own, range(len(labels)), color="#1f5fa8", label="as shipped", zorder=2)
    axes.scatter(without, range(len(labels)), color="#c8501e", label="left out", zorder=2)
    axes.set_yticks(range(len(labels)), [f"{label} ({len(found[label])})" for label in labels], fontsize=8)
    axes.set_xlim(left=0)
    axes.set_xlabel("mean absolute error [%]")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "left_out.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
