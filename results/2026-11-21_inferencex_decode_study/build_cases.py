"""InferenceX disaggregated decode points -> a case file for `autotune validate`.

usage: python build_cases.py inferencex_dsr1.csv > cases.yaml
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
FP8_CACHE = {"kv_cache": "fp8", "attention_compute": "fp8"}
"""As the public recipes of these points have it, whatever the weights."""
RACKS = ("gb200", "gb300")
HOST_GPUS = 4
"""GPUs of a tray."""
MEAN_LENGTH = 0.9
"""Lengths are uniform between 0.8 and 1 of nominal."""
SOURCE = "https://github.com/SemiAnalysisAI/InferenceX"


def usable(row: dict[str, str]) -> bool:
    """Decode points without a note; prefill-bound points and relabelled topologies left out."""
    mislabelled = int(row["d_dp"] or 1) > 1 and int(row["d_ep"] or 1) == 1
    return row["mode"] == "disagg" and not row["note"] and float(row["ttft_ms"]) < 20_000 and not mislabelled


def case(row: dict[str, str]) -> dict:
    """One point: the batch that the concurrency fills, at most the nominal one."""
    tp, dp, ep = (int(row[f"d_{name}"]) for name in ("tp", "dp", "ep"))
    batch = max(1, int(min(float(row["concurrency"]) / float(row["d_workers"]) / dp, float(row["d_batch"]))))
    hopper = row["system"].startswith("h")
    backend = "none" if dp == 1 else "nvlink_one_sided" if row["engine"] == "trtllm" and not hopper else "deepep_low_latency"
    pool = {
        "tp": tp,
        "dp": dp,
        "ep": ep,
        "batch_per_dp_rank": batch,
        "all2all_backend": backend,
        "redundant_experts": -256 % ep,
        "expert_balance": {"kind": "eplb" if dp > 1 and ep >= 16 else "none"},
    }
    if row["engine"] == "sglang" and row["system"] in RACKS and tp > HOST_GPUS:
        pool["symmetric_memory"] = True  # --enable-symm-mem in the public recipes of these points
    tpot_s = float(row["tpot_ms"]) / 1e3
    return {
        "id": row["id"],
        "title": row["id"],
        "source": SOURCE,
        "date": "2026-01-01",
        "assumptions": ["all-to-all backend and EPLB by engine and EP size, not recorded"],
        "deployment": {
            "hardware": HARDWARE[row["system"]],
            "model": "deepseek-r1",
            "precision": {"recipe": "nvfp4" if row["precision"] == "fp4" else "fp8-block", **FP8_CACHE},
            "engine": {"name": row["engine"]},
            "workload": {
                "isl_tokens": int(MEAN_LENGTH * int(row["isl"])),
                "osl_tokens": int(MEAN_LENGTH * int(row["osl"])),
            },
            "pools": {"decode": pool},
        },
        "measured": {"tokens_per_s_per_gpu": batch * dp / tpot_s / (tp * dp), "tpot_s": tpot_s},
    }


def main() -> None:
    """Read the table named on the command line and print the case file."""
    with open(sys.argv[1], newline="", encoding="utf-8") as file:
        cases = [case(row) for row in csv.DictReader(file) if usable(row)]
    title = "InferenceX disaggregated DeepSeek-R1 decode points"
    yaml.safe_dump({"format": "autotune-cases/1", "title": title, "cases": cases}, sys.stdout, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
