"""InferenceX end-to-end points, aggregated and disaggregated -> a case file for `autotune validate`.

usage: python build_cases.py inferencex_dsr1.csv > cases.yaml

Rules, from the public launch scripts and recipes of the benchmark (SemiAnalysisAI/InferenceX, Apache-2.0; the commits are those
of its history), not from residuals:
- lengths uniform in 0.8-1 of nominal, closed loop, ten prompts per request in flight, as its client sends them;
- attention DP without EP: four ranks are TP4, more are EP over all (relabelled topologies);
- SGLang aggregated: --scheduler-recv-interval 10 below 16 requests in flight, 30 from there; --chunked-prefill-size 32,768 for FP8 on
  eight GPUs (8,192 on four), 16,384 for FP4, --mem-fraction-static 0.82 (0.95) and 0.85 (benchmarks/dsr1_fp8_b200.sh,
  dsr1_fp4_b200.sh, dsr1_fp8_h200.sh); their limits of running requests are no lower than the requests in flight, so they do not bind;
- TensorRT-LLM aggregated: max_num_tokens is concurrency + isl + 64, rounded up to 64, until 2026-01-21 (commit 64af5a771), then at
  least 8,192; images 1.2.0rc6 and later came after that; attention DP has enable_balance with timeout_iters 60;
- TensorRT-LLM aggregated until 2025-11-03 (rows without a release): the launch scripts chose EP and attention DP themselves by
  lengths and requests in flight (dsr1_fp4_b200_trt_slurm.sh, dsr1_fp8_h200_trt_slurm.sh at commit 9596d23d7), which the table, made of
  what they were called with, does not record;
- TensorRT-LLM's expert kernels aggregated: its default on Hopper; on Blackwell TRTLLM-gen, but in FP4 CUTLASS from 256 in flight on
  (8k prompts: above 32), in FP8 DeepGEMM in every run of release 1.1 (until 2026-01-29, commit ec7bafaae), then from 256 in flight on
  with 1k prompts (dsr1_fp4_b200_trt.sh, dsr1_fp8_b200_trt.sh); disaggregated: its recipe's;
- disaggregated: layouts, tokens and prompts that a prefill rank takes in a step, decode slots of a rank, polling and front ends are those of the
  recipe (deployments.csv, by recipes.py) of the same engine, GPU, precision, lengths, workers and decode layout: the one that
  names the run's concurrency, else the first. Runs of December 2025 are older than the recipes: SGLang ones without a recipe take
  16,384 tokens a step, TensorRT-LLM ones 4,608 at 1k and one prompt at 8k; decode slots of TensorRT-LLM then come from the names
  of the benchmark's recipes (recipes.csv);
- points of later imports (ids 2026_) do not say whether drafts ran: those whose deployment and release a configuration with drafts had
  (drafts.csv, by drafts.py) are priced without and not counted;
- releases: SGLang's configurations had EP from 2025-11-10 on, with 0.5.5 for 0.5.3rc1 (commit d8fe8f73e), all of TensorRT-LLM's
  1.1.0rc2.post2 until 2026-01-29 (.github/configs/nvidia-master.yaml);
- clients that sent nothing ahead (until 2026-01-21): SGLang on B200 ran in Docker, which sent FP8 50 prompts per request in flight, 20 of
  8,192 output tokens (runners/launch_b200-nvd.sh, by the name of the model), and no cache of compiled kernels is kept (commit 15b7c00b0);
- choices are among rows that count: what ran with drafts, or may have, is no alternative that is priced here;
- prompts are random tokens, whose experts are as unequal as SGLang recorded them on the benchmark's prompts (prompt_loads.csv, by
  prompt_loads.py); generated tokens and aggregated engines, one pool of both, keep the prior of mixed traffic;
- DeepEP's normal kernels have the 128 SMs that the recipes of SGLang with it give them (configs/deepep_config.json of
  NVIDIA/srt-slurm, unchanged since 2025-11-13);
- FP8 KV cache and attention;
- all-to-all: TensorRT-LLM's NVLink kernels need an Arm host (tensorrt_llm/_mnnvl_utils.py, supports_mnnvl), so one-sided
  NVLink on GB200 and GB300 and an all-gather with a reduce-scatter on machines with x86 hosts. Its DeepGEMM experts know the
  gather only (_torch/modules/fused_moe/fused_moe_deepgemm.py) unless ENABLE_CONFIGURABLE_MOE is set, which the recipes do for
  decode and never for prefill; DeepEP for SGLang where the recipe
  has it (normal for prefill, low latency for decode) or none is known, else an all-gather.
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
TRAY_GPUS = 4
FP8_CACHE = {"kv_cache": "fp8", "attention_compute": "fp8", "prefill_attention": "fp8"}
SOURCE = "https://github.com/SemiAnalysisAI/InferenceX"
BESIDE_SHARE = 0.03
"""Of a GPU's memory, what SGLang's --mem-fraction-static leaves out and a pool's memory_fraction holds: activations, graphs."""
DEEPEP_SMS = 128
"""SMs that the recipes with DeepEP's normal kernels give these (configs/deepep_config.json of NVIDIA/srt-slurm, --deepep-config)."""
WARMED_UP_SINCE = "2026-01-21"
"""Date of the client that sends requests ahead, of rows that say their date."""
BEFORE_RELEASES = {"trtllm": "1.1.0rc2.post2", "sglang": "0.5.3rc1", "sglang with EP": "0.5.5"}
"""Images of aggregated rows without a release or a date, which are of November 2025 or older."""
WARMED_UP = ("0.5.9", "0.5.10", "0.5.12", "1.2.0rc6", "1.3")
"""Images of aggregated runs whose client sent requests ahead of the measured ones."""
AFTER_MAX_TOKENS = ("1.2.0rc6", "1.3")
"""TensorRT-LLM images that ran with at least 8,192 tokens a step."""


