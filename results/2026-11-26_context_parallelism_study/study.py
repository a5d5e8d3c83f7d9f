"""Public measurements of decode context parallelism beside predictions: the tables of README.md.

usage, in the project's root: PYTHONPATH=. python results/2026-11-26_context_parallelism_study/study.py
"""

from __future__ import annotations

import sys

import numpy as np

from autotune.documents.deployment import Deployment
from autotune.serving.predicting import predict_service
from cost_models.catalog import calibration_for, load_hardware, load_model, load_recipe
from cost_models.machine import Machine
from cost_models.memory import state_bytes
from cost_models.rows import Rows
from cost_models.step import decode_step

BLOG_USER_RATES = {1: {16: 41.0, 32: 21.0, 64: 11.0}, 8: {16: 53.0, 32: 34.0, 64: 22.5, 128: 13.5, 256: 8.5, 512: 5.0}}
"""DCP -> concurrency -> output tokens/s of a user; read off figure 1, half a token either way."""
PULL_25049_RATES = {1: 2332.43, 4: 2983.08, 8: 3502.24}
"""DCP -> output tokens/s of the server."""
PULL_50055_TPOT_MS = {1: (13.806, 10.544), 2: (16.192, 11.828)}
"""Concurrency -> median TPOT without and with DCP8."""
PULL_50055_TOKENS = ((25.12, 1.933e6), (34.28, 19.752e6))
"""KV cache of a GPU [GiB] and tokens in it, without and with DCP8."""
PULL_32560_STEP_MS = {1: 9.04, 2: 9.97, 4: 10.57, 8: 12.39, 16: 13.96, 32: 16.53, 64: 20.20, 128: 25.25, 256: 35.44, 512: 54.17}
"""Sequences -> median decode step with DCP8 and its all-to-all before the pull request."""


def machine(hardware: str, model: str, recipe: str, engine: str, kv_cache: str | None = None) -> Machine:
    """What a step is priced on."""
    found, stored = load_hardware(hardware), load_recipe(recipe)
    asked = stored.with_kv_cache(kv_cache) if kv_cache else stored
    return Machine(load_model(model), found, asked, calibration_for(found.gpu.name, engine))


def service(hardware: str, model: str, precision: object, version: str, workload: dict, pool: dict, concurrency: int):
    """An aggregated vLLM engine under a closed loop."""
    return predict_service(
        Deployment.model_validate(
            {
                "hardware": hardware,
                "model": model,
                "precision": precision,
                "engine": {"name": "vllm", "version": version},
                "phase": "serve",
                "workload": workload,
                "pools": {"serve": {"tp": 8, "max_batched_tokens": 8192, "memory_fraction": 0.9, **pool}},
                "load": {"concurrency": concurrency, "requests": max(4 * concurrency, 200)},
            }
        )
    )


def table(*columns: str) -> None:
    """The head of a table."""
    sys.stdout.write("\n| " + " | ".join(columns) + " |\n|" + "---:|" * len(columns) + "\n")


def row(*cells: object) -> None:
    """A row of one."""
    sys.stdout.write("| " + " | ".join(str(cell) for cell in cells) + " |\n")


def blog() -> None:
    """Kimi-K2.6 in NVFP4 on 8 B200."""
    table("DCP", "concurrency", "measured tok/s of a user", "predicted", "error")
    prompts = {"isl_tokens": 67_000, "osl_tokens": 400, "prefix_cache_hit_rate": 0.9}
    for dcp, rates in BLOG_USER_RATES.items():
        for concurrency, measured in rates.items():
            pool = {"ep": 8, "dcp": dcp, "batch_per_dp_rank": 512}
            precision = {"recipe": "nvfp4", "kv_cache": "fp8"}
            found = 1 / service("hgx-b200", "kimi-k2.5", precision, "0.28", prompts, pool, concurrency).tpot_s.mean
            row(dcp, concurrency, measured, f"{found:.1f}", f"{found / measured - 1:+.0%}")


