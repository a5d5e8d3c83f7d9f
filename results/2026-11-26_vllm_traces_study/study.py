"""Kernels inside the steps of a real vLLM 0.24 (H100), beside what the cost models charge for them.

usage, in the project's root:
  PYTHONPATH=. python results/2026-11-26_vllm_traces_study/study.py extract FOLDER   profiler traces -> operators.csv
  PYTHONPATH=. python results/2026-11-26_vllm_traces_study/study.py                  operators.csv -> the README's tables
  PYTHONPATH=. python results/2026-11-26_vllm_traces_study/study.py apply FOLDER     BF16 experts of vLLM on Hopper in FOLDER's
                                                                                     calibrations, fitted to these rows
`apply` takes a document as `scripts/refit` left it (fitted to the silicon database) and is run by that script.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from autotune.calibrating.traces import Composition, family_times, load_rules, read_kernel_trace
from autotune.documents.results import dump_yaml
from cost_models.catalog import load_hardware, load_model, read_yaml
from cost_models.grouped_gemm import GroupedGemmCoefficients, grouped_gemm_time_s

HERE = Path(__file__).parent
ROWS = HERE / "operators.csv"
LAYERS, EXPERTS, TOP_K = 48, 128, 8
RANKS = {"tp1": 1, "dp2_ep2": 2}
FREE = {"start_s": 0.5, "compute_efficiency": 0.1, "memory_efficiency": 0.05, "per_active_expert_s": 0.5, "token_passes": 0.3}
"""Coefficient -> standard deviation of its logarithm around the silicon database's."""
SCATTER = 0.03
"""Of a row, relative."""
HOPPER = ("h100-vllm", "h200-vllm")


def extract(folder: Path) -> None:
    """One row per trace, composition of its steps and family."""
    rules, rows = load_rules(), []
    for path in sorted(folder.glob("*/*.pt.trace.json.gz")):
        times = read_kernel_trace(path)
        for held, kernels in sorted(times.by_step.items()):
            found = family_times(kernels, rules, None)
            for family, seconds in sorted(found.per_step_s.items()):
                rows.append({
                    "layout": path.parent.name, "prompts": held.prompts, "prompt_tokens": held.prompt_tokens,
                    "sequences": held.sequences, "steps": found.steps, "family": family, "us_per_layer": round(seconds * 1e6 / LAYERS, 2),
                    "step_ms": round(kernels.wall_s * 1e3 / found.steps, 2), "trace": found.source,
                })  # fmt: skip
    with ROWS.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


def steps() -> dict[tuple[str, Composition], dict[str, float]]:
    """(layout, what the step held) -> us per layer by family, the median over traces of whole, unmixed steps."""
    found: dict[tuple[str, Composition], dict[str, list[float]]] = {}
    with ROWS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            held = Composition(*(int(row[k]) for k in ("prompts", "prompt_tokens", "sequences", "sequences")))
            if held.prompts and held.sequences or held.sequences in (17, 33):  # mixed, and the few steps right after one
                continue
            found.setdefault((row["layout"], held), {}).setdefault(row["family"], []).append(float(row["us_per_layer"]))
    return {key: {family: float(np.median(v)) for family, v in families.items()} for key, families in sorted(found.items())}


def expert_rows(layout: str) -> list[tuple[int, float]]:
    """(tokens routed on all ranks, measured us per layer). In a decode step each rank has as many sequences; a prompt is one rank's."""
    ranks = RANKS[layout]
    return [(held.prompt_tokens or held.sequences * ranks, families["experts"]) for (at, held), families in steps().items() if at == layout]


def predicted_us(layout: str, tokens: list[int], hw: str, coefficients: GroupedGemmCoefficients) -> np.ndarray:
    """Experts of one layer on one rank [us]. The engine's routing simulation draws every choice anew, so a token may draw one twice."""
    model, gpu = load_model("qwen3-30b-a3b"), load_hardware(hw).gpu
    local = EXPERTS / RANKS[layout]
    count = np.asarray(tokens, dtype=float)
    active = local * (1 - (1 - 1 / EXPERTS) ** (count * TOP_K))
    return 1e6 * grouped_gemm_time_s(
        count * TOP_K * local / EXPERTS, local, active, count, 1, hidden=model.hidden, intermediate=768, weight_bytes=2, activation_bytes=2,
        peak_flops_per_s=gpu.peak_flops_per_s("bf16"), hbm_bytes_per_s=gpu.hbm_bytes_per_s.value, coefficients=coefficients,
    )  # fmt: skip


