"""Kernels inside the steps of a real vLLM 0.24 (H100), beside what the cost models charge for them.

usage, in the project's root:
  PYTHONPATH=. python results/2026-11-26_vllm_traces_study/study.py extract FOLDER   profiler traces in FOLDER/RUN -> operators.csv
  PYTHONPATH=. python results/2026-11-26_vllm_traces_study/study.py                  operators.csv -> the README's tables
  PYTHONPATH=. python results/2026-11-26_vllm_traces_study/study.py apply FOLDER     experts of vLLM on Hopper in FOLDER's
                                                                                     calibrations, fitted to these rows
`apply` takes a document as `scripts/refit` left it (fitted to the silicon database) and is run by that script.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from autotune.calibrating.traces import Composition, family_times, load_rules, read_kernel_trace
from autotune.documents.results import dump_yaml
from cost_models.catalog import load_hardware, read_yaml
from cost_models.grouped_gemm import GroupedGemmCoefficients, grouped_gemm_bound_s, grouped_gemm_time_s
from cost_models.specs.precision import DTYPES

HERE = Path(__file__).parent
ROWS = HERE / "operators.csv"
FREE = {"start_s": 0.5, "compute_efficiency": 0.1, "memory_efficiency": 0.05, "per_active_expert_s": 0.5, "token_passes": 0.3}
"""Coefficient -> standard deviation of its logarithm around the silicon database's."""
FREE_TOO = {"int4_g32": {"sharpness": 0.5}}
"""Marlin's fit to the database ends at the bound of adding arithmetic to reads, which its kernel overlaps."""
MOST = {"memory_efficiency": 0.98}
SIMULATIONS = "pack_bitmatrix"
"""Kernel that Triton's experts of gpt-oss need only where choices are handed to them, as the simulation of routing does: 57-67 us a layer."""
SCATTER = 0.03
"""Of a row, relative."""
HOPPER = ("h100-vllm", "h200-vllm")
HELD_OUT = "deepseek_v3_bf16"
"""A run that no coefficient saw: BF16 experts 3.5 times as wide, twice as many, of another model."""


@dataclass(frozen=True, slots=True)
class Run:
    """A model served, and the shape of its experts."""

    dtype: str
    """Family of the experts' kernels, as calibrations name it."""
    layers: int
    """With experts."""
    hidden: int
    intermediate: int
    experts: int
    top_k: int
    ranks: int = 1


QWEN3 = {"layers": 48, "hidden": 2048, "intermediate": 768, "experts": 128, "top_k": 8}
RUNS = {
    "qwen3_bf16_tp1": Run("bf16", **QWEN3),
    "qwen3_bf16_dp2_ep2": Run("bf16", **QWEN3, ranks=2),
    HELD_OUT: Run("bf16", 2, 7168, 2048, 256, 8),
    "qwen3_fp8": Run("fp8_block", **QWEN3),
    "gpt_oss_mxfp4": Run("mxfp4", 36, 2880, 2880, 128, 4),
    "kimi_int4": Run("int4_g32", 4, 7168, 2048, 384, 8),
}


def extract(folder: Path) -> None:
    """One row per trace, composition of its steps and family."""
    rules, rows = load_rules(), []
    for path in sorted(folder.glob("*/*.pt.trace.json.gz")):
        times = read_kernel_trace(path)
        for held, kernels in sorted(times.by_step.items()):
            own = {kernel: seconds for kernel, seconds in kernels.total_s.items() if kernel.name != SIMULATIONS}
            found = family_times(dataclasses.replace(kernels, total_s=own), rules, None)
            for family, seconds in sorted(found.per_step_s.items()):
                rows.append({
                    "run": path.parent.name, "prompts": held.prompts, "prompt_tokens": held.prompt_tokens,
                    "sequences": held.sequences, "steps": found.steps, "family": family, "us_per_step": round(seconds * 1e6, 1),
                    "step_ms": round(kernels.wall_s * 1e3 / found.steps, 2), "trace": found.source,
                })  # fmt: skip
    with ROWS.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


def steps() -> dict[tuple[str, Composition], dict[str, float]]:
    """(run, what the step held) -> us per step by family, the median over traces of whole, unmixed steps."""
    found: dict[tuple[str, Composition], dict[str, list[float]]] = {}
    with ROWS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            held = Composition(*(int(row[k]) for k in ("prompts", "prompt_tokens", "sequences", "sequences")))
            if held.prompts and held.sequences or held.sequences in (17, 33):  # mixed, and the few steps right after one
                continue
            found.setdefault((row["run"], held), {}).setdefault(row["family"], []).append(float(row["us_per_step"]))
    return {key: {family: float(np.median(v)) for family, v in families.items()} for key, families in sorted(found.items())}


