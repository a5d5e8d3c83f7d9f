"""Operators of SGLang's wide-EP decode step on GB200, from public profiler traces, and what of a calibration follows from them.

usage:
  python study.py extract FOLDER > operators.csv     traces 1.json.gz to 3.json.gz (README.md: whose)
  PYTHONPATH=. python results/2026-11-26_sglang_gb200_trace_study/study.py apply FOLDER     SGLang on Blackwell in FOLDER's documents
  PYTHONPATH=. python results/2026-11-26_sglang_gb200_trace_study/study.py     the step beside its prediction

`apply` takes documents as `scripts/refit` left them (fitted to the silicon database) and is run by that script.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

from autotune.documents.results import dump_yaml
from cost_models.catalog import calibration_for, load_hardware, load_model, load_recipe, read_yaml
from cost_models.dispatch import BACKENDS
from cost_models.machine import Machine
from cost_models.rows import Rows
from cost_models.step import decode_step

HERE = Path(__file__).parent
ROWS = HERE / "operators.csv"
RUNS = {"1": "single-batch overlap, EPLB", "2": "EPLB", "3": "no EPLB"}
STEP_END = "ArgMax"
KERNELS = {
    "dispatch": "ll::dispatch",
    "combine": "ll::combine",
    "experts": "cute_dsl|blockscaled_gemm|cvt_fp16_to_fp4_expert",
    "attention": "fmhaSm100",
    "rope": "RopeQuant|set_mla_kv",
    "q_a_kv_a": "nvjet_tst_128x128_64x8",
    "q_b": "sm100_fp8_gemm|per_token_group_quant",
    "absorb": "nvjet_tst_256x256_64x4|nvjet_tst_128x256_64x4",
    "o_proj": "nvjet_tst_192x256",
    "router": "nvjet_tst_64x32",
    "lm_head": "nvjet_tst_128x256_64x6",
    "shared": "DeviceGemmFp4|cvt_fp16_to_fp4<",
    "add_norms": "FusedAddRMSNorm",
}
"""Operator -> pattern of its kernels in these traces, each shape a kernel of its own; the rest is `other`."""
PARTS = {"attention": ("attention", "rope"), "shared": ("shared",), "elementwise": ("add_norms", "other")}
PREDICTED = {"shared": ("shared_gate_up", "shared_down"), "elementwise": ("elementwise", "launch_gaps", "dense_ffn")}
SEQUENCES, CONTEXT, RANKS, REDUNDANT = 1024, 2050, 48, 32
"""Of a rank: cuda-graph-bs, and #token over #running-req of its log while it was profiled (2,053,120 of 1,024)."""
HEADS, LAYERS = 128, 61
QUERY_BYTES = 576 + 2 * 512
"""Of a head and token: an FP8 query and a BF16 output (cost_models.attention.decode)."""
SGLANG, RACKS = ("gb200", "gb300", "b200", "b300"), ("gb200", "gb300")
EXCHANGE = ("deepep_low_latency.dispatch", "deepep_low_latency.combine")
EXCHANGE_SHARE = 0.75
"""Bandwidth in that step over what four ranks of one tray reach: README.md."""


def extract(folder: Path) -> None:
    """Mean time and launches per step and operator of the first GPU of each run."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["run", "operator", "ms_per_step", "launches", "trace_sha256"])
    for run in RUNS:
        raw = (folder / f"{run}.json.gz").read_bytes()
        events = [e for e in json.loads(gzip.decompress(raw))["traceEvents"] if e.get("cat") == "kernel"]
        events.sort(key=lambda e: e["ts"])
        ends = [at for at, event in enumerate(events) if STEP_END in event["name"]]
        steps = len(ends) - 1
        time_us: Counter[str] = Counter()
        launches: Counter[str] = Counter()
        for event in events[ends[0] + 1 : ends[-1] + 1]:
            name = next((name for name, pattern in KERNELS.items() if re.search(pattern, event["name"])), "other")
            time_us[name] += event["dur"]
            launches[name] += 1
        time_us["step"], launches["step"] = events[ends[-1]]["ts"] - events[ends[0]]["ts"], steps
        for name, us in sorted(time_us.items()):
            row = [run, name, f"{us / steps / 1e3:.3f}", round(launches[name] / steps), hashlib.sha256(raw).hexdigest()]
            out.writerow(row)


def measured(run: str) -> dict[str, float]:
    """Operator -> ms per step."""
    with ROWS.open(newline="", encoding="utf-8") as file:
        return {row["operator"]: float(row["ms_per_step"]) for row in csv.DictReader(file) if row["run"] == run}


def apply(folder: Path) -> None:
    """What comes beside the attention kernel for each query, and the exchange over a rack."""
    beside_s = measured("2")["rope"] / LAYERS / 1e3
    passes = beside_s * 8e12 / (SEQUENCES * HEADS * QUERY_BYTES)
    for gpu in SGLANG:
        path = folder / f"{gpu}-sglang.yaml"
        document = read_yaml(path)
        moved = {("mla_decode", "fp8", "query_passes"): float(f"{passes:.3g}")}
        if gpu in RACKS:
            found = document["families"]["dispatch"]
            moved |= {
                ("dispatch", v, "scale_up_efficiency"): round(found[v]["coefficients"]["scale_up_efficiency"] * EXCHANGE_SHARE, 5)
                for v in EXCHANGE
            }
        for (family, variant, field), value in moved.items():
            entry = document["families"][family][variant]
            if HERE.name in entry["source"]:
                sys.stderr.write(f"{gpu} {family} {variant}: moved already\n")
                continue
            entry["source"] = f"{entry['source']}; {field} {entry['coefficients'][field]:g} to {value:g} as traced ({HERE.name})"
            entry["coefficients"][field] = value
        path.write_text(dump_yaml(document))


def table() -> None:
    """Run 2, whose ranks are even and whose operators do not overlap, beside its prediction."""
    recipe = load_recipe("nvfp4").model_copy(update={"o_proj": "bf16"})
    hardware = load_hardware("gb200-nvl72")
    machine = Machine(load_model("deepseek-r1"), hardware, recipe, calibration_for(hardware.gpu.name, "sglang"))
    backend = BACKENDS.index("deepep_low_latency")
    rows = Rows.of(
        dp=RANKS, ep=RANKS, batch=SEQUENCES, backend=backend, redundant_experts=REDUNDANT, eplb=1, graph_tokens=SEQUENCES
    )
    step, found = decode_step(machine, rows, CONTEXT), measured("2")
    said = {name: timing.time_s[0] * 1e3 for name, timing in step.operators.items()}
    sys.stdout.write("| operator | measured ms | predicted ms |\n|---|---:|---:|\n")
    for name in ["step", *(n for n in KERNELS if n not in ("rope", "add_norms")), "elementwise"]:
        ours = step.step_s[0] * 1e3 if name == "step" else sum(said.get(n, 0.0) for n in PREDICTED.get(name, (name,)))
        sys.stdout.write(f"| {name} | {sum(found[n] for n in PARTS.get(name, (name,))):.2f} | {ours:.2f} |\n")


def main() -> None:
    """Extract, apply or print."""
    match sys.argv[1:]:
        case ["extract", folder]:
            extract(Path(folder))
        case ["apply", folder]:
            apply(Path(folder))
        case _:
            table()


if __name__ == "__main__":
    main()
