"""`vllm bench serve` (vLLM 0.12 to 0.33)."""

from __future__ import annotations

from pathlib import Path

from autotune.documents.tuned import MeasuredLoad
from autotune.tuning.generators.base import (
    LoadGenerator,
    LoadRun,
    client_figures,
    number_of,
    paced,
    result_object,
    some_completed,
)


def command(run: LoadRun) -> list[str]:
    """Random tokens within +-r of a mean length."""
    shortest = run.load.shortest
    spread = ["--random-range-ratio", f"{(1 - shortest) / (1 + shortest):.3g}"] if shortest < 1 else []
    return [
        "vllm", "bench", "serve", "--base-url", run.url, "--model", run.model, "--served-model-name", run.served,
        "--dataset-name", "random", "--random-input-len", str(run.mean_tokens(run.isl_tokens)),
        "--random-output-len", str(run.mean_tokens(run.osl_tokens)), *spread, "--num-prompts", str(run.requests),
        *paced(run.load),
        "--seed", str(run.seed), "--ignore-eos", "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,95,99",
        "--disable-tqdm", "--save-result", "--result-filename", str(run.result), *run.extra,
    ]  # fmt: skip


def read(path: Path) -> MeasuredLoad:
    """The object that --save-result writes."""
    item = result_object(path)
    figures = client_figures(item)
    asked = max(int(number_of(item, "num_prompts")), figures["completed"])
    load = {**figures, "requests": asked, "model": str(item.get("model_id") or "")}
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
