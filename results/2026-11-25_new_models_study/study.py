"""TPOT of the models of 2026, and of DeepSeek-R1 on MI355X, beside the cost models.

usage: python study.py sample_other_models.csv inferencex_2026.csv published_2026.yaml > errors.csv

Three tables of public measurements, not kept here (Apache-2.0; sources in README.md). A closed loop as a fluid: every step
decodes the sequences in flight and the prompts that take the place of those that finished,
    TPOT = step(B) + B / OSL * prefill_s(ISL),    B = in flight per worker and attention-DP rank.
So it judges steps, not scheduling. B is at most what memory holds. An engine that runs prompts in steps of their own pays a whole
step for as many as arrive at once, B / OSL but at least one; one that mixes them shares steps of STEP_TOKENS. What the runs were
told beyond the tables' columns is in InferenceX's launch scripts (SemiAnalysisAI/InferenceX, benchmarks/single_node and
nvidia-master.yaml, February to May 2026): `as_launched`. What is left out is printed with its reason.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import yaml

from cost_models.catalog import calibration_for, load_hardware, load_model, recipe_of
from cost_models.dispatch import BACKENDS
from cost_models.errors import AutotuneError
from cost_models.machine import Machine
from cost_models.memory import decode_memory
from cost_models.prefill import prefill_step
from cost_models.releases import version_key
from cost_models.rows import Rows
from cost_models.serving import ServiceCoefficients
from cost_models.specs.precision import PrecisionRecipe
from cost_models.specs.workload import Workload
from cost_models.step import decode_step

HARDWARE = {"b200_sxm": "hgx-b200", "b300_sxm": "hgx-b300", "h200_sxm": "hgx-h200", "h100_sxm": "hgx-h100", "mi355x": "mi355x"}
MODELS = {
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2",
    "moonshotai/Kimi-K2.5": "kimi-k2.5",
    "Qwen/Qwen3.5-397B-A17B": "qwen3.5-397b-a17b",
    "zhipuai/GLM-5": "glm-5",
}
RECIPES = {"mxfp4": "mxfp4-mxfp4", "fp8": "fp8-block", "fp4": "nvfp4", "int4": "int4", "bf16": "bf16"}
PUBLISHED = {
    "MiniMaxAI/MiniMax-M2.5 (FP8 block)": ("minimax-m2", "fp8-block"),
    "Qwen/Qwen3.5-397B-A17B (BF16)": ("qwen3.5-397b-a17b", "bf16"),
    "nvidia/Kimi-K2.5-NVFP4": ("kimi-k2.5", "nvfp4"),
}
PUBLISHED_HARDWARE = {"H200": "hgx-h200", "B200": "hgx-b200"}
NOMINAL = 0.9
"""Mean length over the nominal one where lengths are uniform in 0.8 to 1.0 of it."""
RANDOM_TOKENS = 1.57
"""Popularity of experts under random prompts, as these benchmarks send them."""
STEP_TOKENS = 8192
LARGEST_TP = 8
TF32_SINCE = "2026-04-21"
MEMORY_FRACTION = 0.9
"""Of device memory that engines fill; requests beyond it wait, which is not TPOT."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One point of a closed loop; lengths in tokens, per-worker layout of the decoding pool."""

    id: str
    model: str
    recipe: str
    hardware: str
    engine: str
    isl: int
    osl: int
    in_flight: float
    tp: int
    dp: int
    ep: int
    tpot_ms: float
    release: str = ""
    """Of the engine; none where it is not recorded."""
    date: str = ""
    """Of the run, ISO 8601; none where it is not recorded."""


def as_launched(recipe: PrecisionRecipe, row: Measured) -> PrecisionRecipe:
    """What the launch scripts change: an FP8 cache, and routers on tensor cores (TF32, priced as BF16).

    FP8 caches: SGLang but for BF16 checkpoints; vLLM with MiniMax on Blackwell but for its first script (0.17).
    VLLM_FLOAT32_MATMUL_PRECISION=high: MiniMax on Blackwell from TF32_SINCE on.
    """
    blackwell = row.hardware.startswith(("hgx-b", "gb"))
    minimax = row.model == "minimax-m2" and blackwell and not row.release.startswith("0.17")
    if minimax or (row.engine == "sglang" and blackwell | row.hardware.startswith("hgx-h") and row.recipe != "bf16"):
        compute = {"attention_compute": "fp8", "prefill_attention": "fp8"} if blackwell else {}
        recipe = recipe.model_copy(update={"kv_cache": "fp8", **compute})
    return recipe.model_copy(update={"router_fp32": "bf16"}) if minimax and row.date >= TF32_SINCE else recipe