def number(row: dict[str, str], name: str, default: int = 1) -> int:
    return int(float(row[name])) if row[name] else default


@functools.cache
def table(name: str) -> tuple[dict[str, str], ...]:
    """One of the tables beside this file."""
    with (Path(__file__).parent / name).open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def recipe(row: dict[str, str]) -> dict[str, str] | None:
    """The recipe that a disaggregated point was launched with; none where none is known."""
    workers = {f"{side}_workers": str(number(row, f"{side}_workers")) for side in "pd"}
    gpus = str(number(row, "d_tp") * number(row, "d_dp"))
    wanted = {name: row[name] for name in ("engine", "precision", "isl", "osl")} | workers
    wanted |= {"system": row["system"].removesuffix("_sxm"), "d_gpus": gpus, "d_dp": str(number(row, "d_dp"))}
    alike = [r for r in table("deployments.csv") if wanted.items() <= r.items()]
    named = [r for r in alike if r["concurrency"] == str(number(row, "concurrency"))]
    return next(iter(named or alike), None)


def slots(row: dict[str, str]) -> int:
    """Decode slots per rank of a disaggregated TensorRT-LLM point by the name of its recipe; 0 where no recipe is known."""
    system = row["system"].removesuffix("_sxm")
    key = (system, row["precision"], row["isl"], row["osl"], str(number(row, "concurrency")), row["p_workers"], row["d_workers"])
    return next((int(r["slots_per_rank"]) for r in table("recipes.csv") if tuple(list(r.values())[:7]) == key), 0)


def layout(row: dict[str, str], side: str) -> tuple[int, int, int]:
    """(TP of attention, attention-DP ranks, EP) as recorded; attention DP without EP is TP4 on four ranks, EP over all on more."""
    tp, dp, ep = (number(row, f"{side}_{name}") for name in ("tp", "dp", "ep"))
    if dp > 1 and ep == 1:
        return (dp, 1, 1) if dp <= 4 else (tp, dp, dp)
    return tp, dp, ep


def balance(role: str, dp: int, ep: int, placed: bool) -> dict:
    """How evenly tokens reach the ranks: prompts of random tokens as recorded, generated tokens by the prior."""
    if dp > 1 and ep >= 16 and placed:
        return {"kind": "eplb"}
    skews = {int(r["ranks"]): float(r["busiest_over_mean"]) for r in table("prompt_loads.csv")} if role == "prefill" else {}
    return {"kind": "none"} | ({"skew": skews[ep]} if ep in skews else {})


def pool(row: dict[str, str], side: str, role: str, sizes: tuple[int, int, int], deepep: bool, placed: bool) -> dict:
    tp, dp, ep = sizes
    gathers = "nvlink_one_sided" if row["system"] in ARM_HOSTS and row["engine"] == "trtllm" else "allgather_reducescatter"
    kernels = "deepep_normal" if role == "prefill" else "deepep_low_latency"
    backend = "none" if dp == 1 else kernels if deepep else gathers
    return {
        "tp": tp,
        "dp": dp,
        "ep": ep,
        "instances": number(row, f"{side}_workers"),
        "all2all_backend": backend,
        "all2all_processors": DEEPEP_SMS if backend == "deepep_normal" else 0,
        "redundant_experts": -256 % ep,
        "expert_balance": balance(role, dp, ep, placed),
        "max_batched_tokens": 16384 if role != "decode" else 0,
    }


