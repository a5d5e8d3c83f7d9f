"""Predicted against published time per operator: two decode steps and two prefill steps.

    python breakdowns.py > breakdowns.csv
"""

from __future__ import annotations

import csv
import sys

from autotune.documents.deployment import Deployment
from autotune.predicting.step import predict
from autotune.validating.cases import published

GEMMS = ("q_a_kv_a", "q_b", "kv_b", "o_proj", "absorb", "shared_gate_up", "shared_down", "router", "shared_stream")
OTHER = ("elementwise", "moe_elementwise", "launch_gaps")
CASES = {case.id: case for file in published() for case in file.cases}


def per_step(deployment: Deployment) -> dict[str, float]:
    return {line.name: line.time_s for line in predict(deployment).operators}


def h100_decode(batch: int) -> Deployment:
    """LMSYS H100 decode, DP72 EP72, without two-batch overlap (their ablation)."""
    case = CASES["sglang-h100-decode-ep72-2k"].deployment
    pool = case.pool.model_copy(update={"overlap": "none", "batch_per_dp_rank": batch})
    return case.model_copy(update={"pools": {"decode": pool}})


def rows():
    # LMSYS large-scale EP, decode breakdown, milliseconds per layer, columns noTBO 256 and noTBO 128 (printed scaled by two)
    for batch, scale, published_ms in (
        (256, 1.0, {"dispatch": 0.394, "combine": 0.706, "experts": 0.232, "attention": 0.279, "gemm": 0.179, "other": 0.117}),
        (128, 0.5, {"dispatch": 0.403, "combine": 0.735, "experts": 0.297, "attention": 0.303, "gemm": 0.294, "other": 0.185}),
    ):
        found = per_step(h100_decode(batch))
        layer = {
            "dispatch": found["dispatch"] / 58, "combine": found["combine"] / 58, "experts": found["experts"] / 58,
            "attention": found["attention"] / 61,
            "gemm": sum(found.get(n, 0.0) / (61 if n in ("q_a_kv_a", "q_b", "o_proj", "absorb") else 58) for n in GEMMS),
            "other": sum(found[n] / (58 if n == "moe_elementwise" else 61) for n in OTHER),
        }  # fmt: skip
        for name, value in layer.items():
            yield f"SGLang H100 decode, no overlap, batch {batch}, ms per layer", name, value * 1e3, published_ms[name] * scale
    # vLLM GB200 prefill trace, milliseconds per step of 65,536 tokens on each of two ranks
    found = per_step(CASES["vllm-gb200-prefill-ep2"].deployment)
    groups = {
        "experts (fc1, fc2, finalize, routing)": (("experts",), 508.6 + 228.8 + 94.6 + 21.7),
        "attention (FMHA, rope, concat, cache write)": (("attention",), 300.5 + 27.5 + 49.5 + 14.1),
        "all-gather and reduce-scatter": (("dispatch", "combine"), 92.8 + 290.5),
        "BF16 GEMM": (("q_a_kv_a", "q_b", "kv_b", "router", "lm_head"), 354.5),
        "FP4 dense GEMM with quantise": (("o_proj", "shared_gate_up", "shared_down", "ffn_gate_up", "ffn_down"), 233.4 + 60.8),
        "norms, adds, copies, dispatch quantise": (("elementwise", "moe_elementwise"), 74 + 41 + 23.6 + 16.4 + 12.2 + 22.6),
    }
    for name, (operators, published_ms) in groups.items():
        yield "vLLM GB200 prefill EP2, ms per step", name, sum(found.get(o, 0.0) for o in operators) * 1e3, published_ms
    # DeepSeek H800 prefill profile as tabulated by LMSYS: milliseconds per layer and 16,384 tokens, compute on 108 of 132 SMs
    found = per_step(CASES["deepseek-h800-profile-prefill"].deployment)
    share = 132 / 108
    layer = {
        "experts + other": (found["experts"] / 58 + sum(found[n] / 60 for n in ("elementwise", "moe_elementwise")), 12.32 + 5.06),
        "attention": (found["attention"] / 61, 5.58),
        "gemm": (sum(found.get(n, 0.0) / (61 if n[0] in "qko" else 58) for n in GEMMS), 8.37),
    }
    for name, (value, published_ms) in layer.items():
        yield "DeepSeek H800 prefill, ms per layer", name, value * 1e3 * share, published_ms
    for name, published_ms in (("dispatch", 9.4), ("combine", 17.19)):
        yield "DeepSeek H800 prefill, ms per layer", name, found[name] / 58 * 1e3 * 1.2, published_ms


def main() -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["step", "operator", "predicted_ms", "published_ms", "error"])
    for step, name, predicted, measured in rows():
        out.writerow([step, name, f"{predicted:.4g}", f"{measured:.4g}", f"{predicted / measured - 1:+.3f}"])


if __name__ == "__main__":
    main()
