"""Predicted against published time of every operator: steps that were taken apart, and kernels that were timed alone.

    python breakdowns.py > breakdowns.csv          (and then `python page.py`, which writes docs/operators.md)

`seen` names what the measured column has set: `fitted` where a family's coefficients were fitted to it, `passes`, `gaps`, `links` or
`overlap` where that coefficient was, nothing where no coefficient of this prediction has seen the row.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator

import numpy as np

from autotune.documents.deployment import Deployment, PrecisionChoice
from autotune.predicting.step import predict, resolve
from autotune.validating.cases import published
from cost_models.dispatch import DispatchCoefficients, payload_bytes, transfer_time_s, volumes
from cost_models.grouped_gemm import GroupedGemmCoefficients, grouped_gemm_time_s
from cost_models.machine import Machine
from cost_models.operators import gemm
from cost_models.specs.precision import DTYPES

Row = tuple[str, str, str, float, float, str]
"""Page and step, unit, operator, predicted, published, what the published number has set."""
ATTENTION_GEMMS = ("q_a_kv_a", "q_b", "kv_b", "o_proj", "absorb")
MOE_GEMMS = ("router", "shared_gate_up", "shared_down", "shared_stream")
TRAFFIC = ("elementwise", "launch_gaps")
CASES = {case.id: case for file in published() for case in file.cases}
HIDDEN, TOP_K, EXPERTS = 7168, 8, 256
BF16_CACHE = PrecisionChoice(recipe="fp8-block", kv_cache="bf16", attention_compute="bf16")
ROUTED = "experts and element-wise"
WAITING = "dispatch, combine, experts, element-wise (waiting included)"
COMPUTE_SHARE = 108 / 132
"""Of the processors, that DeepSeek's and SGLang's overlapped prefill leave to computation."""


def per_step(deployment: Deployment) -> dict[str, float]:
    """Time of each operator of a step [ms]."""
    return {line.name: line.time_s * 1e3 for line in predict(deployment).operators}


def per_layer(found: dict[str, float], traffic: tuple[str, ...] = TRAFFIC) -> dict[str, float]:
    """Published groups of DeepSeek's layer [ms]: 61 attention layers, 58 MoE layers."""
    return {
        "dispatch": found["dispatch"] / 58,
        "combine": found["combine"] / 58,
        "experts": found["experts"] / 58,
        "attention": found["attention"] / 61,
        "GEMMs": sum(found.get(n, 0.0) for n in ATTENTION_GEMMS) / 61 + sum(found.get(n, 0.0) for n in MOE_GEMMS) / 58,
        "element-wise and gaps": sum(found.get(n, 0.0) for n in traffic) / 61 + found["moe_elementwise"] / 58,
    }


def changed(name: str, **pool: object) -> Deployment:
    """A published case with some of its pool changed."""
    base = CASES[name].deployment
    return base.model_copy(update={"pools": {base.phase: base.pool.model_copy(update=pool)}})


def beside(step: str, unit: str, predicted: dict[str, float], measured: dict[str, float], seen: dict[str, str]) -> Iterator[Row]:
    for name, value in measured.items():
        yield step, unit, name, predicted[name], value, seen.get(name, "")


def h100_decode() -> Iterator[Row]:
    """LMSYS large-scale EP, decode on 72 H100: without overlap at 256 and 128 (printed doubled), with it at 2 x 128."""
    names = ("dispatch", "combine", "experts", "attention", "GEMMs", "element-wise and gaps")
    for batch, scale, values in ((256, 1.0, (0.394, 0.706, 0.232, 0.279, 0.179, 0.117)), (128, 0.5, (0.403, 0.735, 0.297, 0.303, 0.294, 0.185))):
        found = per_layer(per_step(changed("sglang-h100-decode-ep72-2k", overlap="none", batch_per_dp_rank=batch)))
        measured = {name: value * scale for name, value in zip(names, values, strict=True)}
        step = f"SGLang H100 decode EP72, no overlap, batch {batch}"
        yield from beside(step, "ms a layer", found, measured, {"element-wise and gaps": "passes, gaps"})
    found = per_layer(per_step(CASES["sglang-h100-decode-ep72-2k"].deployment))
    measured = {"experts": 0.297, "attention": 0.329, "GEMMs": 0.282, "element-wise and gaps": 0.179}
    yield from beside("SGLang H100 decode EP72, two batches of 128", "ms a layer", found, measured, {})