def layout_as_launched(row: Measured) -> Measured:
    """vLLM's scripts of MiniMax on H200, and on B200 with 0.17, ask for expert parallelism at every EP_SIZE from 1 on; those of
    Kimi-K2.5 at none. The nightly that ran Qwen3.5 in BF16 is of the week before SGLang 0.5.9."""
    if row.engine == "sglang" and (row.model, row.recipe) == ("qwen3.5-397b-a17b", "bf16"):
        return replace(row, release="0.5.9")
    if row.model == "kimi-k2.5":
        return replace(row, ep=1)
    told = row.hardware == "hgx-h200" or (row.hardware == "hgx-b200" and row.release.startswith("0.17"))
    return replace(row, ep=row.tp * row.dp) if row.model == "minimax-m2" and told else row


def drafting(row: Measured) -> bool:
    """Whether InferenceX ran this layout with drafts only: Qwen3.5 in FP8 on B200 at TP4 without expert parallelism."""
    return (row.model, row.recipe, row.hardware, row.tp, row.ep) == ("qwen3.5-397b-a17b", "fp8-block", "hgx-b200", 4, 1)


@cache
def machine_of(row: Measured) -> Machine:
    """A row's machine."""
    system, spec = load_hardware(row.hardware), load_model(row.model)
    exact = as_launched(recipe_of(row.recipe, spec).on(system.gpu.architecture), row)
    engine, release = row.engine, row.release
    calibration = calibration_for(system.gpu.name, engine)
    held = calibration.at(release) if version_key(release) else calibration  # none recorded, or a nightly: the newest
    return Machine(spec, system, exact, held, RANDOM_TOKENS)


def tpot_ms(row: Measured) -> float:
    """Predicted TPOT of a row."""
    machine = machine_of(row)
    asked = max(round(row.in_flight / row.dp), 1)
    backend = BACKENDS.index("none" if row.dp == 1 else "allgather_reducescatter")
    rows = Rows.of(tp=row.tp, dp=row.dp, ep=row.ep, batch=asked, backend=backend)
    workload = Workload(isl_tokens=row.isl, osl_tokens=row.osl)
    memory = decode_memory(machine, rows, workload)
    room = MEMORY_FRACTION * machine.hardware.gpu.hbm_visible_bytes.value - memory.without_kv_bytes
    batch = max(min(asked, int(memory.sequence.fitting(room)[0])), 1)
    rows = rows.replace(batch=batch)
    step_s = decode_step(machine, rows, workload.context_tokens).step_s[0]
    arriving = batch / row.osl
    mixed = machine.calibration.get("serving", "default", ServiceCoefficients).mixed
    tokens = STEP_TOKENS if mixed else min(round(row.isl * max(arriving, 1.0)), STEP_TOKENS)
    prompts = prefill_step(machine, rows.replace(batched_tokens=tokens, graph_tokens=0), workload)
    return float(step_s + arriving * prompts.prompt_s[0] / max(tokens / row.isl, 1.0)) * 1e3


def of_table(row: dict[str, str], model: str) -> Measured | str:
    """A row of the tables, or why it is left out."""
    if row["mode"] != "agg":
        return "disaggregated"
    if row["note"] or not row["concurrency"] or not row["tpot_ms"]:
        return "noted, or without concurrency or mean TPOT"
    if int(float(row["d_tp"])) > LARGEST_TP:
        return "tensor parallelism beyond a host"
    if row["system"] not in HARDWARE:
        return f"hardware {row['system']}"
    tp, dp, ep, workers = (int(float(row[f"d_{name}"] or 1)) for name in ("tp", "dp", "ep", "workers"))
    if tp == dp > 1 and ep == tp * dp:  # n GPUs recorded as n x n: the scripts' TP n EP n (ten such rows have twins that say so)
        dp, ep = 1, tp
    recipe = RECIPES[row["precision"]]
    found = Measured(
        row["id"], model, recipe, HARDWARE[row["system"]], row["engine"], int(NOMINAL * int(row["isl"])),
        int(NOMINAL * int(row["osl"])), int(row["concurrency"]) / workers, tp, dp, ep, float(row["tpot_ms"]),
        row["engine_version"], row["date"],
    )  # fmt: skip
    return "drafts, of unrecorded depth and acceptance" if drafting(found) else layout_as_launched(found)


