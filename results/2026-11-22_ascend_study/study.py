"""DeepSeek-R1 on 16, 40 and 64 Ascend 910B2: the published analysis audited, plans that fit, launch scripts; prints the README's tables.

usage: python study.py [launch FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from autotune.auditing.checking import check
from autotune.auditing.goals import Goals
from autotune.documents.deployment import Deployment
from autotune.errors import NoFeasiblePlan
from autotune.predicting.step import predict
from autotune.documents.problem import Problem
from autotune.exporters.folders import plan_scripts, write_scripts
from autotune.searching.pools import search
from autotune.documents.service_plan import ServicePlan
from autotune.searching.services.searching import search_services
from cost_models.catalog import load_hardware, load_model

SHORT = {"isl_tokens": 2048, "osl_tokens": 2048}
HARDWARE, MODEL = "ascend-910b2", "deepseek-r1"


def plan(precision: str, **pool: Any) -> Deployment:
    """A decode pool."""
    return Deployment.model_validate({
        "hardware": HARDWARE, "model": MODEL, "precision": precision, "engine": {"name": "vllm-ascend"}, "workload": SHORT,
        "pools": {"decode": {"batch_per_dp_rank": 16, "all2all_backend": "deepep_low_latency", **pool}},
    })  # fmt: skip


def arithmetic() -> None:
    """What the document counts, and what the model and the cards are."""
    model, card = load_model(MODEL), load_hardware(HARDWARE).gpu
    bf16 = model.parameters() * 2
    whole, cut = (predict(plan("int8", ep=16, **split)) for split in ({"dp": 16}, {"tp": 8, "dp": 2}))
    weights = [sum(line.bytes for line in p.memory if line.name.endswith("weights")) / 1e9 for p in (whole, cut)]
    rows = [
        ("layers, hidden, heads, vocabulary", f"{model.layers}, {model.hidden:,}, {model.heads}, {model.vocab:,}", "64, 8,192, 64, 102,400"),
        ("weights in BF16", f"{bf16 / 1e9:,.0f} GB", "1,342 GB"),
        ("of a card at TP8", f"{bf16 / 8 / 1e9:,.0f} GB", "21 GB (divided by 8 twice)"),
        ("all memory of 16 cards", f"{16 * card.hbm_nominal_bytes.value / 1e9:,.0f} GB", "fits, it says"),
        ("INT8 over 16 cards, attention whole on each", f"{weights[0]:,.0f} GB a card", "-"),
        ("INT8 over 16 cards, attention over TP8", f"{weights[1]:,.0f} GB a card", "-"),
        ("HBM bandwidth of a card", f"{card.hbm_bytes_per_s.value / 1e9:,.0f} GB/s", "400, 1,200 and 2,000"),
        ("FLOP per token, matrices", f"{2 * model.active_parameters() / 1e9:,.0f} GFLOP", "2 x 671e9 and 2 x 37e9"),
    ]
    print("| line | computed | the document |\n|---|---:|---:|")
    for name, computed, stated in rows:
        print(f"| {name} | {computed} | {stated} |")


def audited(name: str, deployment: Deployment, claimed: float) -> None:
    """One line of the audit table."""
    verdict = check(deployment, Goals(tokens_per_s=claimed))
    memory = verdict.memory[0]
    rate = (verdict.tokens_per_s_per_gpu or 0.0) * verdict.gpus
    change = "; ".join(verdict.changes[0].changes) if verdict.changes else "-"
    missing = f" (still missing: {', '.join(verdict.changes[0].missing)})" if verdict.changes and verdict.changes[0].missing else ""
    starts = "; ".join(verdict.conflicts) or "yes"
    print(
        f"| {name} | {starts} | {memory.total_bytes / 1e9:.0f} of {memory.limit_bytes / 1e9:.0f} GB | {rate:,.0f} | {claimed:,.0f} | "
        f"{verdict.bottleneck} | {change}{missing} |"
    )


def best(gpus: int, limit_s: float) -> None:
    """The best decode pool, printed."""
    try:
        found = search(Problem(hardware=HARDWARE, model=MODEL, gpus=gpus, workload=SHORT, trials=0, tpot_limit_s=limit_s)).best
    except NoFeasiblePlan as error:
        print(f"- {gpus} cards: {error}")
        return
    bars = found.odds.uncertainty.tokens_per_s_per_gpu
    print(
        f"- decode on {gpus} cards, TPOT {limit_s * 1e3:.0f} ms: {found.label}, {found.deployment.precision}: "
        f"{found.prediction.tokens_per_s:,.0f} tokens/s ({found.prediction.tokens_per_s_per_gpu:,.0f} per card, 80 % interval "
        f"{bars.low:,.0f}-{bars.high:,.0f}), TPOT {found.prediction.tpot_s * 1e3:.0f} ms, {found.prediction.concurrency:,} sequences"
    )


def service(gpus: int) -> ServicePlan:
    """Prefill and decode pools that fit, printed."""
    problem = Problem(
        hardware=HARDWARE, model=MODEL, target="serve", gpus=gpus, workload=SHORT, trials=0, ttft_p99_limit_s=5.0, tpot_limit_s=0.1
    )
    found = search_services(problem).best
    bars = found.prediction.intervals.tokens_per_s_per_gpu
    print(
        f"- service on {gpus} cards: {found.label}: {found.prediction.tokens_per_s:,.0f} tokens/s "
        f"({found.prediction.tokens_per_s_per_gpu:,.0f} per card, 80 % interval {bars.low:,.0f}-{bars.high:,.0f}), "
        f"TTFT P99 {found.prediction.ttft_s.p99:.1f} s, TPOT {found.prediction.tpot_s.mean * 1e3:.0f} ms"
    )
    return found


def main() -> None:
    """All tables; with `launch FOLDER` the scripts of the service on 64 cards too."""
    arithmetic()
    print("\n| plan | starts | memory of a card | tokens/s predicted | claimed | bottleneck | smallest change |")
    print("|---|---|---:|---:|---:|---|---|")
    audited("16 cards, BF16, TP8 DP2 EP16", plan("bf16", tp=8, dp=2, ep=16), 320)
    audited("16 cards, INT8, TP8 DP2 EP16", plan("int8", tp=8, dp=2, ep=16), 320)
    audited("40 cards, INT8, TP8 DP5 EP40", plan("int8", tp=8, dp=5, ep=40, batch_per_dp_rank=64, redundant_experts=24), 4_793)
    print()
    best(16, 0.2)
    best(40, 0.2)
    service(16)
    service(40)
    chosen = service(64)
    if sys.argv[1:2] == ["launch"]:
        write_scripts(Path(sys.argv[2]), chosen, plan_scripts(chosen))


if __name__ == "__main__":
    main()