def h800_decode() -> Iterator[Row]:
    """DeepSeek's decode profile as LMSYS tabulates it: 128 sequences of two tokens in two batches; its exchange is hidden."""
    found = per_layer(per_step(CASES["deepseek-h800-profile-decode"].deployment))
    measured = {"experts": 0.241, "attention": 0.500, "GEMMs": 0.288, "element-wise and gaps": 0.125}
    yield from beside("DeepSeek H800 decode EP128, two batches", "ms a layer", found, measured, {"element-wise and gaps": "passes, gaps"})


def h100_prefill() -> Iterator[Row]:
    """LMSYS prefill on 32 H100, 16,384 tokens of 4,096, as served and with perfectly even experts.

    As served, the profiled rank is one with little to do in the experts (10.4 ms, 12.2 when even): it waits in dispatch and combine.
    """
    base = CASES["sglang-h100-prefill-ablation-16384-two-batch"].deployment
    document = base.model_dump()
    document["pools"]["prefill"]["expert_balance"] = {"kind": "perfect"}
    even = prefill_layer(Deployment.model_validate(document))
    measured = {"dispatch": 10.77, "combine": 14.92, ROUTED: 12.19 + 6.55, "attention": 6.42, "GEMMs": 9.47}
    yield from beside("SGLang H100 prefill EP32, even experts", "ms a layer", even, measured, {ROUTED: "passes"})
    served = prefill_layer(base)
    served[WAITING] = sum(served[name] for name in ("dispatch", "combine", ROUTED))
    measured = {WAITING: 16.67 + 19.97 + 10.44 + 6.1, "attention": 5.64, "GEMMs": 8.76}
    yield from beside("SGLang H100 prefill EP32, as served", "ms a layer", served, measured, {})


def h800_prefill() -> Iterator[Row]:
    """DeepSeek's prefill profile as LMSYS tabulates it."""
    found = prefill_layer(CASES["deepseek-h800-profile-prefill"].deployment)
    measured = {"dispatch": 9.4, "combine": 17.19, ROUTED: 12.32 + 5.06, "attention": 5.58, "GEMMs": 8.37}
    yield from beside("DeepSeek H800 prefill EP32", "ms a layer", found, measured, {ROUTED: "passes"})


def prefill_layer(deployment: Deployment) -> dict[str, float]:
    """Groups of a layer whose expert kernel holds the passes (permute, activation, quantise) that the pages count as other."""
    layer = on_fewer_processors(per_layer(per_step(deployment), ("elementwise",)))
    layer[ROUTED] = layer["experts"] + layer["element-wise and gaps"]
    return layer


def on_fewer_processors(layer: dict[str, float]) -> dict[str, float]:
    """As profiled in overlap: computation on 108 of 132 processors, the exchange a fifth slower (overlap.communication_slowdown)."""
    exchange = ("dispatch", "combine")
    return {name: value * (1.2 if name in exchange else 1 / COMPUTE_SHARE) for name, value in layer.items()}


def gb200_prefill() -> Iterator[Row]:
    """vLLM's trace of one rank of two, a step of 65,536 tokens on each."""
    found = per_step(CASES["vllm-gb200-prefill-ep2"].deployment)
    groups = {
        "experts (fc1, fc2, finalize, routing)": (("experts",), 508.6 + 228.8 + 94.6 + 21.7),
        "attention (FMHA, rope, concat, cache write)": (("attention",), 300.5 + 27.5 + 49.5 + 14.1),
        "all-gather": (("dispatch",), 92.8),
        "reduce-scatter": (("combine",), 290.5),
        "BF16 GEMMs": (("q_a_kv_a", "q_b", "kv_b", "router", "lm_head"), 354.5),
        "FP4 dense GEMMs with quantise": (("o_proj", "shared_gate_up", "shared_down", "ffn_gate_up", "ffn_down"), 233.4 + 60.8),
        "norms, adds, copies, silu, dispatch quantise": (("elementwise", "moe_elementwise"), 74 + 41 + 31.2 + 23.6 + 16.4 + 12.2 + 22.6),
    }
    groups["experts and both collectives (waiting included)"] = (("experts", "dispatch", "combine"), 853.7 + 92.8 + 290.5)
    seen = {"norms, adds, copies, silu, dispatch quantise": "passes"}
    for name, (operators, measured) in groups.items():
        yield "vLLM GB200 prefill EP2", "ms a step", name, sum(found.get(o, 0.0) for o in operators), measured, seen.get(name, "")


