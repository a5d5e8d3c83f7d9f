"""`python3 -m sglang.bench_serving` (SGLang 0.5)."""

from __future__ import annotations

from pathlib import Path

from autotune.documents.tuned import MeasuredLoad
from autotune.tuning.generators.base import LoadGenerator, LoadRun, client_figures, paced, result_object, some_completed


def command(run: LoadRun) -> list[str]:
    """Random token ids (no download), lengths drawn between r times the longest and itself."""
    return [
        "python3", "-m", "sglang.bench_serving", "--backend", "sglang" if run.engine == "sglang" else "vllm",
        "--base-url", run.url, "--model", run.served, "--tokenizer", run.model,
        "--dataset-name", "random-ids", "--random-input-len", str(run.isl_tokens), "--random-output-len", str(run.osl_tokens),
        "--random-range-ratio", f"{run.load.shortest:.3g}", "--num-prompts", str(run.requests),
        *paced(run.load), "--seed", str(run.seed),
        "--disable-tqdm", "--output-file", str(run.result), *run.extra,
    ]  # fmt: skip


def read(path: Path) -> MeasuredLoad:
    """The newest line of --output-file, which it appends to."""
    figures = client_figures(result_object(path))
    load = {**figures, "requests": figures["completed"]}
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
