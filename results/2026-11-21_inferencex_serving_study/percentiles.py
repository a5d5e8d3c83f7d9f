"""Newer InferenceX points with percentiles, none of which any constant has seen -> predictions beside them.

usage: python percentiles.py inferencex_2026.csv > percentiles.csv

Rows: NVIDIA GPUs, the newest run of each point, no note, not in the table that the study is fitted to. Deployments by the rules of
build_cases.py.
"""

from __future__ import annotations

import csv
import sys
from concurrent.futures import ProcessPoolExecutor

from build_cases import HARDWARE, case

from autotune.documents.deployment import Deployment
from autotune.errors import ProblemError
from autotune.serving.predicting import predict_service


def wanted(row: dict[str, str]) -> bool:
    """Whether a row belongs to the held-out points."""
    known = row["system"] in HARDWARE and row["engine"] in ("sglang", "trtllm") and bool(row["tpot_p50_ms"])
    return known and row["newest"] == "1" and not row["note"] and not row["same_as"] and row["spec"] == "none"


def predicted(row: dict[str, str]) -> dict[str, object] | None:
    """One row of the result; none where the pools do not fit the memory as assumed."""
    means = {"ttft_ms": row["ttft_ms"] or row["ttft_p50_ms"], "tpot_ms": row["tpot_ms"] or row["tpot_p50_ms"]}
    deployment = Deployment.model_validate(case({**row, **means})["deployment"])
    try:
        found = predict_service(deployment)
    except ProblemError:
        return None
    result: dict[str, object] = {"id": row["id"], "engine": row["engine"], "mode": row["mode"], "date": row["date"]}
    for name, seen in (("ttft", found.ttft_s), ("tpot", found.tpot_s)):
        for which in ("p50", "p99"):
            measured = row[f"{name}_{which}_ms"]
            result[f"measured_{name}_{which}_s"] = round(float(measured) / 1e3, 6) if measured else ""
            result[f"predicted_{name}_{which}_s"] = round(getattr(seen, which), 6)
    return result


def main() -> None:
    """Predict the rows of the table named on the command line and print them."""
    with open(sys.argv[1], newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if wanted(row)]
    with ProcessPoolExecutor() as processes:
        found = [row for row in processes.map(predicted, rows) if row]
    writer = csv.DictWriter(sys.stdout, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)


if __name__ == "__main__":
    main()