def gb200_kernels() -> Iterator[Row]:
    """vLLM's microbenchmarks on GB200: MLA prefill in BF16 (prompts of 2,048), NVFP4 experts (all 256 on one GPU)."""
    machine = resolve(CASES["vllm-gb200-prefill-ep2"].deployment).machine
    (kind,) = machine.model.attentions
    for tokens, measured in ((8192, 676), (16384, 1615), (32768, 3289), (65536, 6715)):
        shape = (np.array([tokens / 2048]), np.array([2048.0]), np.array([0.0]), np.ones(1))
        predicted = float(kind.prefill(machine, *shape)["attention"][0][0]) * 1e6
        yield "vLLM GB200 microbenchmark", "us", f"MLA prefill, {tokens:,} tokens", predicted, measured, ""
    for tokens, measured in ((8192, 2230), (16384, 4126), (32768, 7473), (65536, 14413), (131072, 28296)):
        predicted = experts_us(machine, "nvfp4", tokens * TOP_K, EXPERTS, tokens)
        yield "vLLM GB200 microbenchmark", "us", f"NVFP4 experts, {tokens:,} tokens", predicted, measured, ""


def experts_us(machine: Machine, variant: str, pairs: float, local: int, tokens: float) -> float:
    """One rank's routed experts of DeepSeek-V3, all of them active."""
    info = DTYPES[variant.partition(".")[0]]
    time_s = grouped_gemm_time_s(
        pairs, local, local, tokens, 1, hidden=HIDDEN, intermediate=2048, weight_bytes=info.weight_bytes,
        activation_bytes=info.activation_bytes, peak_flops_per_s=machine.hardware.gpu.peak_flops_per_s(info.compute),
        hbm_bytes_per_s=machine.hbm_bytes_per_s, coefficients=machine.coefficients("grouped_gemm", variant, GroupedGemmCoefficients),
    )  # fmt: skip
    return float(time_s) * 1e6


def deepep() -> Iterator[Row]:
    """DeepEP's README on H800: low latency (128 tokens), normal (4,096 tokens, given as GB/s of a bottleneck: not compared)."""
    machine = resolve(CASES["deepseek-h800-profile-decode"].deployment).machine
    for direction, element, rows in (
        ("dispatch", 1 + 4 / 128, {8: 77, 16: 118, 32: 155, 64: 173, 128: 192, 256: 194}),
        ("combine", 2.0, {8: 114, 16: 195, 32: 273, 64: 314, 128: 369, 256: 360}),
    ):
        for ranks, measured in rows.items():
            payload = payload_bytes(HIDDEN, element, TOP_K if direction == "dispatch" else 0)
            predicted = transfer_us(machine, f"deepep_low_latency.{direction}", 128, ranks, max(ranks, 256), payload)
            yield "DeepEP README, H800, low latency", "us", f"{direction}, EP{ranks}", predicted, measured, "links"


def transfer_us(machine: Machine, variant: str, tokens: float, ranks: int, experts: int, payload: float, copies: int = TOP_K) -> float:
    """One dispatch or combine under even routing without groups."""
    moved = volumes(
        variant.partition(".")[0], tokens, ranks, token_bytes=payload, top_k=copies, groups=1, top_k_groups=1, contiguous=False,
        links=machine.links,
    )  # fmt: skip
    c = machine.coefficients("dispatch", variant, DispatchCoefficients)
    return float(transfer_time_s(moved, ranks, experts, 1.0, links=machine.links, coefficients=c)) * 1e6


