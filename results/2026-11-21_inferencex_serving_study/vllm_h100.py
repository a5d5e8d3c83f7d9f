"""Loads of a real vLLM 0.24 on H100 -> predictions beside them.

usage: python vllm_h100.py models/ rows.jsonl ... > vllm.csv

rows.jsonl : one line per load, as `vllm bench serve` saves it, with `model_name`, the engine's arguments in `engine` and the load as
cN or rX : input : output : requests in `load`. models/ : a folder with the config.json of each model_name. Loads of prompts below 100
tokens (the front end alone) and of four answer tokens (one prompt alone) are left out.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from autotune.documents.deployment import Deployment
from autotune.errors import ProblemError
from autotune.serving.predicting import predict_service

FEWEST_INPUT, FEWEST_OUTPUT = 100, 5


def option(arguments: list[str], name: str, default: str) -> str:
    return arguments[arguments.index(name) + 1] if name in arguments else default


def deployment(row: dict, models: Path) -> Deployment:
    """The deployment and load that a row measured."""
    arguments, (kind, isl, osl, count) = row["engine"].split(), row["load"].split(":")
    pool: dict[str, object] = {
        "tp": int(option(arguments, "--tensor-parallel-size", "1")),
        "batch_per_dp_rank": int(option(arguments, "--max-num-seqs", "1024")),
        "max_batched_tokens": int(option(arguments, "--max-num-batched-tokens", "8192")),
        "memory_fraction": float(option(arguments, "--gpu-memory-utilization", "0.9")),
    }
    ranks = int(option(arguments, "--data-parallel-size", "1"))
    if ranks > 1:
        pool |= {"dp": ranks, "ep": ranks, "all2all_backend": "allgather_reducescatter"}
    if "llama" not in row["model_name"]:
        pool["expert_balance"] = {"kind": "none", "popularity_sigma": 0}  # the harness routes uniformly
    rate = {"concurrency": int(kind[1:])} if kind.startswith("c") else {"rate_per_s": float(kind[1:])}
    return Deployment.model_validate(
        {
            "hardware": "hgx-h100",
            "model": str(models / row["model_name"] / "config.json"),
            "precision": "bf16",
            "engine": {"name": "vllm", "version": "0.24"},
            "phase": "serve",
            "workload": {"isl_tokens": int(isl), "osl_tokens": int(osl)},
            "pools": {"serve": pool},
            "load": {**rate, "requests": int(count)},
        }
    )


def compared(row: dict, models: Path) -> dict[str, object] | None:
    """One row of the result; none where the model does not fit as the memory model has it."""
    try:
        found = predict_service(deployment(row, models))
    except ProblemError:
        return None
    measured = {
        "ttft": row["mean_ttft_ms"] / 1e3,
        "ttft_p50": row["p50_ttft_ms"] / 1e3,
        "ttft_p99": row["p99_ttft_ms"] / 1e3,
        "tpot": row["mean_tpot_ms"] / 1e3,
        "tokens_per_s": row["output_throughput"],
    }
    predicted = (found.ttft_s.mean, found.ttft_s.p50, found.ttft_s.p99, found.tpot_s.mean, found.tokens_per_s)
    result: dict[str, object] = {"engine": row["tag"], "load": row["load"]}
    for (name, value), guess in zip(measured.items(), predicted, strict=True):
        result |= {f"measured_{name}": f"{value:.5g}", f"predicted_{name}": f"{guess:.5g}"}
    return result


def main() -> None:
    """Predict all loads of the files named on the command line."""
    models, lines = Path(sys.argv[1]), [line for path in sys.argv[2:] for line in Path(path).read_text("utf-8").splitlines()]
    rows = [json.loads(line) for line in lines]
    lengths = [tuple(map(int, row["load"].split(":")[1:3])) for row in rows]
    kept = [row for row, (isl, osl) in zip(rows, lengths, strict=True) if isl >= FEWEST_INPUT and osl >= FEWEST_OUTPUT]
    found = [result for row in kept if (result := compared(row, models))]
    writer = csv.DictWriter(sys.stdout, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)


if __name__ == "__main__":
    main()