def of_amd(row: dict[str, str]) -> Measured | str:
    """A row of DeepSeek-R1 on MI355X, or why it is left out."""
    if row["engine"] != "sglang":
        return "MI355X: engine atom"
    if row["spec"] == "mtp":
        return "MI355X: draft depth and acceptance not recorded"
    if row["precision"] == "fp4":
        row = {**row, "precision": "mxfp4"}
    return of_table(row, "deepseek-r1")


def of_published(case: dict[str, Any]) -> Iterator[Measured | str]:
    """Points of a published case, or why it is left out."""
    points = case.get("points") or []
    if not case["phase"].startswith("e2e aggregated") or not points or not isinstance(case.get("isl"), int):
        yield f"published: {case['phase']}, {'no' if not points else 'other'} points"
        return
    if case.get("mtp"):
        yield "published: acceptance not recorded"
        return
    model, recipe = PUBLISHED[case["model"]]
    for point in points:
        measured = point.get("tpot_ms") or point["tpot_p50_ms"]
        yield Measured(
            f"{case['id']}-c{point['concurrency']}", model, recipe, PUBLISHED_HARDWARE[case["gpu"]], "vllm", case["isl"],
            case["osl"], point["concurrency"], case["tp"], case["dp"], case["ep"], measured,
        )  # fmt: skip


def rows_of(others: str, amd: str, published: str) -> Iterator[tuple[str, Measured | str]]:
    """Every row of the three tables with the table's name."""
    with open(others, newline="", encoding="utf-8") as file:
        yield from (("sample", of_table(row, MODELS[row["model"]])) for row in csv.DictReader(file) if row["model"] in MODELS)
    with open(amd, newline="", encoding="utf-8") as file:
        yield from (("mi355x", of_amd(row)) for row in csv.DictReader(file) if row["system"] == "mi355x")
    with open(published, encoding="utf-8") as file:
        for case in yaml.safe_load(file):
            yield from (("published", one) for one in of_published(case))


def main() -> None:
    """Print a line per priced row, and to stderr what they come to and what is left out."""
    out = csv.writer(sys.stdout)
    out.writerow(["id", "table", "model", "precision", "hardware", "engine", "in_flight", "measured_ms", "predicted_ms", "error"])
    errors: dict[tuple[str, ...], list[float]] = {}
    left_out: Counter[str] = Counter()
    for table, row in rows_of(*sys.argv[1:4]):
        if isinstance(row, str):
            left_out[row] += 1
            continue
        try:
            predicted = tpot_ms(row)
        except AutotuneError as error:
            left_out[f"{row.model} {row.recipe} on {row.hardware}: {error}"[:150]] += 1
            continue
        error = predicted / row.tpot_ms - 1
        key = (table, row.model, row.recipe, row.hardware, row.engine)
        out.writerow([row.id, *key, row.in_flight, row.tpot_ms, f"{predicted:.3f}", f"{error:+.4f}"])
        errors.setdefault(key, []).append(error)
    for table in ("sample", "mi355x", "published"):
        errors[table, "all"] = [e for key, part in errors.items() if key[0] == table and key[1] != "all" for e in part]
    for key, found in sorted(errors.items()):
        sizes = np.abs(found)
        text = f"mean {sizes.mean():.1%} median {np.median(sizes):.1%} bias {np.mean(found):+.1%}"
        print(*key, len(found), text, file=sys.stderr)
    for why, count in left_out.most_common():
        print(f"left out: {count} {why}", file=sys.stderr)


if __name__ == "__main__":
    main()