def requests_at_once() -> None:
    """DeepSeek-R1-0528 with 4,096 requests of 2,030 and 1,024 tokens at once."""
    table("DCP", "measured tok/s", "predicted", "error", "measured / TP8", "predicted / TP8")
    rates = {}
    for dcp, measured in PULL_25049_RATES.items():
        pool = {"dcp": dcp, "batch_per_dp_rank": 1024, "cuda_graph_tokens": 512}
        prompts = {"isl_tokens": 2_030, "osl_tokens": 1_024}
        rates[dcp] = service("hgx-h200", "deepseek-r1", "fp8-block", "0.12", prompts, pool, 4096).tokens_per_s
        first = PULL_25049_RATES[1]
        error, gain = f"{rates[dcp] / measured - 1:+.0%}", f"{rates[dcp] / rates[1]:.2f}"
        row(dcp, f"{measured:,.0f}", f"{rates[dcp]:,.0f}", error, f"{measured / first:.2f}", gain)


def kimi_k3() -> None:
    """Kimi-K3 with 120,000 tokens of context, one and two sequences."""
    on = machine("gb200-nvl72", "kimi-k3", "mxfp4", "vllm", "fp8")
    table("sequences", "measured TPOT, TP8 / DCP8", "predicted", "predicted attention")
    for sequences, measured in PULL_50055_TPOT_MS.items():
        step = decode_step(on, Rows.of(tp=8, batch=sequences, dcp=[1, 8]), 120_200)
        core = step.operators["attention"].time_s * 1e3
        found = step.tpot_s * 1e3
        row(
            sequences,
            "{:.1f} / {:.1f} ms".format(*measured),
            "{:.1f} / {:.1f} ms".format(*found),
            "{:.2f} / {:.2f} ms".format(*core),
        )
    table("DCP", "measured bytes of a token", "predicted", "error")
    kept = state_bytes(on, Rows.of(tp=8, dcp=[1, 8]), 1e6) / 1e6
    for dcp, (gib, tokens), found in zip((1, 8), PULL_50055_TOKENS, kept, strict=True):
        measured = gib * 2**30 / tokens
        row(dcp, f"{measured:,.0f}", f"{found:,.0f}", f"{found / measured - 1:+.1%}")


def steps() -> None:
    """DeepSeek-V3.1 with TP8 DCP8 in SGLang."""
    on = machine("hgx-b200", "deepseek-v3", "fp8-block", "sglang")
    sequences = np.array(list(PULL_32560_STEP_MS))
    found = decode_step(on, Rows.of(tp=8, batch=sequences, dcp=8), 1_100).step_s * 1e3
    table("sequences", "measured step, ms", "predicted for B200 at 1,100 tokens", "error")
    for number, (measured, predicted) in enumerate(zip(PULL_32560_STEP_MS.values(), found, strict=True)):
        row(sequences[number], measured, f"{predicted:.1f}", f"{predicted / measured - 1:+.0%}")


def on_h20() -> None:
    """Whether a step gets longer on H20, which has few FLOPs for its bandwidth."""
    table("model", "sequences, context", "measured", "predicted TPOT, TP8 / with DCP")
    kimi = decode_step(machine("hgx-h20", "kimi-k2", "fp8-block", "sglang"), Rows.of(tp=8, batch=24, dcp=[1, 8]), 4_600).tpot_s
    row("Kimi-K2", "24, 4,600", "almost the same", "{:.1f} / {:.1f} ms".format(*(kimi * 1e3)))
    qwen = machine("hgx-h20", "qwen3-235b-a22b", "bf16", "sglang")
    found = decode_step(qwen, Rows.of(tp=8, batch=1, dcp=[1, 2]), 13_500).tpot_s * 1e3
    row("Qwen3-235B", "1, 13,500", "less than 1 ms longer", "{:.1f} / {:.1f} ms".format(*found))


if __name__ == "__main__":
    for part in (blog, requests_at_once, kimi_k3, steps, on_h20):
        part()
