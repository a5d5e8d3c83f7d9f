"""Recorded expert loads of the benchmark's prompts -> how much the busiest rank has over the mean.

usage: python prompt_loads.py FOLDER > prompt_loads.csv     # configs/expert-distributions of a checkout of NVIDIA/srt-slurm

The recordings (SGLang's, one count for each of 58 layers and 256 experts) are of prompts: about 1,024 of them of 1,024 or 8,192
tokens, as many with long answers as with short ones. Experts lie in their order, rank by rank; what counts for a step is the sum
over layers, so the mean over them.
"""

from __future__ import annotations

import csv
import sys
import zipfile
from pathlib import Path

import numpy as np

EXPERTS = 256
RANKS = (2, 4, 8, 16, 32)


def loads(path: Path) -> np.ndarray:
    """Tokens by layer and expert, (layers with experts, 256), of the one tensor that a recording holds; none where all are zero."""
    with zipfile.ZipFile(path) as archive:
        counts = np.frombuffer(
            max((archive.read(name) for name in archive.namelist() if "/data/" in name), key=len), dtype=np.int64
        )
    by_layer = counts[: len(counts) // EXPERTS * EXPERTS].reshape(-1, EXPERTS).astype(float)
    return by_layer[by_layer.sum(axis=1) > 0]


def busiest_over_mean(by_layer: np.ndarray, ranks: int) -> float:
    """Mean over layers of the busiest rank's tokens over an even share [-]."""
    of_ranks = by_layer.reshape(len(by_layer), ranks, -1).sum(axis=2)
    return float((of_ranks.max(axis=1) / of_ranks.mean(axis=1)).mean())


def main() -> None:
    """Read the recordings of the folder named on the command line and print their mean by ranks."""
    found = [one for path in sorted(Path(sys.argv[1]).glob("*.pt")) if len(one := loads(path))]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("ranks", "busiest_over_mean", "least", "most", "recordings"))
    for ranks in RANKS:
        each = [busiest_over_mean(one, ranks) for one in found]
        writer.writerow((ranks, *(round(x, 2) for x in (float(np.mean(each)), min(each), max(each))), len(each)))


if __name__ == "__main__":
    main()
