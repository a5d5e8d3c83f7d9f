"""DeepSeek-R1 with SGLang on GB200 (part II): both precisions, batch, offload, overlap, GPU counts; prints the README's tables.

usage: python study.py
"""

from __future__ import annotations

from typing import Any

from autotune.auditing.commands import read_command
from autotune.auditing.conflicts import conflicts
from autotune.auditing.capacity import room
from autotune.documents.deployment import Deployment
from autotune.predicting.step import predict
from autotune.documents.prediction import Prediction, PrefillPrediction
from autotune.documents.problem import Problem
from autotune.searching.pools import search
from autotune.predicting.uncertainty import uncertainty
from autotune.validating.cases import CaseResult, published, run_cases

AnyPrediction = Prediction | PrefillPrediction
H100_DECODE, H100_PREFILL = 2785.0, 6818.0
"""tokens/s/GPU of lmsys.org 2025-05-05, to which the document compares."""
COMMAND = """
export SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=1024
python3 -m sglang.launch_server --disaggregation-mode decode --max-running-requests 49152 --context-length 2176 \\
  --kv-cache-dtype fp8_e4m3 --enable-single-batch-overlap --model-path nvidia/DeepSeek-R1-0528-FP4 --tp-size 48 --dp-size 48 \\
  --ep-size 48 --enable-dp-attention --mem-fraction-static 0.83 --moe-a2a-backend deepep --deepep-mode low_latency \\
  --ep-dispatch-algorithm static --ep-num-redundant-experts 32 --moe-dense-tp-size 1 --enable-dp-lm-head \\
  --quantization modelopt_fp4 --moe-runner-backend flashinfer_cutedsl
"""
"""Decode options of the published instructions (sgl-project/sglang issue 10903) that a cost depends on."""


def cases() -> dict[str, CaseResult]:
    """Published measurements by name."""
    return {result.case.id: result for file in published() for result in run_cases(file)}


def with_pool(base: Deployment, precision: dict[str, Any] | None = None, **changes: Any) -> Deployment:
    """A deployment with some of its pool, its precision or its workload changed."""
    document = base.model_dump()
    document["workload"] |= changes.pop("workload", {})
    document["pools"][base.phase] |= changes
    if precision:
        now = document["precision"]
        document["precision"] = ({"recipe": now} if isinstance(now, str) else now) | precision
    return Deployment.model_validate(document)


def rows(title: str, base: Deployment, changes: list[tuple[str, Deployment]]) -> None:
    """Each change against the base."""
    first = predict(base)
    latency = "TPOT" if base.phase == "decode" else "one prompt"
    print(f"\n**{title}**\n\n| change | tokens/s/GPU | against the plan | {latency} | bottleneck | |\n|---|---:|---:|---:|---|---|")
    for name, deployment in [("as published", base), *changes]:
        prediction = predict(deployment)
        change = prediction.tokens_per_s_per_gpu / first.tokens_per_s_per_gpu - 1
        over = (prediction.memory_total_bytes - prediction.memory_limit_bytes) / 1e9
        known = conflicts(base) if deployment is not base else ()
        notes = "; ".join([*([f"{over:.0f} GB too much"] if over > 0 else []), *(c for c in conflicts(deployment) if c not in known)])
        against = "" if deployment is base else f"{change:+.1%}"
        print(
            f"| {name} | {prediction.tokens_per_s_per_gpu:,.0f} | {against} | {prediction.latency_s * 1e3:,.1f} ms | "
            f"{prediction.bottleneck} | {notes} |"
        )


