"""`python3 -m sglang.bench_serving` (SGLang 0.5)."""

from __future__ import annotations

from pathlib import Path

from autotune.documents.tuned import MeasuredLoad
from autotune.tuning.generators.base import LoadGenerator, LoadRun, number_of, result_object, some_completed


def command(run: LoadRun) -> list[str]:
    """Random token ids (no download), lengths drawn between r times the longest and itself."""
    pace = ["--max-concurrency", str(run.load.concurrency)] if run.load.concurrency else []
    pace += ["--request-rate", f"{run.load.rate_per_s:g}"] if run.load.rate_per_s else []
    return [
        "python3", "-m", "sglang.bench_serving", "--backend", "sglang" if run.engine == "sglang" else "vllm",
        "--base-url", run.url, "--model", run.served, "--tokenizer", run.model,
        "--dataset-name", "random-ids", "--random-input-len", str(run.isl_tokens), "--random-output-len", str(run.osl_tokens),
        "--random-range-ratio", f"{run.load.shortest:.3g}", "--num-prompts", str(run.requests), *pace, "--seed", str(run.seed),
        "--disable-tqdm", "--output-file", str(run.result), *run.extra,
    ]  # fmt: skip


def read(path: Path) -> MeasuredLoad:
    """The newest line of --output-file, which it appends to."""
    item = result_object(path)
    completed = number_of(item, "completed")
    keys = {"mean": "mean_ttft_ms", "p50": "median_ttft_ms", "p95": "p95_ttft_ms", "p99": "p99_ttft_ms"}
    load = {
        "requests": int(completed),
        "completed": int(completed),
        "duration_s": number_of(item, "duration"),
        "isl_tokens": number_of(item, "total_input_tokens") / max(completed, 1),
        "osl_tokens": number_of(item, "total_output_tokens") / max(completed, 1),
        "tokens_per_s": number_of(item, "output_throughput"),
        "ttft_s": {name: number_of(item, key) / 1e3 for name, key in keys.items() if key in item},
        "tpot_s": number_of(item, "mean_tpot_ms") / 1e3,
    }
    return some_completed(load, path)


SGLANG_BENCH = LoadGenerator(
    name="sglang",
    title="sglang.bench_serving",
    program=("python3", "-m", "sglang.bench_serving"),
    result="bench-{run}.jsonl",
    command=command,
    read=read,
    install="pip install sglang",
    version="0.5",
)