def scripted(row: dict[str, str], tp: int, concurrency: int) -> tuple[int, int, int]:
    """The layout that an old launch script of TensorRT-LLM chose, see above."""
    isl, osl = int(row["isl"]), int(row["osl"])
    if row["precision"] == "fp8":
        own, spread = concurrency > (64 if isl <= 1024 else 32), True
    else:
        own = concurrency >= (256 if isl <= 1024 else 33)
        few = 32 if tp == 4 or isl > 1024 else 8 if osl <= 1024 else 16
        spread = concurrency > few
    return (1 if own else tp), (tp if own else 1), (tp if spread else 1)


def expert_kernel(row: dict[str, str], concurrency: int) -> str:
    """What the launch script of an aggregated TensorRT-LLM engine says."""
    if HARDWARE[row["system"]].endswith(("h100", "h200")):
        return "auto"
    short = int(row["isl"]) <= 1024
    if row["precision"] == "fp4":
        return "cutlass" if concurrency >= (256 if short else 33) else "trtllm_gen"
    return "deepgemm" if row["engine_version"].startswith("1.1") or (short and concurrency >= 256) else "trtllm_gen"


def aggregated(row: dict[str, str], concurrency: int) -> dict:
    """One engine with the limits of its launch script."""
    side = "d" if row["d_tp"] else "p"
    sizes = layout(row, side)
    if row["engine"] == "trtllm" and not row["engine_version"] and sizes[1:] == (1, 1):
        sizes = scripted(row, sizes[0], concurrency)
    one = pool(row, side, "serve", sizes, deepep=False, placed=True)
    gpus, fp8 = one["tp"] * one["dp"], row["precision"] == "fp8"
    if row["engine"] == "sglang":
        one["admission_interval_steps"] = 30 if concurrency >= 16 and not (fp8 and gpus == 4) else 10
        one["max_batched_tokens"] = (16384 if not fp8 else 8192 if gpus == 4 else 32768) // one["dp"]
        one["memory_fraction"] = round((0.85 if not fp8 else 0.95 if gpus == 4 else 0.82) + BESIDE_SHARE, 2)
        return one
    one["expert_kernel"] = expert_kernel(row, concurrency)
    least = 8192 if row["engine_version"].startswith(AFTER_MAX_TOKENS) else 0
    one["max_batched_tokens"] = max(-(-(concurrency + int(row["isl"]) + 64) // 64) * 64, least)
    if one["dp"] > 1:
        one["gather_prefill_steps"] = 60
    return one


def disaggregated(row: dict[str, str]) -> dict:
    """A prefill and a decode pool as the recipe has them, or by rule where none is known."""
    pools = _pools(row)
    if row["engine"] == "sglang" and row["system"] in ARM_HOSTS and pools["decode"]["tp"] > TRAY_GPUS:
        pools["decode"]["symmetric_memory"] = True  # --enable-symm-mem of srt-slurm's recipes, for decoding alone
    return pools


def _pools(row: dict[str, str]) -> dict:
    found, sglang = recipe(row), row["engine"] == "sglang"
    if found is None:
        pools = {name: pool(row, name[0], name, layout(row, name[0]), sglang, placed=True) for name in ("prefill", "decode")}
        if not sglang:
            pools["prefill"]["max_batched_tokens"] = 4608 if int(row["isl"]) <= 1024 else int(row["isl"]) + 256
            pools["decode"]["batch_per_dp_rank"] = slots(row)
        return pools
    pools = {}
    for name in ("prefill", "decode"):
        gpus, dp, ep = (int(found[f"{name[0]}_{size}"]) for size in ("gpus", "dp", "ep"))
        placed = found[f"{name[0]}_placed"] == "1"
        pools[name] = pool(row, name[0], name, (gpus // dp, dp, ep), found[f"{name}_deepep"] == "1", placed)
        if not sglang:
            pools[name]["expert_kernel"] = found[f"{name[0]}_kernel"]
    if not sglang and gathers(pools["prefill"]):
        pools["prefill"]["all2all_backend"] = "allgather_reducescatter"
    pools["prefill"] |= {"max_batched_tokens": int(found["prefill_tokens"]), "batch_per_dp_rank": int(found["prefill_prompts"])}
    pools["prefill"]["absorbs_cut_prompts"] = found["prefill_absorbs"] == "1"
    pools["decode"] |= {"batch_per_dp_rank": int(found["decode_slots"]), "admission_interval_steps": int(found["look_steps"])}
    return pools


def gathers(prefill: dict) -> bool:
    """Whether TensorRT-LLM's own DeepGEMM experts run: they gather tokens whatever the machine."""
    return prefill["expert_kernel"] == "deepgemm" and prefill["dp"] > 1


def dealers(row: dict[str, str]) -> int:
    """Front ends of a disaggregated TensorRT-LLM point; one where no recipe says.

    Recipes of SGLang have several too, but its points at four and eight in flight on four decode engines (GB300, FP8) decode as if one
    dealt: what spreads them there is not known, so that they are priced with one. A choice by residuals, see the README.
    """
    found = recipe(row) if (row["mode"], row["engine"]) == ("disagg", "trtllm") else None
    return int(found["routers"]) if found else 1


def warmed_up(row: dict[str, str]) -> bool:
    """Whether the client sent requests ahead of the measured ones.

    NVIDIA/srt-slurm's has always done so (sa-bench/bench.sh), that of aggregated runs since 2026-01-21 (commit d053ae24e of
    SemiAnalysisAI/InferenceX); every release below was first run after that day, runs without a release and older ones before.
    """
    late = row.get("date", "") >= WARMED_UP_SINCE
    return row["mode"] == "disagg" or late or row["engine_version"].startswith(WARMED_UP)


def release(row: dict[str, str]) -> dict[str, str]:
    """Version of the engine, where it is known: images of disaggregated TensorRT-LLM are named by Dynamo's."""
    engine, said = row["engine"], row["engine_version"]
    if engine == "trtllm" and row["mode"] == "disagg":
        return {}
    if not said and row["mode"] == "agg" and not row.get("date"):
        spread = engine == "sglang" and number(row, "d_ep" if row["d_tp"] else "p_ep") > 1
        said = BEFORE_RELEASES[f"{engine} with EP" if spread else engine]
    return {"version": said} if said else {}


def load(row: dict[str, str], concurrency: int) -> dict:
    """What the client sent; ten prompts per request in flight go without saying."""
    sent = {"concurrency": concurrency, "shortest": 0.8}
    if warmed_up(row):
        return sent
    docker = row["system"] == "b200_sxm" and row["engine"] == "sglang" and row["precision"] == "fp8"
    more = {"requests": concurrency * (20 if int(row["osl"]) == 8192 else 50)} if docker else {}
    return sent | more | {"warmed_up": False}


def may_draft(row: dict[str, str]) -> bool:
    """Whether drafts ran, or may have, by the benchmark's configurations."""
    return any(found["id"] == row["id"] and found["with"] for found in table("drafts.csv"))


def case(row: dict[str, str]) -> dict:
    concurrency = number(row, "concurrency")
    pools = disaggregated(row) if row["mode"] == "disagg" else {"serve": aggregated(row, concurrency)}
    gpus = sum(p["tp"] * p["dp"] * p["instances"] for p in pools.values())
    tpot_s, ttft_s = float(row["tpot_ms"]) / 1e3, float(row["ttft_ms"]) / 1e3
    osl = 0.9 * int(row["osl"])
    rate = concurrency / (ttft_s + osl * tpot_s) * osl
    ahead = "" if warmed_up(row) else ", client not warmed up"
    counts = not row["note"] and not may_draft(row)
    at = f"{row['system']} {row['engine']} {row['precision']} {row['isl']}/{row['osl']} at {concurrency}{ahead}"
    layouts = " + ".join(f"{p['instances']}x" + "tp{tp}dp{dp}ep{ep}".format(**p) for p in pools.values())
    return {
        "id": row["id"],
        "title": row["id"],
        "source": SOURCE,
        "date": "2026-01-01",
        "named": counts,
        **({"decision": at} if counts else {}),
        "assumptions": [f"layout {layouts}", *([row["note"]] if row["note"] else []), *(["may draft"] if may_draft(row) else [])],
        "deployment": {
            "hardware": HARDWARE[row["system"]],
            "model": "deepseek-r1",
            "precision": {"recipe": "nvfp4" if row["precision"] == "fp4" else "fp8-block", **FP8_CACHE},
            "engine": {"name": row["engine"], **release(row)},
            "phase": "serve",
            "workload": {"isl_tokens": int(row["isl"]), "osl_tokens": int(row["osl"])},
            "pools": pools,
            "routers": dealers(row),
            "load": load(row, concurrency),
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