def headline(found: dict[str, CaseResult]) -> None:
    """Predicted beside published, and the ratios that the document gives."""
    print("| run | predicted | 80 % interval | published | error |\n|---|---:|---:|---:|---:|")
    names = ("sglang-gb200p2-decode-2k-fp4", "sglang-gb200p2-decode-2k-fp8", "sglang-gb200p2-prefill-fp4", "sglang-gb200p2-prefill-fp8")
    for name in names:
        result = found[name]
        bars = result.interval
        print(
            f"| {result.case.title} | {result.prediction.tokens_per_s_per_gpu:,.0f} | {bars.low:,.0f}-{bars.high:,.0f} | "
            f"{result.case.measured.tokens_per_s_per_gpu:,.0f} | {result.throughput_error:+.1%} |"
        )
    decode, prefill = (found[name] for name in ("sglang-gb200p2-decode-2k-fp4", "sglang-gb200p2-prefill-fp4"))
    h100 = {name: found[name].prediction.tokens_per_s_per_gpu for name in ("sglang-h100-decode-ep72-2k", "sglang-h100-prefill-16k-2k")}
    for name, result, here, there in (
        ("decode", decode, h100["sglang-h100-decode-ep72-2k"], H100_DECODE),
        ("prefill", prefill, h100["sglang-h100-prefill-16k-2k"], H100_PREFILL),
    ):
        measured = result.case.measured.tokens_per_s_per_gpu / there
        computed = result.prediction.tokens_per_s_per_gpu / here
        print(f"| GB200 over H100, {name} | {computed:.1f} x | | {measured:.1f} x | {computed / measured - 1:+.1%} |")


def kernels(nvfp4: Deployment, fp8: Deployment) -> None:
    """Operators of both precisions at the same batch."""
    low, high = (predict(with_pool(base, batch_per_dp_rank=768)) for base in (nvfp4, fp8))
    times = [{line.name: line.time_s for line in prediction.operators} for prediction in (low, high)]
    print("\n**Lower precision, operator by operator, 768 sequences**\n\n| operator | FP8 and BF16 attention | NVFP4 and FP8 attention | faster |")
    print("|---|---:|---:|---:|")
    for name in ("attention", "experts", "o_proj", "dispatch", "combine"):
        print(f"| {name} | {times[1][name] * 1e3:.2f} ms | {times[0][name] * 1e3:.2f} ms | {times[1][name] / times[0][name]:.2f} x |")


def spare(ranks: int) -> int:
    """At least the published 32 redundant experts, as many as divide."""
    return next(extra for extra in range(32, 256) if (256 + extra) % ranks == 0)


def decode_rows(base: Deployment) -> list[tuple[str, Deployment]]:
    """Batch, overlap, balance, ranks."""
    return [
        ("768 sequences", with_pool(base, batch_per_dp_rank=768)),
        ("768 sequences, 4,000-token prompts", with_pool(base, batch_per_dp_rank=768, workload={"isl_tokens": 4000, "mean_context_tokens": 4050})),
        ("1,408 sequences, 4,000-token prompts", with_pool(base, workload={"isl_tokens": 4000, "mean_context_tokens": 4050})),
        ("no overlap", with_pool(base, overlap="none")),
        ("two-batch overlap", with_pool(base, overlap="two_batch")),
        ("no static placement from recorded loads", with_pool(base, expert_balance={"kind": "none"})),
        ("perfectly even experts", with_pool(base, expert_balance={"kind": "perfect"})),
        ("FP8 dispatch", with_pool(base, {"dispatch": "fp8"})),
        ("BF16 KV cache and attention", with_pool(base, {"kv_cache": "bf16", "attention_compute": "bf16"})),
        *[(f"{n} ranks", with_pool(base, dp=n, ep=n, redundant_experts=spare(n))) for n in (8, 16, 24, 32, 64, 72)],
    ]


def batches(base: Deployment) -> None:
    """Sequences that fill the KV cache, against those published."""
    print("\n| prompt | sequences per rank that fit | published |\n|---|---:|---:|")
    for isl, stated in ((2000, 1408), (4000, 768)):
        deployment = with_pool(base, workload={"isl_tokens": isl, "mean_context_tokens": isl + 50})
        print(f"| {isl:,} tokens | {room(predict(deployment)):,} | {stated:,} |")


