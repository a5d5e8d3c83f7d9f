"""InferenceX end-to-end points, aggregated and disaggregated -> a case file for `autotune validate`.

usage: python build_cases.py inferencex_dsr1.csv > cases.yaml

Rules, from the public launch scripts and recipes of the benchmark (SemiAnalysisAI/InferenceX, Apache-2.0; the commits are those
of its history), not from residuals:
- lengths uniform in 0.8-1 of nominal, closed loop, ten prompts per request in flight, as its client sends them;
- attention DP without EP: four ranks are TP4, more are EP over all (relabelled topologies);
- SGLang aggregated: --scheduler-recv-interval 10 below 16 requests in flight, 30 from there; --chunked-prefill-size 32,768 for FP8 on
  eight GPUs (8,192 on four), 16,384 for FP4 (benchmarks/dsr1_fp8_b200.sh, dsr1_fp4_b200.sh, dsr1_fp8_h200.sh); their limits of
  running requests are no lower than the requests in flight, so they do not bind;
- TensorRT-LLM aggregated: max_num_tokens is concurrency + isl + 64, rounded up to 64, until 2026-01-21 (commit 64af5a771), then at
  least 8,192; images 1.2.0rc6 and later came after that; attention DP has enable_balance with timeout_iters 60;
- TensorRT-LLM disaggregated: what a prefill rank takes at once is in `PREFILL`, from the recipes of the benchmark
  (ishandhanani/srt-slurm, Apache-2.0: recipes/trtllm/h200, b200-fp8); elsewhere 4 prompts and 4,608 tokens a step at 1k, one prompt
  and 8,448 tokens at 8k. H200 prefills 8k prompts without attention DP, whatever the decode side does; B200 in FP8 prefills them
  with attention DP and experts cut by TP. The decode side's max_batch_size per attention-DP rank is as the recipe is named
  (recipes.csv);
- FP8 KV cache and attention;
- all-to-all: TensorRT-LLM's NVLink kernels need an Arm host (tensorrt_llm/_mnnvl_utils.py, supports_mnnvl), so one-sided
  NVLink on GB200 and GB300 and an all-gather with a reduce-scatter on machines with x86 hosts; DeepEP for SGLang, low latency for
  decode, normal for prefill.
"""

from __future__ import annotations

import csv
import functools
import sys
from pathlib import Path

import yaml

HARDWARE = {
    "gb200": "gb200-nvl72",
    "gb300": "gb300-nvl72",
    "b200_sxm": "hgx-b200",
    "b300_sxm": "hgx-b300",
    "h200_sxm": "hgx-h200",
    "h100_sxm": "hgx-h100",
}
ARM_HOSTS = ("gb200", "gb300")
FP8_CACHE = {"kv_cache": "fp8", "attention_compute": "fp8", "prefill_attention": "fp8"}
SOURCE = "https://github.com/SemiAnalysisAI/InferenceX"
PREFILL = {("h200_sxm", "1024"): 8192, ("h200_sxm", "8192"): 16640, ("b200_sxm", "1024"): 16384, ("b200_sxm", "8192"): 8320}
"""Tokens that a TensorRT-LLM prefill rank of FP8 recipes takes in a step."""
AFTER_MAX_TOKENS = ("1.2.0rc6", "1.3")
"""TensorRT-LLM images that ran with at least 8,192 tokens a step."""


def number(row: dict[str, str], name: str, default: int = 1) -> int:
    return int(float(row[name])) if row[name] else default


@functools.cache
def recipes() -> dict[tuple[str, ...], int]:
    """Decode slots per attention-DP rank by system, precision, lengths, concurrency and workers."""
    with (Path(__file__).parent / "recipes.csv").open(newline="", encoding="utf-8") as file:
        return {tuple(list(row.values())[:7]): int(row["slots_per_rank"]) for row in csv.DictReader(file)}


def slots(row: dict[str, str]) -> int:
    """Decode slots per rank of a disaggregated TensorRT-LLM point; 0 where no recipe is known."""
    system = row["system"].removesuffix("_sxm")
    named = (row["isl"], row["osl"], str(number(row, "concurrency")), row["p_workers"], row["d_workers"])
    return recipes().get((system, row["precision"], *named), 0)


def pool(row: dict[str, str], side: str, role: str) -> dict:
    tp, dp, ep, workers = (number(row, f"{side}_{name}") for name in ("tp", "dp", "ep", "workers"))
    if dp > 1 and ep == 1:
        tp, dp, ep = (dp, 1, 1) if dp <= 4 else (tp, dp, dp)
    deepep = "deepep_normal" if role == "prefill" else "deepep_low_latency"
    gathers = "nvlink_one_sided" if row["system"] in ARM_HOSTS else "allgather_reducescatter"
    backend = "none" if dp == 1 else gathers if row["engine"] == "trtllm" else deepep
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


def aggregated(row: dict[str, str], concurrency: int) -> dict:
    """One engine with the limits of its launch script."""
    one = pool(row, "d" if row["d_tp"] else "p", "serve")
    gpus, fp8 = one["tp"] * one["dp"], row["precision"] == "fp8"
    if row["engine"] == "sglang":
        one["admission_interval_steps"] = 30 if concurrency >= 16 and not (fp8 and gpus == 4) else 10
        one["max_batched_tokens"] = (16384 if not fp8 else 8192 if gpus == 4 else 32768) // one["dp"]
        return one
    least = 8192 if row["engine_version"].startswith(AFTER_MAX_TOKENS) else 0
    one["max_batched_tokens"] = max(-(-(concurrency + int(row["isl"]) + 64) // 64) * 64, least)
    if one["dp"] > 1:
        one["gather_prefill_steps"] = 60
    return one


def disaggregated(row: dict[str, str]) -> dict:
    pools = {"prefill": pool(row, "p", "prefill"), "decode": pool(row, "d", "decode")}
    if row["engine"] == "trtllm":
        prefill = pools["prefill"]
        prefill["max_batched_tokens"] = 4608 if int(row["isl"]) <= 1024 else int(row["isl"]) + 256
        if row["precision"] == "fp8" and (row["system"], row["isl"]) in PREFILL:
            prefill["max_batched_tokens"] = PREFILL[row["system"], row["isl"]]
            if row["system"] == "h200_sxm" and row["isl"] == "8192":
                prefill |= {"tp": 8, "dp": 1, "ep": 8, "all2all_backend": "none"}
            if row["system"] == "b200_sxm" and row["isl"] == "8192":
                prefill |= {"tp": 1, "dp": 8, "ep": 1, "all2all_backend": "allgather_reducescatter"}
        pools["decode"]["batch_per_dp_rank"] = slots(row)
    return pools


def case(row: dict[str, str]) -> dict:
    concurrency = number(row, "concurrency")
    pools = disaggregated(row) if row["mode"] == "disagg" else {"serve": aggregated(row, concurrency)}
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
