"""GuideLLM (`guidellm run`, 0.8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.documents.tuned import MeasuredLoad
from autotune.errors import ProblemError
from autotune.tuning.generators.base import LoadGenerator, LoadRun, number_of, result_object, some_completed


def command(run: LoadRun) -> list[str]:
    """Synthetic text; lengths evenly between the shortest and the longest have no mean of their own here, so means are sent."""
    isl, osl = run.mean_tokens(run.isl_tokens), run.mean_tokens(run.osl_tokens)
    rate = (
        f"kind=poisson,rate={run.load.rate_per_s:g}" if run.load.rate_per_s else f"kind=concurrent,streams={run.load.concurrency}"
    )
    return [
        "guidellm", "run", "--backend", f"kind=openai_http,target={run.url},model={run.served},request_format=/v1/completions",
        "--profile", rate, "--constraint", f"kind=max_requests,count={run.requests}",
        "--data", f"kind=synthetic_text,prompt_tokens={isl},output_tokens={osl}",
        "--tokenizer", f"kind=huggingface_auto,model={run.model}", "--seed", f"kind=static,value={run.seed}",
        "--output", f"kind=json,path={run.result}", "--disable-console", *run.extra,
    ]  # fmt: skip


def read(path: Path) -> MeasuredLoad:
    """benchmarks.json: its only benchmark."""
    found: Any = result_object(path).get("benchmarks")
    if not isinstance(found, list) or not found or not isinstance(found[-1], dict):
        raise ProblemError(f"{path}: no benchmark in it; GuideLLM 0.8 writes them under `benchmarks`")
    benchmark = found[-1]
    metrics: Any = benchmark.get("metrics") or {}

    def seen(metric: str, *keys: str) -> float:
        return number_of(metrics, metric, "successful", *keys)

    ttft = {"mean": ("mean",), "p50": ("median",), "p95": ("percentiles", "p95"), "p99": ("percentiles", "p99")}
    counts = [number_of(metrics, "request_totals", state) for state in ("successful", "incomplete", "errored")]
    completed = counts[0] or seen("request_latency", "count")
    duration_s = number_of(benchmark, "duration")
    tokens = seen("output_token_count", "total_sum")
    load = {
        "requests": int(sum(counts)) or int(completed),
        "completed": int(completed),
        "duration_s": duration_s,
        "isl_tokens": seen("prompt_token_count", "mean"),
        "osl_tokens": seen("output_token_count", "mean"),
        "tokens_per_s": tokens / duration_s if duration_s else 0.0,
        "ttft_s": {name: seen("time_to_first_token_ms", *keys) / 1e3 for name, keys in ttft.items()},
        "tpot_s": seen("inter_token_latency_ms", "mean") / 1e3,
    }
    return some_completed(load, path)


GUIDELLM = LoadGenerator(
    name="guidellm",
    title="GuideLLM",
    program=("guidellm",),
    result="bench-{run}.json",
    command=command,
    read=read,
    install="pip install guidellm",
    version="0.8",
)
