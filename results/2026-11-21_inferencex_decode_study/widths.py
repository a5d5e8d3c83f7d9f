"""How wide the bars of a decode step have to be, engine by engine; and errors.csv.

    python widths.py          (20 s; writes errors.csv and prints the README's tables)

Each point needs its bars drawn apart by some factor until it lies inside; 80 % of the points need no more than the printed width. Left
out: the share inside when the width is chosen on the runs of other systems and precisions.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from autotune.documents.deployment import Deployment
from autotune.predicting import uncertainty as bars
from autotune.predicting.step import predict_decode, resolve
from autotune.validating.cases import load_cases

HERE = Path(__file__).parent


def steps_per_token(deployment: Deployment) -> float:
    """Steps that a sequence waits for a token: SGLang's attention-DP ranks decode nothing in a step in which sequences enter.

    b sequences of o tokens each enter a rank at b / o a step; at random times, a step has none with probability exp(-b / o).
    """
    pool = deployment.pool
    if deployment.engine.name != "sglang" or pool.dp == 1:
        return 1.0
    return float(np.exp(pool.batch_per_dp_rank / deployment.workload.osl_tokens))


def main() -> None:
    rows, groups = [], defaultdict(list)
    needed: dict[str, list[tuple[str, float, bool]]] = defaultdict(list)
    for case in load_cases(HERE / "cases.yaml").cases:
        prediction = predict_decode(resolve(case.deployment))
        assert case.measured.tpot_s is not None
        error = prediction.tpot_s * steps_per_token(case.deployment) / case.measured.tpot_s - 1
        rows.append((case.id, f"{error:+.4f}"))
        group = " ".join(case.id.split("_")[1:4])
        groups[group].append(error)
        engine = case.deployment.engine.name
        low, high = np.log(np.quantile(bars.step_factors(prediction), (0.1, 0.9))) / bars.DECODE_WIDTH.get(engine, 1.0)
        off = -np.log1p(error)
        factor = off / (high if off > 0 else low)
        needed[engine].append((group, float(factor), factor <= bars.DECODE_WIDTH.get(engine, 1.0)))
    with (HERE / "errors.csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["id", "tpot_error"])
        out.writerows(rows)
    errors = np.concatenate(list(groups.values()))
    share = np.mean(np.abs(errors) <= 0.15)
    print(f"mean {np.mean(np.abs(errors)):.1%}, median {np.median(np.abs(errors)):.1%}, bias {np.median(errors):+.1%}, within 15 %: {share:.0%}\n")
    for group, found in sorted(groups.items()):
        print(f"| {group} | {len(found)} | {np.mean(np.abs(found)):.1%} | {np.median(found):+.1%} |")
    print("\n| engine | points | width that covers 80 % | left out | inside as shipped |\n|---|---:|---:|---:|---:|")
    for engine, points in sorted(needed.items()):
        names, factors = np.array([name for name, *_ in points]), np.array([factor for _, factor, _ in points])
        left = [np.mean(factors[names == name] <= np.quantile(factors[names != name], 0.8)) * np.sum(names == name) for name in set(names)]
        inside = np.mean([shipped for *_, shipped in points])
        print(f"| {engine} | {len(points)} | {np.quantile(factors, 0.8):.2f} | {sum(left) / len(points):.0%} | {inside:.0%} |")


if __name__ == "__main__":
    main()
