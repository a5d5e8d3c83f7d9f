"""DeepSeek-R1 with vLLM on GB200: the headline, what each named choice is worth, and what a search finds; prints the README's tables.

usage: python study.py
"""

from __future__ import annotations

from typing import Any

from autotune.auditing.conflicts import conflicts
from autotune.documents.deployment import Deployment
from autotune.predicting.step import predict
from autotune.documents.prediction import Prediction, PrefillPrediction
from autotune.documents.problem import Problem
from autotune.searching.pools import search
from autotune.predicting.uncertainty import uncertainty
from autotune.validating.cases import CaseResult, published, run_cases

AnyPrediction = Prediction | PrefillPrediction
GROUPS = {"attention": ("attention",), "experts": ("experts",), "dispatch + combine": ("dispatch", "combine")}


def cases() -> dict[str, CaseResult]:
    """Published measurements by name."""
    return {result.case.id: result for file in published() for result in run_cases(file)}


def with_pool(base: Deployment, precision: dict[str, Any] | None = None, hardware: str | None = None, **pool: Any) -> Deployment:
    """A deployment with some of its pool, its precision or its hardware changed."""
    document = base.model_dump()
    document["pools"][base.phase] |= pool
    if precision:
        now = document["precision"]
        document["precision"] = ({"recipe": now} if isinstance(now, str) else now) | precision
    if hardware:
        document["hardware"] = hardware
    return Deployment.model_validate(document)


def share(prediction: AnyPrediction, names: tuple[str, ...]) -> float:
    return sum(line.share for line in prediction.operators if line.name in names)


def table(title: str, base: Deployment, rows: list[tuple[str, Deployment]]) -> None:
    """Each row against the base: throughput, shares, and what does not hold."""
    first = predict(base)
    latency = "TPOT" if base.phase == "decode" else "one prompt"
    print(f"\n**{title}**\n\n| change | tokens/s/GPU | against the plan | {latency} | {' | '.join(GROUPS)} | |")
    print(f"|---|---:|---:|---:|{'---:|' * len(GROUPS)}---|")
    for name, deployment in [("as published", base), *rows]:
        prediction = predict(deployment)
        change = prediction.tokens_per_s_per_gpu / first.tokens_per_s_per_gpu - 1
        shares = " | ".join(f"{share(prediction, names):.0%}" for names in GROUPS.values())
        over = (prediction.memory_total_bytes - prediction.memory_limit_bytes) / 1e9
        notes = "; ".join([*([f"{over:.0f} GB too much"] if over > 0 else []), *conflicts(deployment)])
        against = "" if deployment is base else f"{change:+.1%}"
        print(
            f"| {name} | {prediction.tokens_per_s_per_gpu:,.0f} | {against} | {prediction.latency_s * 1e3:,.1f} ms | {shares} | {notes} |"
        )


def headline(found: dict[str, CaseResult]) -> None:
    """Predicted beside published."""
    print("| run | predicted | 80 % interval | published | error |\n|---|---:|---:|---:|---:|")
    for name in ("vllm-gb200-decode-ep8", "vllm-gb200-prefill-ep2", "vllm-h200-decode-ep32"):
        result = found[name]
        bars = result.interval
        print(
            f"| {result.case.title} | {result.prediction.tokens_per_s_per_gpu:,.0f} | {bars.low:,.0f}-{bars.high:,.0f} | "
            f"{result.case.measured.tokens_per_s_per_gpu:,.0f} | {result.throughput_error:+.1%} |"
        )
    gb200, h200 = (found[name] for name in ("vllm-gb200-decode-ep8", "vllm-h200-decode-ep32"))
    predicted = gb200.prediction.tokens_per_s_per_gpu / h200.prediction.tokens_per_s_per_gpu
    measured = gb200.case.measured.tokens_per_s_per_gpu / h200.case.measured.tokens_per_s_per_gpu
    print(f"| GB200 over H200, decode | {predicted:.2f} x | | {measured:.2f} x | {predicted / measured - 1:+.1%} |")


