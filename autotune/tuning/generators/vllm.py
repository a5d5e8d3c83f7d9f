"""`vllm bench serve` (vLLM 0.12 to 0.33)."""

from __future__ import annotations

from pathlib import Path

from autotune.documents.tuned import MeasuredLoad
from autotune.tuning.generators.base import LoadGenerator, LoadRun, number_of, result_object, some_completed


def command(run: LoadRun) -> list[str]:
    """Random tokens within +-r of a mean length."""
    shortest = run.load.shortest
    spread = ["--random-range-ratio", f"{(1 - shortest) / (1 + shortest):.3g}"] if shortest < 1 else []
    pace = ["--max-concurrency", str(run.load.concurrency)] if run.load.concurrency else []
    pace += ["--request-rate", f"{run.load.rate_per_s:g}"] if run.load.rate_per_s else []
    return [
        "vllm", "bench", "serve", "--base-url", run.url, "--model", run.model, "--served-model-name", run.served,
        "--dataset-name", "random", "--random-input-len", str(run.mean_tokens(run.isl_tokens)),
        "--random-output-len", str(run.mean_tokens(run.osl_tokens)), *spread, "--num-prompts", str(run.requests), *pace,
        "--seed", str(run.seed), "--ignore-eos", "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,95,99",
        "--disable-tqdm", "--save-result", "--result-filename", str(run.result), *run.extra,
    ]  # fmt: skip


def read(path: Path) -> MeasuredLoad:
    """The object that --save-result writes."""
    item = result_object(path)
    completed = number_of(item, "completed")
    keys = {"mean": "mean_ttft_ms", "p50": "median_ttft_ms", "p95": "p95_ttft_ms", "p99": "p99_ttft_ms"}
    load = {
        "requests": max(int(number_of(item, "num_prompts")), int(completed)),
        "completed": int(completed),
        "duration_s": number_of(item, "duration"),
        "isl_tokens": number_of(item, "total_input_tokens") / max(completed, 1),
        "osl_tokens": number_of(item, "total_output_tokens") / max(completed, 1),
        "tokens_per_s": number_of(item, "output_throughput"),
        "ttft_s": {name: number_of(item, key) / 1e3 for name, key in keys.items() if key in item},
        "tpot_s": number_of(item, "mean_tpot_ms") / 1e3,
        "model": str(item.get("model_id") or ""),
    }
    return some_completed(load, path)


VLLM_BENCH = LoadGenerator(
    name="vllm",
    title="vllm bench serve",
    program=("vllm",),
    result="bench-{run}.json",
    command=command,
    read=read,
    install="pip install vllm",
    version="0.12 to 0.33",
)
