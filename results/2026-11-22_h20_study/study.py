"""DeepSeek-V3 on 32 H20 with 25 GbE: the published plan audited line by line, the best plan, the network it takes; prints the README's tables.

usage: python study.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from autotune.auditing.checking import Verdict, check
from autotune.auditing.goals import Goals
from autotune.auditing.sensitivity import sensitivity
from autotune.documents.deployment import Deployment
from autotune.errors import NoFeasiblePlan
from autotune.documents.problem import Problem
from autotune.documents.results import dump_yaml
from autotune.searching.pools import search
from autotune.searching.services.searching import search_services
from autotune.predicting.step import predict
from cost_models.catalog import load_hardware, load_model, load_recipe
from cost_models.specs.model import ModelSpec

MOE_LAYERS = 58
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
    memory = f"{verdict.memory[0].total_bytes / 1e9:.0f} of {verdict.memory[0].limit_bytes / 1e9:.0f} GB"
    rate = (verdict.tokens_per_s_per_gpu or 0) * verdict.gpus
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


def arithmetic() -> None:
    """What the document counts, and what the tool does."""
    model, cluster = load_model("deepseek-v3"), load_hardware("h20-4node-25gbe")
    moe = model.moe
    assert moe is not None
    experts = moe_parameters(model)
    base = plan("h20-4node-25gbe", "deepseek-v3", "bf16", "vllm", H20_LOAD, dp=32, ep=32, batch_per_dp_rank=7, all2all_backend="deepep_low_latency")
    lines = {line.name: line.bytes for line in predict(base).memory}
    node_bytes_per_s = cluster.scale_out_bytes_per_s * cluster.gpus_per_node
    token_bytes = MOE_LAYERS * model.hidden * (1 + 2) * 3
    rows = [
        ("FLOP per token, matrices", f"{2 * model.active_parameters() / 1e9:,.0f} GFLOP", "69.5 TFLOP (2 x 7168 x 512 taken for 7.3e9)"),
        ("routed expert parameters", f"{experts / 1e9:,.1f}e9 ({experts / model.parameters():.0%} of {model.parameters() / 1e9:,.0f}e9)", "436e9"),
        ("weights of a GPU, BF16 at EP32", f"{(lines['expert weights'] + lines['other weights']) / 1e9:,.1f} GB", "42 GB"),
        ("KV cache of a token", f"{float(model.state_bytes(1, load_recipe('bf16'))) / 1e3:,.1f} KB", "twice that"),
        ("KV cache of a GPU, 200 x 32K over 32", f"{200 * 32768 * float(model.state_bytes(1, load_recipe('bf16'))) / 32 / 1e9:,.1f} GB", "25.6 GB"),
        ("network of a node", f"{node_bytes_per_s / 1e9:,.2f} GB/s", "-"),
        ("bytes between nodes per token", f"{token_bytes / 1e6:,.2f} MB", "-"),
        ("most tokens/s that the network carries", f"{4 * node_bytes_per_s / token_bytes:,.0f}", "35,000-45,000"),
        ("NVLink of an H20, one direction", f"{cluster.scale_up.bytes_per_s.value / 1e9:,.0f} GB/s", "900 GB/s (both directions)"),
    ]
    print("| line | computed | the document |\n|---|---:|---:|")
    for name, computed, stated in rows:
        print(f"| {name} | {computed} | {stated} |")


def moe_parameters(model: ModelSpec) -> float:
    """Of all routed experts."""
    assert model.moe is not None
    return MOE_LAYERS * model.moe.experts * 3 * model.hidden * model.moe.intermediate


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


def main() -> None:
    """All tables."""
    print("| plan | memory of a GPU | fits | tokens/s predicted | claimed | bottleneck | smallest change |\n|---|---:|---|---:|---:|---|---|")
    h20()
    print()
    arithmetic()
    print()
    cluster = best("h20-4node-25gbe", 32, H20_LOAD, tpot_limit_s=1.0)
    best("h20-4node-25gbe", 32, SHORT, tpot_limit_s=0.2)
    networks()
    if cluster is None:
        return
    print("\n| what, on the best H20 plan at 32K | -40 % | +40 % | for 50,000 tokens/s, alone |\n|---|---:|---:|---:|")
    for influence in sensitivity(cluster, 50_000).influences:
        needed = "cannot" if influence.needed is None else f"x {influence.needed:,.1f}"
        print(f"| {influence.name} | {influence.effects[0]:+.1%} | {influence.effects[-1]:+.1%} | {needed} |")


if __name__ == "__main__":
    main()
