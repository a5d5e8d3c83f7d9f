"""Plans of four published systems: predicted, audited, and the best that their hardware could do; prints the README's tables.

usage: python study.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from autotune.auditing.checking import Verdict, check
from autotune.auditing.goals import Goals
from autotune.auditing.sensitivity import sensitivity
from autotune.deployment import Deployment
from autotune.errors import NoFeasiblePlan
from autotune.problem import Problem
from autotune.records import dump_yaml
from autotune.searching import search
from autotune.services.searching import search_services
from cost_models.catalog import load_hardware

H20_LOAD = {"isl_tokens": 32256, "osl_tokens": 512, "mean_context_tokens": 32768}
SHORT = {"isl_tokens": 2048, "osl_tokens": 2048}


def plan(hardware: str, model: str, precision: str, engine: str, workload: dict[str, Any], **pool: Any) -> Deployment:
    """A decode pool."""
    return Deployment.model_validate({
        "hardware": hardware, "model": model, "precision": precision, "engine": {"name": engine}, "workload": workload,
        "pools": {"decode": pool},
    })  # fmt: skip


def audited(name: str, deployment: Deployment, goals: Goals) -> Verdict:
    """One line of the audit table."""
    verdict = check(deployment, goals)
    memory = f"{verdict.memory_total_bytes / 1e9:.0f} of {verdict.memory_limit_bytes / 1e9:.0f} GB"
    rate = verdict.tokens_per_s_per_gpu * verdict.gpus
    change = "; ".join(verdict.changes[0].changes) if verdict.changes else "-"
    missing = ", ".join(verdict.changes[0].missing) if verdict.changes else ""
    wanted = f"{goals.tokens_per_s:,.0f}" if goals.tokens_per_s else "-"
    print(
        f"| {name} | {memory} | {'yes' if verdict.fits else 'no'} | {rate:,.0f} | {wanted} | {verdict.bottleneck} | "
        f"{change}{f' (still missing: {missing})' if missing else ''} |"
    )
    return verdict


def h20() -> None:
    """DeepSeek-V3 on 32 H20 with one 25 GbE port per node."""
    for precision in ("bf16", "fp8-block"):
        deployment = plan(
            "h20-4node-25gbe", "deepseek-v3", precision, "vllm", H20_LOAD, dp=32, ep=32, batch_per_dp_rank=7,
            all2all_backend="deepep_low_latency", memory_fraction=0.9,
        )  # fmt: skip
        audited(f"32 H20, 25 GbE, {precision}, DP32 EP32, 200 x 32K", deployment, Goals(tokens_per_s=35_000, concurrency=200))


def ascend() -> None:
    """DeepSeek-R1 on 16 and 40 Ascend 910B2."""
    for precision in ("bf16", "int8"):
        deployment = plan(
            "ascend-910b2", "deepseek-r1", precision, "vllm-ascend", SHORT, tp=8, dp=2, ep=16, batch_per_dp_rank=16,
            all2all_backend="allgather_reducescatter",
        )  # fmt: skip
        audited(f"16 x 910B2, {precision}, TP8 DP2 EP16", deployment, Goals(tokens_per_s=320))
    deployment = plan(
        "ascend-910b2", "deepseek-r1", "int8", "vllm-ascend", SHORT, tp=8, dp=5, ep=40, batch_per_dp_rank=64, redundant_experts=24,
        all2all_backend="allgather_reducescatter",
    )  # fmt: skip
    audited("40 x 910B2, int8, TP8 DP5 EP40", deployment, Goals(tokens_per_s=4_793))


def best(hardware: str, gpus: int, workload: dict[str, Any], **problem: Any) -> Deployment | None:
    """The best decode plan, printed."""
    try:
        found = search(Problem(hardware=hardware, gpus=gpus, workload=workload, trials=0, **problem)).best
    except NoFeasiblePlan as error:
        print(f"- {hardware}, {gpus} GPUs: {error}")
        return None
    bars = found.odds.uncertainty.tokens_per_s_per_gpu
    print(
        f"- {hardware}, {gpus} GPUs: {found.label}, {found.deployment.precision}: {found.prediction.tokens_per_s:,.0f} tokens/s "
        f"({found.prediction.tokens_per_s_per_gpu:,.0f} per GPU, 80 % interval {bars.low:,.0f}-{bars.high:,.0f}), "
        f"TPOT {found.prediction.tpot_s * 1e3:.0f} ms, {found.prediction.concurrency:,} sequences"
    )
    return found.deployment


def networks() -> None:
    """The best plan of the H20 cluster with other networks, searched again each time."""
    spec = load_hardware("h20-4node-25gbe")
    print("\n| network of a node | tokens/s at 32K context | tokens/s at 2K prompts and answers |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for gigabits, ports in ((25, 1), (100, 1), (400, 1), (400, 4), (400, 8)):
            nic = spec.scale_out.nic_bits_per_s.model_copy(update={"value": gigabits * 1e9})
            network = spec.scale_out.model_copy(update={"nic_bits_per_s": nic, "nics_per_node": ports})
            file = Path(folder) / f"h20-{gigabits}x{ports}.yaml"
            file.write_text(dump_yaml(spec.model_copy(update={"scale_out": network}).model_dump(mode="json", exclude_none=True)))
            rates = []
            for workload, limit in ((H20_LOAD, 1.0), (SHORT, 0.2)):
                problem = Problem(hardware=str(file), gpus=32, workload=workload, tpot_limit_s=limit, trials=0)
                rates.append(search(problem).best.prediction.tokens_per_s)
            print(f"| {ports} x {gigabits} Gb/s | {rates[0]:,.0f} | {rates[1]:,.0f} |")


def service(gpus: int) -> None:
    """Prefill and decode pools on Ascend that really fit."""
    problem = Problem(
        hardware="ascend-910b2", model="deepseek-r1", target="serve", gpus=gpus, workload=SHORT, trials=0, ttft_p99_limit_s=5.0,
        tpot_limit_s=0.1,
    )  # fmt: skip
    try:
        found = search_services(problem).best
    except NoFeasiblePlan as error:
        print(f"- service on {gpus} x 910B2: {error}")
        return
    print(
        f"- service on {gpus} x 910B2: {found.label}: {found.prediction.tokens_per_s:,.0f} tokens/s "
        f"({found.prediction.tokens_per_s_per_gpu:,.0f} per GPU), TTFT P99 {found.prediction.ttft_s.p99:.1f} s, "
        f"TPOT {found.prediction.tpot_s.mean * 1e3:.0f} ms"
    )


def main() -> None:
    """All tables."""
    print("| plan | memory of a GPU | fits | tokens/s predicted | claimed | bottleneck | smallest change |\n|---|---:|---|---:|---:|---|---|")
    h20()
    ascend()
    print()
    cluster = best("h20-4node-25gbe", 32, H20_LOAD, tpot_limit_s=1.0)
    best("h20-4node-25gbe", 32, SHORT, tpot_limit_s=0.2)
    best("ascend-910b2", 16, SHORT, model="deepseek-r1", tpot_limit_s=0.2)
    best("ascend-910b2", 40, SHORT, model="deepseek-r1", tpot_limit_s=0.2)
    service(64)
    networks()
    if cluster is None:
        return
    print("\n| what, on the best H20 plan at 32K | -40 % | +40 % | for 50,000 tokens/s, alone |\n|---|---:|---:|---:|")
    for influence in sensitivity(cluster, 50_000).influences:
        needed = "cannot" if influence.needed is None else f"x {influence.needed:,.1f}"
        print(f"| {influence.name} | {influence.effects[0]:+.1%} | {influence.effects[-1]:+.1%} | {needed} |")


if __name__ == "__main__":
    main()