def fitted(start: GroupedGemmCoefficients, layouts: tuple[str, ...]) -> GroupedGemmCoefficients:
    """The silicon database's coefficients, moved to the engine's own steps."""
    names, spread = list(FREE), np.asarray(list(FREE.values()))
    origin = np.log([getattr(start, name) for name in names])

    def at(x: np.ndarray) -> GroupedGemmCoefficients:
        return dataclasses.replace(start, **{n: float(v) for n, v in zip(names, np.exp(x), strict=True)})

    def residuals(x: np.ndarray) -> np.ndarray:
        logs = [
            np.log(predicted_us(layout, [n for n, _ in rows], "hgx-h100", at(x)) / [us for _, us in rows]) / SCATTER
            for layout, rows in ((each, expert_rows(each)) for each in layouts)
        ]
        return np.concatenate([*logs, (x - origin) / spread])

    return at(least_squares(residuals, origin).x)


def coefficients(document: dict) -> GroupedGemmCoefficients:
    return GroupedGemmCoefficients(**document["families"]["grouped_gemm"]["bf16"]["coefficients"])


def apply(folder: Path) -> None:
    """BF16 experts of vLLM on Hopper: H100 fitted to these steps; H200, the same kernels, moved by the same ratios."""
    documents = {name: read_yaml(folder / f"{name}.yaml") for name in HOPPER}
    before = coefficients(documents["h100-vllm"])
    after = fitted(before, tuple(RANKS))
    ratios = {name: getattr(after, name) / getattr(before, name) for name in FREE}
    for name, document in documents.items():
        entry = document["families"]["grouped_gemm"]["bf16"]
        if HERE.name in entry["source"]:
            print(f"{name}: moved already")
            continue
        for field, ratio in ratios.items():
            entry["coefficients"][field] = float(f"{entry['coefficients'][field] * ratio:.5g}")
        told = ", ".join(f"{field} x{ratio:.2f}" for field, ratio in ratios.items())
        how = "by kernels inside its own steps" if name == "h100-vllm" else "as on the H100, whose steps were traced"
        entry["source"] = f"{entry['source']}; moved {how} ({HERE.name}: {told})"
        (folder / f"{name}.yaml").write_text(dump_yaml(document))


def tables(silicon: GroupedGemmCoefficients) -> None:
    """Experts by the silicon database, by a fit to one GPU alone, and to all; then the rest of a step."""
    alone, both = fitted(silicon, ("tp1",)), fitted(silicon, tuple(RANKS))
    print("| layout | tokens | measured | silicon database | fitted to TP1 alone | fitted to all |\n|---|---:|---:|---:|---:|---:|")
    for layout in RANKS:
        for tokens, us in expert_rows(layout):
            shown = (f"{predicted_us(layout, [tokens], 'hgx-h100', c)[0] / us - 1:+.1%}" for c in (silicon, alone, both))
            print(f"| {layout} | {tokens:,} | {us:.0f} us | {' | '.join(shown)} |")
    print("\n| layout | step | small kernels | dense GEMMs | attention | experts | dispatch | combine |\n|---|---|---:|---:|---:|---:|---:|---:|")
    for (layout, held), families in steps().items():
        label = f"{held.prompt_tokens:,}-token prompt" if held.prompts else f"{held.sequences} sequences"
        names = ("elementwise", "dense_gemm", "attention", "experts", "dispatch", "combine")
        print(f"| {layout} | {label} | " + " | ".join(f"{families[n]:.1f}" if n in families else "-" for n in names) + " |")


def main() -> None:
    """Extract, apply or print."""
    match sys.argv[1:]:
        case ["extract", folder]:
            extract(Path(folder))
        case ["apply", folder]:
            apply(Path(folder))
        case _:
            tables(GroupedGemmCoefficients(**SILICON))


SILICON = {
    "start_s": 2.2974e-05, "compute_efficiency": 0.59185, "memory_efficiency": 0.87479, "sharpness": 1.5104, "token_passes": 12.267,
    "pair_passes": 0.031817, "start_per_k_s": 2.8325e-09, "per_expert_s": 7.4512e-09, "per_active_expert_s": 1.3324e-07, "tile_tokens": 17.521,
}  # fmt: skip
"""BF16 experts of vLLM 0.24 on H100 as fitted to the silicon database alone (aiconfigurator-core 0.12.0)."""

if __name__ == "__main__":
    main()
