"""Steps of a real vLLM 0.24 on one and two H100 beside the cost models.

usage: python study.py > steps.csv        (reads measured.csv beside it)

`decode` rows: closed loops whose requests all start at once, so the median gap between tokens is one step at that batch.
`prompt` rows: one prompt at a time; its TTFT less FRONTEND_S is a step. Rows marked `fit` set the host coefficients of vLLM on
Hopper and the sustained BF16 rate; the others were looked at afterwards.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from cost_models.catalog import calibration_for, load_hardware, load_model, load_recipe
from cost_models.dispatch import BACKENDS
from cost_models.machine import Machine
from cost_models.prefill import prefill_step
from cost_models.rows import Rows
from cost_models.specs.workload import Workload
from cost_models.step import decode_step

FRONTEND_S = 0.011
"""HTTP, tokenising and first answer of one request: TTFT of 128 tokens less the step."""
GRAPH_TOKENS = 512
"""Largest size that vLLM captures by default; longer prompts run eagerly."""
LAYOUTS = {
    "tp1": {},
    "tp2": {"tp": 2},
    "dp2_ep2": {"dp": 2, "ep": 2, "backend": BACKENDS.index("allgather_reducescatter")},
}
FIT = {
    ("llama-3.1-8b", "tp1", "c1", "16"), ("llama-3.1-8b", "tp1", "c32", "16"), ("qwen3-30b-a3b", "tp1", "c1", "16"),
    ("qwen3-30b-a3b", "tp1", "c32", "16"), ("qwen3-30b-a3b", "dp2_ep2", "c2", "16"), ("llama-3.1-8b", "tp1", "c1", "2048"),
    ("llama-3.1-8b", "tp1", "c1", "8192"), ("qwen3-30b-a3b", "tp1", "c1", "1024"), ("qwen3-30b-a3b", "tp1", "c1", "2048"),
}  # fmt: skip


def machine_of(model: str) -> Machine:
    """BF16 on an H100 with vLLM's coefficients; the harness routes tokens uniformly at random."""
    hardware = load_hardware("hgx-h100")
    return Machine(load_model(model), hardware, load_recipe("bf16"), calibration_for("H100", "vllm"), popularity_sigma=0.0)


def predicted(row: dict[str, str]) -> tuple[str, float, float] | None:
    """(kind, measured [ms], predicted [ms]) of a row that shows single steps."""
    machine, columns = machine_of(row["model"]), LAYOUTS[row["layout"]]
    isl, osl, load = int(row["isl"]), int(row["osl"]), row["load"]
    if load[0] != "c":
        return None
    flying = int(load[1:])
    if flying == int(row["requests"]) or (isl == 16 and flying <= 2):
        batch = max(flying // columns.get("dp", 1), 1)
        step_s = decode_step(machine, Rows.of(batch=batch, **columns), isl + osl / 2).step_s[0]
        return "decode", min(float(row["itl_p50_ms"]), float(row["tpot_mean_ms"])), step_s * 1e3
    if flying == 1 and osl == 4:
        rows = Rows.of(batch=1, batched_tokens=min(isl, int(row["chunk_tokens"])), graph_tokens=GRAPH_TOKENS, **columns)
        prompt_s = prefill_step(machine, rows, Workload(isl_tokens=isl, osl_tokens=osl)).prompt_s[0]
        return "prompt", float(row["ttft_p50_ms"]) - FRONTEND_S * 1e3, prompt_s * 1e3
    return None


def main() -> None:
    """Print one line per row that shows single steps."""
    names = ("model", "layout", "chunk_tokens", "load", "isl")
    out = csv.writer(sys.stdout)
    out.writerow([*names, "kind", "used", "measured_ms", "predicted_ms", "error"])
    with (Path(__file__).parent / "measured.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if found := predicted(row):
                kind, measured, model = found
                used = "fit" if (row["model"], row["layout"], row["load"], row["isl"]) in FIT else "shown"
                out.writerow([*(row[n] for n in names), kind, used, f"{measured:.2f}", f"{model:.2f}", f"{model / measured - 1:+.3f}"])


if __name__ == "__main__":
    main()
