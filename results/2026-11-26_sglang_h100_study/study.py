"""Loads of a real SGLang 0.5.14 on one H100 -> predictions of the services beside them.

usage: python study.py > errors.csv        (reads measured.csv beside it)

Rows of `mixed` prompts are not predicted: no policy of the replay mixes them as that option does. Loads of prompts below 100
tokens and of four answer tokens show single steps and are left out. `used` says which half set constants (every other load
of each server, in the order of measured.csv) and which was only looked at.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from autotune.documents.deployment import Deployment
from autotune.serving.predicting import predict_service

FEWEST_INPUT, FEWEST_OUTPUT = 100, 5
BUDGET_TOKENS = 8192
"""SGLang's own choice of chunk on a GPU of 80 GB."""
FRACTION = {"llama-3.1-8b": 0.868, "qwen3-30b-a3b": 0.877}
"""So that the KV cache holds what the engine logged: 410,620 and 94,207 tokens."""


def deployment(row: dict[str, str]) -> Deployment:
    """The deployment and load that a row measured; the harness routes tokens uniformly."""
    kind, number = row["load"][0], float(row["load"][1:])
    pool = {"max_batched_tokens": BUDGET_TOKENS, "memory_fraction": FRACTION[row["model"]], "prefix_caching": False}
    rate = {"concurrency": int(number)} if kind == "c" else {"rate_per_s": number}
    return Deployment.model_validate(
        {
            "hardware": "hgx-h100",
            "model": row["model"],
            "precision": "bf16",
            "engine": {"name": "sglang", "version": "0.5.14"},
            "phase": "serve",
            "workload": {"isl_tokens": int(row["isl"]), "osl_tokens": int(row["osl"]), "popularity_sigma": 0.0},
            "pools": {"serve": pool},
            "load": {**rate, "requests": int(row["requests"])},
        }
    )


def compared(row: dict[str, str], used: str) -> dict[str, object]:
    """One row of the result."""
    found = predict_service(deployment(row))
    pairs = {
        "ttft_p50": (float(row["ttft_p50_ms"]) / 1e3, found.ttft_s.p50),
        "ttft_mean": (float(row["ttft_mean_ms"]) / 1e3, found.ttft_s.mean),
        "tpot": (float(row["tpot_mean_ms"]) / 1e3, found.tpot_s.mean),
        "tokens_per_s": (float(row["output_tokens_per_s"]), found.tokens_per_s),
    }
    result: dict[str, object] = {name: row[name] for name in ("model", "server", "load", "isl", "osl")} | {"used": used}
    for name, (measured, guess) in pairs.items():
        result |= {f"measured_{name}": f"{measured:.4g}", f"predicted_{name}": f"{guess:.4g}", f"error_{name}": f"{guess / measured - 1:+.3f}"}
    return result


def main() -> None:
    """Predict all loads and print them."""
    with (Path(__file__).parent / "measured.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["server"] != "mixed"]
    shown = [row for row in rows if int(row["isl"]) >= FEWEST_INPUT and int(row["osl"]) >= FEWEST_OUTPUT]
    found = [compared(row, "fit" if index % 2 == 0 else "shown") for index, row in enumerate(shown)]
    writer = csv.DictWriter(sys.stdout, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)


if __name__ == "__main__":
    main()