def one_sided() -> Iterator[Row]:
    """TensorRT-LLM's one-sided all-to-all on GB200, BF16, a router that sends to as many ranks as it can."""
    machine = resolve(CASES["sglang-gb200p2-decode-2k-fp4"].deployment).machine
    measured = {
        ("dispatch", 8): {64: 22.3, 256: 50.8, 1024: 166.3}, ("dispatch", 64): {64: 28.8, 256: 65.3, 1024: 209.4},
        ("combine", 8): {64: 34.1, 256: 53.0, 1024: 175.6}, ("combine", 64): {64: 37.7, 256: 62.9, 1024: 199.2},
    }  # fmt: skip
    for (direction, ranks), rows in measured.items():
        for tokens, value in rows.items():
            payload = payload_bytes(HIDDEN, 2.0, TOP_K if direction == "dispatch" else 0) * min(ranks, TOP_K)
            predicted = transfer_us(machine, f"nvlink_one_sided.{direction}", tokens, ranks, EXPERTS, payload, copies=1)
            yield "TensorRT-LLM blog 18, GB200, one-sided", "us", f"{direction}, EP{ranks}, {tokens:,} tokens", predicted, value, ""


def deepgemm() -> Iterator[Row]:
    """DeepGEMM's README on H800 (April 2025): dense GEMMs in blocks of FP8, the kernel alone."""
    machine = resolve(CASES["deepseek-h800-profile-decode"].deployment).machine
    tflops = {
        (2112, 7168): (206, 352, 1127), (24576, 1536): (289, 535, 1212), (7168, 16384): (336, 645, 1520),
        (4096, 7168): (287, 533, 1410), (7168, 2048): (295, 510, 1168),
    }  # fmt: skip
    quantise = machine.entry("dense_gemm", "fp8_block").coefficients["quantise_bytes"]
    for (n, k), rates in tflops.items():
        for m, rate in zip((64, 128, 4096), rates, strict=True):
            time_s = float(gemm(machine, "fp8_block", np.array([float(m)]), n, k)[0][0]) - quantise * m * k / machine.hbm_bytes_per_s
            yield "DeepGEMM README, H800", "us", f"{m:,} x {n:,} x {k:,}", time_s * 1e6, 2 * m * n * k / rate / 1e6, ""


def mla_cores() -> Iterator[Row]:
    """MLA decode in BF16 with 128 heads: InferSim's README on H20 and H800, FlashMLA's where it is bound by computing."""
    machines = {
        "H800": resolve(CASES["deepseek-h800-profile-decode"].deployment).machine,
        "H20": resolve(changed("ant-h20-decode-ep16-bs48").model_copy(update={"precision": BF16_CACHE})).machine,
    }
    for gpu, sequences, context, measured in (
        ("H20", 64, 4096, 689.6), ("H20", 128, 1024, 363.7), ("H800", 64, 4096, 155.2), ("H800", 128, 1024, 96.3),
    ):  # fmt: skip
        yield "InferSim README", "us", f"MLA decode on {gpu}, {sequences} x {context:,}", core_us(machines[gpu], sequences, context), measured, "fitted"
    flops = 2 * 128 * 8192 * 128 * (2 * 512 + 64)
    yield "FlashMLA README", "TFLOPS", "MLA decode on H800, bound by computing", flops / core_us(machines["H800"], 128, 8192) / 1e6, 660.0, ""


def core_us(machine: Machine, sequences: int, context: int) -> float:
    """The attention core of one layer, one query token each."""
    (kind,) = machine.model.attentions
    one = np.ones(1)
    return float(kind.decode(machine, np.array([float(sequences)]), one, one, float(context))["attention"][0][0]) * 1e6


def rates() -> Iterator[Row]:
    """SGLang GB200 part II: how much faster lower precision makes its kernels."""
    low, high = (changed(f"sglang-gb200p2-decode-2k-{name}", batch_per_dp_rank=768) for name in ("fp4", "fp8"))
    times = [per_step(deployment) for deployment in (low, high)]
    for name, measured in (("attention", 1.8), ("o_proj", 1.9)):  # "up to 1.9" of GEMMs of typical shapes
        yield "SGLang GB200 part II, low precision", "times faster", name, times[1][name] / times[0][name], measured, ""


STEPS = (h100_decode, h800_decode, h100_prefill, h800_prefill, gb200_prefill, gb200_kernels, deepep, one_sided, deepgemm, mla_cores, rates)


def main() -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["step", "unit", "operator", "predicted", "published", "error", "seen"])
    for rows in STEPS:
        for step, unit, name, predicted, measured, seen in rows():
            out.writerow([step, unit, name, f"{predicted:.4g}", f"{measured:.4g}", f"{predicted / measured - 1:+.3f}", seen])


if __name__ == "__main__":
    main()