def expert_rows(run: str) -> list[tuple[int, float]]:
    """(tokens routed on all ranks, measured us per layer). In a decode step each rank has as many sequences; a prompt is one rank's."""
    shape = RUNS[run]
    return [
        (held.prompt_tokens or held.sequences * shape.ranks, families["experts"] / shape.layers)
        for (at, held), families in steps().items()
        if at == run
    ]


def _drawn(run: Run, tokens: list[int]) -> tuple[np.ndarray, dict[str, float]]:
    """(experts of one rank that some token draws, bytes of an element). The engine's routing simulation draws every choice anew."""
    count = np.asarray(tokens, dtype=float)
    missed = (1 - 1 / run.experts) ** run.top_k
    info = DTYPES[run.dtype]
    return run.experts / run.ranks * (1 - missed**count), {"weight_bytes": info.weight_bytes, "activation_bytes": info.activation_bytes}


def _rates(run: Run, hw: str) -> dict[str, float]:
    gpu = load_hardware(hw).gpu
    return {"peak_flops_per_s": gpu.peak_flops_per_s(DTYPES[run.dtype].compute), "hbm_bytes_per_s": gpu.hbm_bytes_per_s.value}


def predicted_us(run: Run, tokens: list[int], hw: str, coefficients: GroupedGemmCoefficients) -> np.ndarray:
    """Experts of one layer on one rank [us]."""
    active, stored = _drawn(run, tokens)
    count, local = np.asarray(tokens, dtype=float), run.experts / run.ranks
    return 1e6 * grouped_gemm_time_s(
        count * run.top_k / run.ranks, local, active, count, 1, hidden=run.hidden, intermediate=run.intermediate,
        **stored, **_rates(run, hw), coefficients=coefficients,
    )  # fmt: skip


def bound_us(run: Run, tokens: list[int], hw: str) -> np.ndarray:
    """Lower bound of the same: weights of the experts drawn, or arithmetic [us]."""
    active, stored = _drawn(run, tokens)
    return 1e6 * grouped_gemm_bound_s(
        np.asarray(tokens) * run.top_k / run.ranks, active, 1, hidden=run.hidden, intermediate=run.intermediate,
        weight_bytes=stored["weight_bytes"], **_rates(run, hw),
    )  # fmt: skip


def free(dtype: str) -> dict[str, float]:
    """What moves of a family's coefficients."""
    return FREE | FREE_TOO.get(dtype, {})


def fitted(start: GroupedGemmCoefficients, rows: list[tuple[Run, list[tuple[int, float]]]]) -> GroupedGemmCoefficients:
    """The silicon database's coefficients, moved to the engine's own steps."""
    spreads = free(rows[0][0].dtype)
    names, spread = list(spreads), np.asarray(list(spreads.values()))
    origin = np.log([getattr(start, name) for name in names])

    def at(x: np.ndarray) -> GroupedGemmCoefficients:
        moved = {n: float(v) for n, v in zip(names, np.exp(x), strict=True)}
        return dataclasses.replace(start, **{n: min(v, MOST.get(n, v)) for n, v in moved.items()})

    def residuals(x: np.ndarray) -> np.ndarray:
        logs = [
            np.log(predicted_us(run, [n for n, _ in found], "hgx-h100", at(x)) / [us for _, us in found]) / SCATTER
            for run, found in rows
        ]
        return np.concatenate([*logs, (x - origin) / spread])

    return at(least_squares(residuals, origin).x)


def of_dtype(dtype: str) -> list[str]:
    """Runs whose rows set a family's coefficients."""
    return [name for name, run in RUNS.items() if run.dtype == dtype and name != HELD_OUT]


def every_other(rows: list[tuple[int, float]], first: int) -> list[tuple[int, float]]:
    """Half of the rows, by size."""
    return sorted(rows)[first::2]


def coefficients(document: dict, dtype: str) -> GroupedGemmCoefficients:
    return GroupedGemmCoefficients(**document["families"]["grouped_gemm"][dtype]["coefficients"])


def apply(folder: Path) -> None:
    """Experts of vLLM on Hopper: H100 fitted to these steps; H200, the same kernels, moved by the same ratios."""
    for dtype in sorted({run.dtype for run in RUNS.values()}):
        documents = {name: read_yaml(folder / f"{name}.yaml") for name in HOPPER}
        before = coefficients(documents["h100-vllm"], dtype)
        after = fitted(before, [(RUNS[run], expert_rows(run)) for run in of_dtype(dtype)])
        ratios = {name: getattr(after, name) / getattr(before, name) for name in free(dtype)}
        for name, document in documents.items():
            entry = document["families"]["grouped_gemm"][dtype]
            if HERE.name in entry["source"]:
                print(f"{name} {dtype}: moved already")
                continue
            for field, ratio in ratios.items():
                entry["coefficients"][field] = float(f"{min(entry['coefficients'][field] * ratio, MOST.get(field, np.inf)):.5g}")
            told = ", ".join(f"{field} x{ratio:.2f}" for field, ratio in ratios.items())
            how = "by kernels inside its own steps" if name == "h100-vllm" else "as on the H100, whose steps were traced"
            entry["source"] = f"{entry['source']}; moved {how} ({HERE.name}: {told})"
            (folder / f"{name}.yaml").write_text(dump_yaml(document))


