"""TPOT of aggregated services of other models than DeepSeek-R1 beside the cost models.

usage: python study.py sample_other_models.csv > errors.csv

The table is the Apache-2.0 sample of aiconfigurator-core; it is not kept here. A closed loop as a fluid: every step decodes the
sequences in flight and the prompts that take the place of those that finished,
    TPOT = step(B) + B / OSL * prefill_s(ISL),    B = in flight per worker and attention-DP rank.
So it judges steps, not scheduling. Lengths are 0.9 of nominal. Left out: rows with a note, disaggregated rows, tensor parallelism
beyond one host (recorded topologies of 16 and 64 GPUs for engines that ran on 8), models that are not priced.
"""

from __future__ import annotations

import csv
import sys
from functools import cache

import numpy as np

from cost_models.catalog import calibration_for, load_hardware, load_model, load_recipe
from cost_models.dispatch import BACKENDS
from cost_models.machine import Machine
from cost_models.prefill import prefill_step
from cost_models.releases import up_to, version_key
from cost_models.rows import Rows
from cost_models.specs.precision import PrecisionRecipe
from cost_models.specs.workload import Workload
from cost_models.step import decode_step

HARDWARE = {"gb200": "gb200-nvl72", "b200_sxm": "hgx-b200", "h200_sxm": "hgx-h200", "h100_sxm": "hgx-h100"}
MODELS = {
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
}
RANDOM_TOKENS = 1.57
"""Popularity of experts under random prompts, as these benchmarks send them."""
STEP_TOKENS = 8192
LARGEST_TP = 8
MARLIN = "int4_g32"
"""Weight-only experts as vLLM's Marlin kernel runs them: groups of 32 as MXFP4's, a byte of scale more."""
LAST_TRITON = "0.12"
"""Later runs of gpt-oss on Hopper set VLLM_MXFP4_USE_MARLIN=1 (SemiAnalysisAI/InferenceX, gptoss_fp4_h100.sh and _h200.sh, from
January 2026)."""
GEMMS = ("attention_in", "q_b", "o_proj", "dense_ffn", "shared_expert")


def recipe_of(row: dict[str, str]) -> PrecisionRecipe:
    """What the rows name fp4 and fp8: ModelOpt checkpoints of Llama, block FP8 of Qwen3, MXFP4 of gpt-oss (MXFP8 activations on
    Blackwell, which public launch scripts ask for); FP8 caches but for gpt-oss on Hopper."""
    blackwell = not row["system"].startswith("h")
    fp8_cache = {"kv_cache": "fp8", "prefill_attention": "fp8", "attention_compute": "fp8" if blackwell else "bf16"}
    if "gpt-oss" in row["model"]:
        native = load_recipe("mxfp4-mxfp8" if blackwell else "mxfp4")
        return native.model_copy(update=fp8_cache if blackwell else {})
    if "Qwen3" in row["model"]:
        return load_recipe("fp8-block")
    stored = dict.fromkeys(GEMMS, "nvfp4" if row["precision"] == "fp4" else "fp8")
    return load_recipe("bf16").model_copy(update={**stored, **fp8_cache})


@cache
def machine_of(system: str, model: str, engine: str, precision: str, release: str) -> Machine:
    """A row's machine."""
    hardware = load_hardware(HARDWARE[system])
    recipe = recipe_of({"system": system, "model": model, "precision": precision})
    calibration = calibration_for(hardware.gpu.name, engine)
    held = calibration.at(release) if version_key(release) else calibration  # none recorded, or a nightly: the newest
    if "gpt-oss" in model and engine == "vllm" and hardware.gpu.architecture == "hopper" and not up_to(release, LAST_TRITON):
        held = held.with_entries([("grouped_gemm", "mxfp4", held.entry("grouped_gemm", MARLIN))])
    return Machine(load_model(MODELS[model]), hardware, recipe, held, RANDOM_TOKENS)


def usable(row: dict[str, str]) -> bool:
    """See the module's first lines."""
    known = row["model"] in MODELS and row["system"] in HARDWARE and row["mode"] == "agg"
    return known and not row["note"] and bool(row["concurrency"]) and int(float(row["d_tp"])) <= LARGEST_TP


def tpot_s(row: dict[str, str]) -> float:
    """Predicted TPOT of a row."""
    machine = machine_of(row["system"], row["model"], row["engine"], row["precision"], row["engine_version"])
    tp, dp, ep, workers = (int(float(row[f"d_{name}"] or 1)) for name in ("tp", "dp", "ep", "workers"))
    isl, osl = int(0.9 * int(row["isl"])), int(0.9 * int(row["osl"]))
    batch = max(round(int(row["concurrency"]) / workers / dp), 1)
    backend = BACKENDS.index("none" if dp == 1 else "allgather_reducescatter")
    rows = Rows.of(tp=tp, dp=dp, ep=ep, batch=batch, backend=backend)
    workload = Workload(isl_tokens=isl, osl_tokens=osl)
    step_s = decode_step(machine, rows, workload.context_tokens).step_s[0]
    prompts = prefill_step(machine, rows.replace(batched_tokens=STEP_TOKENS, graph_tokens=0), workload)
    return float(step_s + batch / osl * isl * prompts.step_s[0] / STEP_TOKENS)


def main() -> None:
    """Print a line per usable row, and to stderr what they come to."""
    out = csv.writer(sys.stdout)
    names = ("id", "model", "system", "engine", "engine_version", "precision", "concurrency")
    out.writerow([*names, "measured_ms", "predicted_ms", "error"])
    errors: dict[tuple[str, str], list[float]] = {}
    with open(sys.argv[1], newline="", encoding="utf-8") as file:
        for row in filter(usable, csv.DictReader(file)):
            measured, predicted = float(row["tpot_ms"]), tpot_s(row) * 1e3
            error = predicted / measured - 1
            out.writerow([*(row[n] for n in names), measured, f"{predicted:.3f}", f"{error:+.4f}"])
            errors.setdefault((row["model"].split("/")[1], row["engine"]), []).append(error)
    for key, found in [*sorted(errors.items()), (("all", ""), [e for part in errors.values() for e in part])]:
        sizes = np.abs(found)
        print(
            *key, len(found), f"mean {sizes.mean():.1%} median {np.median(sizes):.1%} bias {np.mean(found):+.1%}", file=sys.stderr
        )


if __name__ == "__main__":
    main()
