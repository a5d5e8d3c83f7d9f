"""Loads of a real vLLM 0.24 on one H100, of models and precisions that no host constant saw -> predictions beside them.

usage, in the project's root: PYTHONPATH=. python results/2026-11-26_vllm_more_models_study/study.py > results/2026-11-26_vllm_more_models_study/errors.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from autotune.auditing.engine_memory.base import Said
from autotune.auditing.engine_memory.registry import in_engine_memory
from autotune.documents.deployment import Deployment
from autotune.serving.predicting import predict_service

HERE = Path(__file__).parent
OWN = ("deepseek-v3-3-layers", "kimi-k2.5-5-layers")
"""Trimmed models, by their config.json here."""
PRECISIONS = {"int4": {"recipe": "bf16", "experts": "int4_g32"}}
"""Only experts of that file are INT4."""
COLUMNS = {"ttft_p50": "ttft_p50_ms", "tpot": "tpot_mean_ms"}


def deployment(row: dict[str, str]) -> Deployment:
    """The deployment and load that a row measured; experts were drawn uniformly."""
    kind, number = row["load"][0], float(row["load"][1:])
    rate = {"concurrency": int(number)} if kind == "c" else {"rate_per_s": number}
    model = str(HERE / row["model"] / "config.json") if row["model"] in OWN else row["model"]
    pool = {"batch_per_dp_rank": 256, "max_batched_tokens": 8192}
    document = {
        "hardware": "hgx-h100",
        "model": model,
        "precision": PRECISIONS.get(row["precision"], row["precision"]),
        "engine": {"name": "vllm", "version": "0.24"},
        "phase": "serve",
        "workload": {"isl_tokens": int(row["isl"]), "osl_tokens": int(row["osl"]), "popularity_sigma": 0.0},
        "pools": {"serve": pool},
        "load": {**rate, "requests": int(row["requests"])},
    }
    return in_engine_memory(Deployment.model_validate(document), Said(fraction=0.92, budget_tokens=8192))


def main() -> None:
    """Predict all loads and print them."""
    writer = None
    with (HERE / "measured.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found = predict_service(deployment(row))
            result = {name: row[name] for name in ("model", "precision", "load", "isl", "osl")}
            predicted = {"ttft_p50": found.ttft_s.p50, "tpot": found.tpot_s.mean if int(row["osl"]) > 4 else None}
            for name, guess in predicted.items():
                value = float(row[COLUMNS[name]]) / 1e3
                shown = guess is not None
                result |= {f"measured_{name}_s": f"{value:.4g}" if shown else "", f"predicted_{name}_s": f"{guess:.4g}" if shown else ""}
                result[f"error_{name}"] = f"{guess / value - 1:+.3f}" if shown else ""
            measured = float(row["output_tokens_per_s"])
            result |= {"measured_tokens_per_s": f"{measured:.4g}", "predicted_tokens_per_s": f"{found.tokens_per_s:.4g}"}
            result["error_tokens_per_s"] = f"{found.tokens_per_s / measured - 1:+.3f}"
            if writer is None:
                writer = csv.DictWriter(sys.stdout, list(result), lineterminator="\n")
                writer.writeheader()
            writer.writerow(result)


if __name__ == "__main__":
    main()
