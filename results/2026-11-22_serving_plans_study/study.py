"""Prefill sizes, prefill:decode ratios and chunk settings, as the searches choose them; prints the README's tables.

usage: python study.py
"""

from __future__ import annotations

import tempfile
from importlib import resources
from pathlib import Path

import yaml

from autotune.errors import NoFeasiblePlan
from autotune.documents.plan import SearchResult
from autotune.predicting.step import predict
from autotune.documents.problem import Problem
from autotune.searching.pools import search
from autotune.searching.services.searching import search_services

SIZES = (2, 4, 8)


def with_host_link(folder: Path, bytes_per_s: float) -> str:
    """GB200 with another host link."""
    document = yaml.safe_load(resources.files("cost_models").joinpath("data", "hardware", "gb200-nvl72.yaml").read_text())
    document["host_link"]["bytes_per_s"]["value"] = bytes_per_s
    path = folder / f"gb200-{bytes_per_s / 1e9:.0f}gbps.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def sizes_of(result: SearchResult) -> str:
    """Best rate per instance size, the best in bold, and its shares."""
    found = {size.gpus: size for size in result.sizes}
    best = max(found.values(), key=lambda size: size.tokens_per_s_per_gpu)
    cells = []
    for gpus in SIZES:
        size = found.get(gpus)
        if size is None:
            cells.append("does not fit")
            continue
        text = f"{size.tokens_per_s_per_gpu:,.0f} ({size.communication_share:.0%}, {size.waiting_share:.0%})"
        cells.append(f"**{text}**" if size is best else text)
    return " | ".join(cells)


def prefill_sizes(folder: Path) -> None:
    """Where two GPUs per prefill instance win, and where not."""
    print("| hardware | one prompt within | 2 GPUs | 4 GPUs | 8 GPUs |\n|---|---:|---:|---:|---:|")
    machines = [
        ("GB200, C2C 450 GB/s per superchip", "gb200-nvl72"),
        ("GB200 with a link of 100 GB/s", with_host_link(folder, 100e9)),
        ("GB200 with a link of 50 GB/s", with_host_link(folder, 50e9)),
        ("HGX H200", "hgx-h200"),
    ]
    for name, hardware in machines:
        for limit_s in (0.15, 0.5, 3.0):
            try:
                result = search(Problem(hardware=hardware, target="prefill", gpus=8, trials=0, ttft_limit_s=limit_s))
            except NoFeasiblePlan:
                print(f"| {name} | {limit_s:g} s | none | none | none |")
                continue
            print(f"| {name} | {limit_s:g} s | {sizes_of(result)} |")


def ratios() -> None:
    """Prefill and decode GPUs of the published deployments' workloads."""
    workloads = [
        ("vLLM GB200, 2,000 in / 2,000 out, its 16 GPUs", Problem(hardware="gb200-nvl72", target="serve", gpus=16)),
        ("the same on 72 GPUs", Problem(hardware="gb200-nvl72", target="serve")),
        (
            "DeepSeek H800 production: 4,383 in (56.3 % cached) / 1,210 out, FP8",
            Problem(
                hardware="hgx-h800",
                target="serve",
                gpus=1824,
                workload={"isl_tokens": 4383, "osl_tokens": 1210, "prefix_cache_hit_rate": 0.563, "mean_context_tokens": 4989},
                tpot_limit_s=0.055,
                ttft_p99_limit_s=5.0,
            ),
        ),
    ]
    print("| workload | plan | prefill GPUs per decode GPU |\n|---|---|---:|")
    for name, problem in workloads:
        best = search_services(problem).best
        gpus = {pool.phase: pool.gpus for pool in best.pools}
        print(f"| {name} | {best.label}, {best.prediction.tokens_per_s_per_gpu:,.0f} tokens/s/GPU | {gpus['prefill'] / gpus['decode']:.2f} |")


def chunks() -> None:
    """What vLLM 0.17's chunk defaults cost on GB200."""
    print("| target | flag | chosen | default | throughput lost with the default |\n|---|---|---|---|---:|")
    for target in ("prefill", "decode"):
        best = search(Problem(hardware="gb200-nvl72", target=target, engine_version="0.17")).best
        chosen = best.deployment.pool.flags
        settings = {setting.name: setting for setting in best.flags.settings}
        print(f"| {target} | (backend) | {chosen['all2all_backend']} | | |")
        for name in ("enable_moe_dp_chunk", "moe_dp_chunk_tokens", "enable_activation_chunk", "output_proc_chunk"):
            if name not in chosen:
                continue
            setting = settings.get(name)
            if setting is None:
                print(f"| {target} | `{name}` | {chosen[name]} | the same | |")
                continue
            broken = f", violates {', '.join(setting.violates)}" if setting.violates else ""
            print(f"| {target} | `{name}` | {setting.chosen} | {setting.default} | {max(setting.loss, 0.0):.1%}{broken} |")
        pool = best.deployment.pool
        chunked = pool.model_copy(update={"chunks": pool.chunks.model_copy(update={"moe_dp_tokens": 256})})
        slow = predict(best.deployment.model_copy(update={"pools": {target: chunked}}))
        loss = 1 - slow.tokens_per_s_per_gpu / best.prediction.tokens_per_s_per_gpu
        print(f"| {target} | MoE DP chunking on at its default size | off | 256 | {loss:.1%} |")


def main() -> None:
    """All three tables."""
    with tempfile.TemporaryDirectory() as folder:
        prefill_sizes(Path(folder))
    print()
    ratios()
    print()
    chunks()


if __name__ == "__main__":
    main()