def prefill_rows(nvfp4: Deployment, fp8: Deployment) -> list[tuple[str, Deployment]]:
    """Ranks and offload, both precisions."""
    return [
        ("without offload", with_pool(nvfp4, offload=None)),
        ("4 ranks, offload", with_pool(nvfp4, dp=4, ep=4)),
        ("4 ranks, no offload", with_pool(nvfp4, dp=4, ep=4, offload=None)),
        ("8 ranks, no offload", with_pool(nvfp4, dp=8, ep=8, offload=None)),
        ("DeepEP normal", with_pool(nvfp4, all2all_backend="deepep_normal")),
        ("DeepEP normal, two-batch overlap", with_pool(nvfp4, all2all_backend="deepep_normal", overlap="two_batch")),
        ("BF16 attention", with_pool(nvfp4, {"prefill_attention": "bf16"})),
        ("FP8 experts on 4 ranks, BF16 attention (the other published run)", fp8),
        ("the same on 2 ranks, three layers in four offloaded", with_pool(fp8, dp=2, ep=2, offload={"group_size": 4, "num_in_group": 3})),
        ("the same on 8 ranks, no offload", with_pool(fp8, dp=8, ep=8, offload=None)),
    ]


def beyond(name: str, rate: float, problem: Problem) -> None:
    """The best plan of a search beside the published one."""
    best = search(problem).best
    bars = uncertainty(best.prediction).tokens_per_s_per_gpu
    size = best.deployment.pool.batch_per_dp_rank or best.deployment.pool.max_batched_tokens
    print(
        f"| {name} | {best.label} | {size:,} | {best.prediction.tokens_per_s_per_gpu:,.0f} ({bars.low:,.0f}-{bars.high:,.0f}) | "
        f"{best.prediction.latency_s * 1e3:,.0f} ms | {best.prediction.tokens_per_s_per_gpu / rate - 1:+.0%} |"
    )


def command() -> None:
    """The published command as it is read today."""
    found = read_command(COMMAND, hardware="gb200-nvl72", isl_tokens=2000, osl_tokens=100)
    prediction = predict(found.deployment)
    pool = found.deployment.pool
    print(
        f"\nThe published decode command, read by `autotune check`: {pool.layout.label()}, {pool.batch_per_dp_rank:,} sequences per rank, "
        f"{pool.overlap} overlap, {pool.redundant_experts} redundant experts: {prediction.tokens_per_s_per_gpu:,.0f} tokens/s/GPU, "
        f"TPOT {prediction.latency_s * 1e3:,.0f} ms without recorded loads behind its placement."
    )


def main() -> None:
    """All tables."""
    found = cases()
    nvfp4, fp8, prefill, prefill_fp8 = (
        found[name].case.deployment
        for name in ("sglang-gb200p2-decode-2k-fp4", "sglang-gb200p2-decode-2k-fp8", "sglang-gb200p2-prefill-fp4", "sglang-gb200p2-prefill-fp8")
    )
    headline(found)
    kernels(nvfp4, fp8)
    rows("Decode, DP48 EP48, NVFP4, 1,408 sequences per rank, 2,000-token prompts", nvfp4, decode_rows(nvfp4))
    batches(nvfp4)
    rows("Prefill, DP2 EP2, NVFP4, 32,768 tokens a step", prefill, prefill_rows(prefill, prefill_fp8))
    command()
    print("\n**What a search finds**\n\n| search | best plan | per rank | tokens/s/GPU | latency | against the predicted published plan |")
    print("|---|---|---:|---:|---:|---:|")
    workload = nvfp4.workload.model_dump()
    shared: dict[str, Any] = {"hardware": "gb200-nvl72", "model": "deepseek-r1", "engine": "sglang", "trials": 0}
    rate = found["sglang-gb200p2-decode-2k-fp4"].prediction.tokens_per_s_per_gpu
    for gpus in (8, 48, 72):
        beyond(f"decode, {gpus} GPUs, TPOT 110 ms", rate, Problem(**shared, gpus=gpus, workload=workload, tpot_limit_s=0.11))
    rate = found["sglang-gb200p2-prefill-fp4"].prediction.tokens_per_s_per_gpu
    beyond("prefill, 8 GPUs, a prompt within 3 s", rate, Problem(**shared, gpus=8, target="prefill", ttft_limit_s=3.0))


if __name__ == "__main__":
    main()