def decode_rows(base: Deployment) -> list[tuple[str, Deployment]]:
    """What the document names for decode."""
    deepep = {"all2all_backend": "deepep_low_latency"}
    eplb = {"expert_balance": {"kind": "eplb"}, "redundant_experts": 32}
    api = {"api_servers": 1}
    return [
        ("FP8 dispatch (half the saving)", with_pool(base, {"dispatch": "fp8"})),
        ("BF16 dispatch", with_pool(base, {"dispatch": "bf16"})),
        ("DeepEP low latency for all-gather / reduce-scatter", with_pool(base, **deepep)),
        ("the same with dual-batch overlap", with_pool(base, **deepep, overlap="two_batch")),
        ("dual-batch overlap as published", with_pool(base, overlap="two_batch")),
        ("EPLB with 32 redundant experts", with_pool(base, **eplb)),
        ("FP8 experts", with_pool(base, {"recipe": "fp8-block"})),
        ("BF16 KV cache and attention", with_pool(base, {"kv_cache": "bf16", "attention_compute": "bf16"})),
        *[(f"{n} GPUs, 1,024 sequences each", with_pool(base, dp=n, ep=n)) for n in (4, 16, 32, 64)],
        ("MoE DP chunks of 256 tokens (DeepEP)", with_pool(base, **deepep, chunks={"moe_dp_tokens": 256})),
        ("MoE DP chunks of the batch (DeepEP)", with_pool(base, **deepep, chunks={"moe_dp_tokens": 1024})),
        ("activations in chunks of 8,192 rows", with_pool(base, chunks={"activation_rows": 8192})),
        ("outputs in chunks of 128, one API process", with_pool(base, **api, chunks={"output": 128})),
        ("outputs in chunks of 2,048, one API process", with_pool(base, **api, chunks={"output": 2048})),
    ]


def prefill_rows(base: Deployment) -> list[tuple[str, Deployment]]:
    """What the document names for prefill."""
    normal = {"all2all_backend": "deepep_normal"}
    return [
        ("4 GPUs, the same offload", with_pool(base, dp=4, ep=4)),
        ("4 GPUs, no offload", with_pool(base, dp=4, ep=4, offload=None)),
        ("8 GPUs, no offload", with_pool(base, dp=8, ep=8, offload=None)),
        ("no offload", with_pool(base, offload=None)),
        ("one layer in four offloaded", with_pool(base, offload={"group_size": 4})),
        ("read over the link without copying (v1, UVA)", with_pool(base, offload={"group_size": 2, "prefetch_step": 0})),
        ("two layers ahead", with_pool(base, offload={"group_size": 2, "prefetch_step": 2})),
        ("BF16 dispatch", with_pool(base, {"dispatch": "bf16"})),
        ("16,384 tokens a step", with_pool(base, max_batched_tokens=16384)),
        ("32,768 tokens a step", with_pool(base, max_batched_tokens=32768)),
        ("131,072 tokens a step", with_pool(base, max_batched_tokens=131072)),
        ("MoE DP chunks of 256 tokens", with_pool(base, chunks={"moe_dp_tokens": 256})),
        ("activations in chunks of 8,192 rows", with_pool(base, chunks={"activation_rows": 8192})),
        ("DeepEP normal", with_pool(base, **normal)),
        ("DeepEP normal with dual-batch overlap", with_pool(base, **normal, overlap="two_batch")),
    ]


def beyond(name: str, published_rate: float, problem: Problem) -> None:
    """The best plan of a search beside the published one."""
    best = search(problem).best
    bars = uncertainty(best.prediction).tokens_per_s_per_gpu
    pool = best.deployment.pool
    size = pool.batch_per_dp_rank or pool.max_batched_tokens
    print(
        f"| {name} | {best.label} | {size:,} | {best.prediction.tokens_per_s_per_gpu:,.0f} ({bars.low:,.0f}-{bars.high:,.0f}) | "
        f"{best.prediction.latency_s * 1e3:,.0f} ms | {best.prediction.tokens_per_s_per_gpu / published_rate - 1:+.0%} |"
    )


def main() -> None:
    """All tables."""
    found = cases()
    decode, prefill = (found[name].case.deployment for name in ("vllm-gb200-decode-ep8", "vllm-gb200-prefill-ep2"))
    headline(found)
    table("Decode, DP8 EP8, 1,024 sequences per GPU", decode, decode_rows(decode))
    table("Prefill, DP2 EP2, 65,536 tokens a step", prefill, prefill_rows(prefill))
    print("\n**What a search finds**\n\n| search | best plan | per rank | tokens/s/GPU | latency | against the predicted published plan |")
    print("|---|---|---:|---:|---:|---:|")
    workload = {"isl_tokens": 2000, "osl_tokens": 2000, "mean_context_tokens": 3000}
    rate = found["vllm-gb200-decode-ep8"].prediction.tokens_per_s_per_gpu
    shared: dict[str, Any] = {"hardware": "gb200-nvl72", "model": "deepseek-r1", "trials": 0}
    for gpus in (8, 72):
        for version in ("0.11", "0.33"):
            problem = Problem(**shared, gpus=gpus, engine_version=version, workload=workload, tpot_limit_s=0.105)
            beyond(f"decode, {gpus} GPUs, vLLM {version}, TPOT 105 ms", rate, problem)
    rate = found["vllm-gb200-prefill-ep2"].prediction.tokens_per_s_per_gpu
    for version in ("0.11", "0.33"):
        problem = Problem(**shared, gpus=8, engine_version=version, target="prefill", ttft_limit_s=3.0)
        beyond(f"prefill, 8 GPUs, vLLM {version}, a prompt within 3 s", rate, problem)


if __name__ == "__main__":
    main()
