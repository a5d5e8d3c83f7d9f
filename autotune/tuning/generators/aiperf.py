"""AIPerf (`aiperf profile`, 0.13)."""

from __future__ import annotations

from pathlib import Path

from autotune.documents.tuned import MeasuredLoad
from autotune.tuning.generators.base import LoadGenerator, LoadRun, number_of, result_object, some_completed

EXPORT = "profile_export_aiperf.json"


def command(run: LoadRun) -> list[str]:
    """Synthetic prompts of the mean lengths."""
    isl, osl = run.mean_tokens(run.isl_tokens), run.mean_tokens(run.osl_tokens)
    pace = ["--request-rate", f"{run.load.rate_per_s:g}"] if run.load.rate_per_s else ["--concurrency", str(run.load.concurrency)]
    return [
        "aiperf", "profile", "--model", run.served, "--tokenizer", run.model, "--url", run.url, "--endpoint-type", "completions",
        "--streaming", *pace, "--request-count", str(run.requests),
        "--synthetic-input-tokens-mean", str(isl), "--synthetic-input-tokens-stddev", "0",
        "--output-tokens-mean", str(osl), "--output-tokens-stddev", "0",
        "--extra-inputs", "ignore_eos:true", "--extra-inputs", f"min_tokens:{osl}", "--random-seed", str(run.seed),
        "--ui-type", "none", "--artifact-dir", str(run.result), *run.extra,
    ]  # fmt: skip


def read(path: Path) -> MeasuredLoad:
    """profile_export_aiperf.json in the folder of the run: one object per metric, times in ms."""
    item = result_object(path / EXPORT)
    completed, failed = number_of(item, "request_count", "avg"), number_of(item, "error_request_count", "avg")
    keys = {"mean": "avg", "p50": "p50", "p95": "p95", "p99": "p99"}
    load = {
        "requests": int(completed + failed),
        "completed": int(completed),
        "duration_s": number_of(item, "benchmark_duration", "avg"),
        "isl_tokens": number_of(item, "input_sequence_length", "avg"),
        "osl_tokens": number_of(item, "output_sequence_length", "avg"),
        "tokens_per_s": number_of(item, "output_token_throughput", "avg"),
        "ttft_s": {name: number_of(item, "time_to_first_token", key) / 1e3 for name, key in keys.items()},
        "tpot_s": number_of(item, "inter_token_latency", "avg") / 1e3,
    }
    return some_completed(load, path / EXPORT)


AIPERF = LoadGenerator(
    name="aiperf",
    title="AIPerf",
    program=("aiperf",),
    result="bench-{run}",
    command=command,
    read=read,
    install="pip install aiperf",
    version="0.13",
)
