"""InferenceX end-to-end points, aggregated and disaggregated -> a case file for `autotune validate`.

usage: python build_cases.py inferencex_dsr1.csv > cases.yaml

Rules, from public launch scripts where they say so; TPOT residuals had been seen before, see README.md:
- lengths uniform in 0.8-1 of nominal, closed loop, as the public benchmark client sends them;
- attention DP without EP: four ranks are TP4, more are EP over all (relabelled topologies);
- SGLang aggregated: --scheduler-recv-interval 10 below 16 requests in flight, 30 from there (public launch scripts);
- TensorRT-LLM attention DP aggregated: enable_balance with timeout_iters 60 (public launch scripts);
- FP8 KV cache and attention (public launch scripts);
- prefill steps of at most 16,384 tokens per rank, the tool's default share of device memory;
- all-to-all: one-sided NVLink for TensorRT-LLM on Blackwell, DeepEP elsewhere, low latency for decode, normal for prefill.
"""

from __future__ import annotations

import csv
import sys

import yaml

HARDWARE = {
    "gb200": "gb200-nvl72",
    "gb300": "gb300-nvl72",
    "b200_sxm": "hgx-b200",
    "b300_sxm": "hgx-b300",
    "h200_sxm": "hgx-h200",
    "h100_sxm": "hgx-h100",
}
FP8_CACHE = {"kv_cache": "fp8", "attention_compute": "fp8", "prefill_attention": "fp8"}
SOURCE = "https://github.com/SemiAnalysisAI/InferenceX"


def number(row: dict[str, str], name: str, default: int = 1) -> int:
    return int(float(row[name])) if row[name] else default


def pool(row: dict[str, str], side: str, role: str) -> dict:
    tp, dp, ep, workers = (number(row, f"{side}_{name}") for name in ("tp", "dp", "ep", "workers"))
    if dp > 1 and ep == 1:
        tp, dp, ep = (dp, 1, 1) if dp <= 4 else (tp, dp, dp)
    hopper, trtllm = row["system"].startswith("h"), row["engine"] == "trtllm"
    deepep = "deepep_normal" if role == "prefill" else "deepep_low_latency"
    backend = "none" if dp == 1 else "nvlink_one_sided" if trtllm and not hopper else deepep
    return {
        "tp": tp,
        "dp": dp,
        "ep": ep,
        "instances": workers,
        "all2all_backend": backend,
        "redundant_experts": -256 % ep,
        "expert_balance": {"kind": "eplb" if dp > 1 and ep >= 16 else "none"},
        "max_batched_tokens": 16384 if role != "decode" else 0,
    }


def case(row: dict[str, str]) -> dict:
    concurrency = number(row, "concurrency")
    if row["mode"] == "disagg":
        pools = {"prefill": pool(row, "p", "prefill"), "decode": pool(row, "d", "decode")}
    else:
        one = pool(row, "d" if row["d_tp"] else "p", "serve")
        if row["engine"] == "sglang":
            one["admission_interval_steps"] = 30 if concurrency >= 16 else 10
        elif one["dp"] > 1:
            one["gather_prefill_steps"] = 60
        pools = {"serve": one}
    gpus = sum(p["tp"] * p["dp"] * p["instances"] for p in pools.values())
    tpot_s, ttft_s = float(row["tpot_ms"]) / 1e3, float(row["ttft_ms"]) / 1e3
    osl = 0.9 * int(row["osl"])
    rate = concurrency / (ttft_s + osl * tpot_s) * osl
    layouts = " + ".join(f"{p['instances']}x" + "tp{tp}dp{dp}ep{ep}".format(**p) for p in pools.values())
    return {
        "id": row["id"],
        "title": row["id"],
        "source": SOURCE,
        "date": "2026-01-01",
        "named": not row["note"],
        "decision": f"{row['system']} {row['engine']} {row['precision']} {row['isl']}/{row['osl']} at {concurrency}",
        "assumptions": [f"layout {layouts}", *([row["note"]] if row["note"] else [])],
        "deployment": {
            "hardware": HARDWARE[row["system"]],
            "model": "deepseek-r1",
            "precision": {"recipe": "nvfp4" if row["precision"] == "fp4" else "fp8-block", **FP8_CACHE},
            "engine": {"name": row["engine"]},
            "phase": "serve",
            "workload": {"isl_tokens": int(row["isl"]), "osl_tokens": int(row["osl"])},
            "pools": pools,
            "load": {"concurrency": concurrency, "shortest": 0.8},
        },
        "measured": {"tokens_per_s_per_gpu": rate / gpus, "tpot_s": tpot_s, "ttft_s": ttft_s},
    }


def main() -> None:
    """Read the table named on the command line and print the case file."""
    with open(sys.argv[1], newline="", encoding="utf-8") as file:
        cases = [case(row) for row in csv.DictReader(file)]
    title = "InferenceX DeepSeek-R1 points, aggregated and disaggregated"
    yaml.safe_dump({"format": "autotune-cases/1", "title": title, "cases": cases}, sys.stdout, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
