"""Loads of a real vLLM 0.24 on one and two H100 -> predictions of the services beside them.

usage: python vllm_h100.py > vllm.csv        (reads measured.csv of ../2026-11-25_vllm_h100_study)

Loads of prompts below 100 tokens (the front end alone) and of four answer tokens (one prompt alone) are left out.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from autotune.auditing.engine_memory.base import Said
from autotune.auditing.engine_memory.registry import in_engine_memory
from autotune.documents.deployment import Deployment
from autotune.serving.predicting import predict_service

MEASURED = Path(__file__).parent.parent / "2026-11-25_vllm_h100_study" / "measured.csv"
MEMORY_FRACTION = 0.92
"""--gpu-memory-utilization of every run; what of it becomes KV cache is the engine's arithmetic."""
FEWEST_INPUT, FEWEST_OUTPUT = 100, 5
LAYOUTS = {"tp1": {}, "tp2": {"tp": 2}, "dp2_ep2": {"dp": 2, "ep": 2, "all2all_backend": "allgather_reducescatter"}}
COLUMNS = {"ttft": "ttft_mean_ms", "ttft_p50": "ttft_p50_ms", "ttft_p99": "ttft_p99_ms", "tpot": "tpot_mean_ms"}


def deployment(row: dict[str, str]) -> Deployment:
    """The deployment and load that a row measured; the harness routes tokens uniformly."""
    chunk, kind, number = int(row["chunk_tokens"]), row["load"][0], float(row["load"][1:])
    pool = {
        "batch_per_dp_rank": 256,
        "max_batched_tokens": chunk,
        "prefix_caching": False,
        **LAYOUTS[row["layout"]],
    }
    rate = {"concurrency": int(number)} if kind == "c" else {"rate_per_s": number}
    workload = {"isl_tokens": int(row["isl"]), "osl_tokens": int(row["osl"]), "popularity_sigma": 0.0}
    found = Deployment.model_validate(
        {
            "hardware": "hgx-h100",
            "model": row["model"],
            "precision": "bf16",
            "engine": {"name": "vllm", "version": "0.24"},
            "phase": "serve",
            "workload": workload,
            "pools": {"serve": pool},
            "load": {**rate, "requests": int(row["requests"])},
        }
    )
    return in_engine_memory(found, Said(fraction=MEMORY_FRACTION, budget_tokens=chunk))


def compared(row: dict[str, str]) -> dict[str, object]:
    """One row of the result."""
    found = predict_service(deployment(row))
    measured = {name: float(row[column]) / 1e3 for name, column in COLUMNS.items()}
    measured["tokens_per_s"] = float(row["output_tokens_per_s"])
    predicted = (found.ttft_s.mean, found.ttft_s.p50, found.ttft_s.p99, found.tpot_s.mean, found.tokens_per_s)
    result: dict[str, object] = {name: row[name] for name in ("model", "layout", "chunk_tokens", "load", "isl", "osl")}
    for (name, value), guess in zip(measured.items(), predicted, strict=True):
        result |= {f"measured_{name}": f"{value:.5g}", f"predicted_{name}": f"{guess:.5g}"}
    return result


def main() -> None:
    """Predict all loads and print them."""
    with MEASURED.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["isl"]) >= FEWEST_INPUT and int(row["osl"]) >= FEWEST_OUTPUT]
    found = [compared(row) for row in rows]
    writer = csv.DictWriter(sys.stdout, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)


if __name__ == "__main__":
    main()