def tables() -> None:
    """Experts by the silicon database, by fits that did not see the row, and as shipped; then the rest of a step."""
    print("| run | tokens | bound | measured | silicon database | fitted without it | fitted to all |\n|---|---:|---:|---:|---:|---:|---:|")
    for dtype, silicon in SILICON.items():
        start, names = GroupedGemmCoefficients(**silicon), of_dtype(dtype)
        rows = {name: expert_rows(name) for name in names}
        everything = fitted(start, [(RUNS[name], found) for name, found in rows.items()])
        halves = [fitted(start, [(RUNS[name], every_other(found, half)) for name, found in rows.items()]) for half in (0, 1)]
        for name, found in rows.items():
            for at, (tokens, us) in enumerate(sorted(found)):
                _line(name, tokens, us, (start, halves[1 - at % 2], everything))
        for name, run in RUNS.items():
            if name == HELD_OUT and run.dtype == dtype:
                for tokens, us in sorted(expert_rows(name)):
                    _line(f"{name} (held out)", tokens, us, (start, everything, everything), run)
    print("\n| run | step | small kernels | dense GEMMs | attention | experts | dispatch | combine |\n|---|---|---:|---:|---:|---:|---:|---:|")
    for (name, held), families in steps().items():
        label = f"{held.prompt_tokens:,}-token prompt" if held.prompts else f"{held.sequences} sequences"
        columns = ("elementwise", "dense_gemm", "attention", "experts", "dispatch", "combine")
        print(f"| {name} | {label} | " + " | ".join(f"{families[n] / 1e3:.2f}" if n in families else "-" for n in columns) + " |")


def _line(name: str, tokens: int, us: float, fits: tuple[GroupedGemmCoefficients, ...], run: Run | None = None) -> None:
    shape = run or RUNS[name]
    shown = (f"{predicted_us(shape, [tokens], 'hgx-h100', c)[0] / us - 1:+.1%}" for c in fits)
    print(f"| {name} | {tokens:,} | {bound_us(shape, [tokens], 'hgx-h100')[0]:.0f} us | {us:.0f} us | {' | '.join(shown)} |")


def main() -> None:
    """Extract, apply or print."""
    match sys.argv[1:]:
        case ["extract", folder]:
            extract(Path(folder))
        case ["apply", folder]:
            apply(Path(folder))
        case _:
            tables()


SILICON = {
    "bf16": {
        "start_s": 2.2974e-05, "compute_efficiency": 0.59185, "memory_efficiency": 0.87479, "sharpness": 1.5104, "token_passes": 12.267,
        "pair_passes": 0.031817, "start_per_k_s": 2.8325e-09, "per_expert_s": 7.4512e-09, "per_active_expert_s": 1.3324e-07, "tile_tokens": 17.521,
    },
    "fp8_block": {
        "start_s": 2.0694e-05, "compute_efficiency": 0.31184, "memory_efficiency": 0.87607, "sharpness": 1.7882, "token_passes": 11.042,
        "pair_passes": 0.49364, "start_per_k_s": 2.5546e-09, "per_expert_s": 2.8596e-08, "per_active_expert_s": 2.7181e-07, "tile_tokens": 17.085,
    },
    "mxfp4": {
        "start_s": 3.7534e-05, "compute_efficiency": 0.614, "memory_efficiency": 0.62618, "sharpness": 1.0, "token_passes": 3.0363,
        "pair_passes": 0.89666, "per_expert_s": 5.9674e-09, "per_active_expert_s": 6.131e-08, "tile_tokens": 8.0,
    },
    "int4_g32": {
        "start_s": 3.0704e-05, "compute_efficiency": 0.28927, "memory_efficiency": 0.98, "sharpness": 1.0, "token_passes": 15.0,
        "pair_passes": 0.33981, "per_expert_s": 1.6114e-08, "per_active_expert_s": 2.2031e-07, "tile_tokens": 8.0,
    },
}  # fmt: skip
"""Experts of vLLM on H100 as fitted to the silicon databases alone (aiconfigurator-core 0.12.0; INT4: aisimulate)."""

if __name__ == "__main__":
    main()
