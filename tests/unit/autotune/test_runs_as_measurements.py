"""Profiler traces and benchmark results in, entries out: sums by hand, refusals, round trips."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from autotune.calibrating.benchmarks import fit_host, host_points, read_benchmark
from autotune.calibrating.inputs import read_inputs
from autotune.calibrating.rescaling import TracedStep, rescale, scaled_coefficients, traced_steps
from autotune.calibrating.traces import (
    Composition,
    FamilyTimes,
    KernelRules,
    TracedKernel,
    family_times,
    load_rules,
    read_kernel_trace,
)
from autotune.documents.deployment import Deployment
from autotune.errors import ProblemError
from autotune.predicting.step import predict
from cost_models.attention.decode import DecodeAttentionCoefficients, mla_decode_time_s
from cost_models.catalog import calibration_for
from cost_models.collectives import AllReduceCoefficients, all_reduce_time_s
from cost_models.dense_gemm import DenseGemmCoefficients, dense_gemm_time_s
from cost_models.dispatch import DispatchCoefficients, transfer_time_s, volumes
from cost_models.elementwise import elementwise_time_s
from cost_models.grouped_gemm import GroupedGemmCoefficients, grouped_gemm_time_s
from cost_models.links import Links

SAMPLE = Path(__file__).parents[2] / "fixtures" / "traces" / "h200_torch_2.11.pt.trace.json.gz"
"""Two toy MoE layers, three steps, recorded with torch.profiler 2.11 on an H200 (kernels and step marks only)."""


def deployment(**pool) -> Deployment:
    return Deployment.model_validate(
        {
            "hardware": "hgx-h200",
            "model": "deepseek-v3",
            "precision": "fp8-block",
            "engine": {"name": "sglang"},
            "workload": {"isl_tokens": 2000, "osl_tokens": 500},
            "pools": {"decode": {"dp": 8, "ep": 8, "all2all_backend": "deepep_low_latency", "batch_per_dp_rank": 64, **pool}},
        }
    )


def test_a_real_profiler_trace_is_summed_per_step_and_family():
    times = read_kernel_trace(SAMPLE)
    assert times.steps == 3
    assert times.busy_s < times.wall_s
    assert sum(times.total_s.values()) == pytest.approx(times.busy_s, rel=0.02)  # one stream: kernels do not overlap
    found = family_times(times, load_rules(), None)
    # the two grouped GEMMs and the cuDNN attention are most of these layers; every kernel is known
    assert found.per_step_s["experts"] > found.per_step_s["attention"] > found.per_step_s["elementwise"] > 0
    assert found.per_step_s["experts"] == pytest.approx(1.65e-3, rel=0.02)
    assert found.unknown == ()
    assert found.idle_s == pytest.approx((times.wall_s - times.busy_s) / 3)


def test_unknown_kernels_are_listed_with_their_share():
    rules = KernelRules.model_validate({"rules": [{"pattern": "cutlass", "family": "experts"}]})
    found = family_times(read_kernel_trace(SAMPLE), rules, 3)
    assert set(found.per_step_s) == {"experts"}
    assert sum(share for _, _, share in found.unknown) == pytest.approx(1 - 4.90 / 8.66, abs=0.03)
    assert found.unknown[0][2] >= found.unknown[-1][2]


NSYS = """Processing [run.sqlite] with [cuda_gpu_kern_sum.py]...

 Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
70.0,"7,000,000",70,100000.0,100000,1,1,0.0,"flash_fwd_mla_kernel<...>"
30.0,3000000,30,100000.0,100000,1,1,0.0,"sm90_xmma_gemm_bf16"
"""


def test_an_nsight_summary_needs_its_steps(tmp_path):
    path = tmp_path / "kern.csv"
    path.write_text(NSYS)
    times = read_kernel_trace(path)
    assert times.total_s[TracedKernel("flash_fwd_mla_kernel<...>")] == pytest.approx(7e-3)
    with pytest.raises(ProblemError, match="--steps"):
        family_times(times, load_rules(), None)
    found = family_times(times, load_rules(), 10)
    assert found.per_step_s == pytest.approx({"attention": 7e-4, "dense_gemm": 3e-4})
    assert found.idle_s is None


def test_an_nsight_export_counts_one_gpu_and_its_gaps(tmp_path):
    path = tmp_path / "run.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
    connection.execute(
        "CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, end INTEGER, deviceId INTEGER, demangledName INTEGER)"
    )
    connection.execute("INSERT INTO StringIds VALUES (1, 'nvjet_gemm')")
    rows = [(0, 1000, 0, 1), (500, 1500, 0, 1), (2500, 3000, 0, 1), (0, 9999, 1, 1)]
    connection.executemany("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    times = read_kernel_trace(path)
    assert times.total_s[TracedKernel("nvjet_gemm")] == pytest.approx(1e-6)  # the first, with nothing before it
    assert times.total_s[TracedKernel("nvjet_gemm", "nvjet_gemm")] == pytest.approx(1.5e-6)
    assert (times.wall_s, times.busy_s) == (pytest.approx(3e-6), pytest.approx(2e-6))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", b'{"traceEvents": [', "cannot be read as a profiler trace"),
        ("t.json.gz", gzip.compress(b'{"traceEvents": []}', mtime=0)[:20], "cannot be read as a profiler trace"),
        ("t.json", b'{"traceEvents": []}', "no GPU kernel"),
        ("t.json", b'{"schemaVersion": 1}', "no traceEvents"),
        ("t.sqlite", b"not a database at all, but long enough to look at", "cannot be read as an Nsight"),
        ("t.csv", b"Total Time (ns),Instances,Name\n12,", "line 2 is not a kernel row"),
    ],
)
def test_broken_traces_are_one_message(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ProblemError, match=message):
        read_kernel_trace(path)


def test_a_trace_without_a_known_kernel_is_refused():
    rules = KernelRules.model_validate({"rules": [{"pattern": "no such kernel", "family": "experts"}]})
    with pytest.raises(ProblemError, match=r"none of .* kernels is known"):
        family_times(read_kernel_trace(SAMPLE), rules, 3)


VLLM_SAMPLE = SAMPLE.with_name("h100_vllm_0.24.pt.trace.json.gz")
"""Two decode steps of eight sequences, Qwen3-30B-A3B in BF16 on one H100 (kernels and step annotations only; recorded by us)."""


def qwen(**changes) -> Deployment:
    return Deployment.model_validate(
        {
            "hardware": "hgx-h100", "model": "qwen3-30b-a3b", "precision": "bf16", "engine": {"name": "vllm", "version": "0.24"},
            "phase": "serve", "load": {"concurrency": 8},
            "workload": {"isl_tokens": 16, "osl_tokens": 160, "popularity_sigma": 0},
            "pools": {"serve": {"max_batched_tokens": 8192, "batch_per_dp_rank": 256, "memory_fraction": 0.9}},
            **changes,
        }
    )  # fmt: skip


def test_vllms_own_annotations_say_what_each_step_held():
    times = read_kernel_trace(VLLM_SAMPLE)
    assert set(times.by_step) == {Composition(0, 0, 8, 8)}
    steps = times.by_step[Composition(0, 0, 8, 8)]
    assert steps.steps == 2
    found = family_times(steps, load_rules(), None)
    # 48 layers: experts as vLLM runs them are two GEMMs, their order (2), activation and sum: 6 kernels
    assert found.launches["experts"] == 2 * 48 * 6
    assert found.per_step_s["experts"] == pytest.approx(8.5e-3, rel=0.03)
    # six expert-weight matrices' bytes: 50.5 of 128 experts drawn by 64 choices, 9.44 MB each, at 3.35 TB/s
    assert found.per_step_s["experts"] > 48 * 128 * (1 - (1 - 1 / 128) ** 64) * 3 * 2048 * 768 * 2 / 3.35e12
    assert found.idle_s < 0.1 * sum(found.per_step_s.values())  # between kernels of a step, not between steps


def test_a_vllm_trace_is_explained_by_the_service_that_ran():
    (step,) = traced_steps(qwen(), read_kernel_trace(VLLM_SAMPLE), load_rules(), None)
    assert step.label == "8 sequences"
    results = {item.family: item for item in rescale([step], calibration_for("H100", "vllm"), "test")}
    assert results["experts"].ratio == pytest.approx(1, abs=0.1)
    assert results["dense_gemm"].ratio == pytest.approx(1, abs=0.1)
    ((family, variant, entry),) = results["elementwise"].entries
    assert (family, variant) == ("host", "default")
    assert 1e-6 < entry.coefficients["small_kernel_s"] < 5e-6
    rest = {name: value for name, value in entry.coefficients.items() if name != "small_kernel_s"}
    before = calibration_for("H100", "vllm").entry("host", "default").coefficients
    assert rest == {name: before[name] for name in rest}


def test_steps_that_the_deployment_did_not_run_are_named():
    speculative = qwen(phase="decode", load=None, model="deepseek-v3", precision="fp8-block", hardware="hgx-h200",
                       workload={"isl_tokens": 16, "osl_tokens": 160, "mtp_acceptance": [0.8]},
                       pools={"decode": {"tp": 8, "ep": 8, "batch_per_dp_rank": 8, "draft_tokens": 1}})  # fmt: skip
    with pytest.raises(ProblemError, match=r"it holds 0 prompts \(0 tokens\) and 8 sequences \(8\).*2 tokens per"):
        traced_steps(speculative, read_kernel_trace(VLLM_SAMPLE), load_rules(), None)


def traced(path: Path, steps: list[tuple[str, list[tuple[str, float, float]]]]) -> Path:
    """A trace file of annotated steps: (annotation, [(kernel, start, duration)])."""
    events = []
    for name, kernels in steps:
        start, end = kernels[0][1], kernels[-1][1] + kernels[-1][2]
        events.append({"name": name, "cat": "gpu_user_annotation", "ts": start, "dur": end - start, "pid": 0})
        events += [{"name": k, "cat": "kernel", "ts": at, "dur": took, "pid": 0} for k, at, took in kernels]
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def test_steps_are_kept_apart_and_an_activation_belongs_to_the_experts_before_it(tmp_path):
    moe = [("fused_moe_kernel", 0, 10), ("act_and_mul", 11, 2), ("fused_moe_kernel", 13, 8)]
    dense = [("nvjet_gemm", 100, 10), ("act_and_mul", 110, 2), ("nvjet_gemm", 112, 8)]
    both = traced(
        tmp_path / "t.json", [("execute_context_0(0)_generation_4(4)", moe), ("execute_context_1(64)_generation_0(0)", dense)]
    )
    times = read_kernel_trace(both)
    decode, prompt = (
        family_times(times.by_step[held], load_rules(), None) for held in (Composition(0, 0, 4, 4), Composition(1, 64, 0, 0))
    )
    assert decode.per_step_s == pytest.approx({"experts": 20e-6})  # 10 + 2 + 8
    assert decode.idle_s == pytest.approx(1e-6)  # 10 to 11; the wait from 21 to 100 is no step's
    assert prompt.per_step_s == pytest.approx({"dense_gemm": 18e-6, "elementwise": 2e-6})


def test_a_step_that_is_marked_on_two_streams_counts_once(tmp_path):
    """Shared experts run on a stream of their own, where vLLM marks the step again, inside the first mark."""
    name = "execute_context_0(0)_generation_4(4)"
    kernel = {"cat": "kernel", "pid": 0}
    events = []
    for start in (0, 100):
        events += [
            {"name": name, "cat": "gpu_user_annotation", "ts": start, "dur": 50, "pid": 0, "tid": 7},
            {"name": name, "cat": "gpu_user_annotation", "ts": start + 5, "dur": 20, "pid": 0, "tid": 9},
            {"name": "fused_moe_kernel", "ts": start, "dur": 30, **kernel},
            {"name": "nvjet_gemm", "ts": start + 5, "dur": 8, **kernel},
        ]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"traceEvents": events}))
    held = read_kernel_trace(path).by_step[Composition(0, 0, 4, 4)]
    assert held.steps == 2
    assert family_times(held, load_rules(), None).per_step_s == pytest.approx({"experts": 30e-6, "dense_gemm": 8e-6})


@pytest.mark.parametrize(
    "kernel",
    ["_matmul_ogs_NNT_bf16xbf16xmxfp4_16x256x128x1_swiglu", "void marlin_moe_wna16::Marlin<1125899906909960l>", "pack_bitmatrix",
     "_combined_routing_compute", "_reduce_grouped"],
)  # fmt: skip
def test_experts_of_gpt_oss_and_of_int4_checkpoints_are_known_by_name(kernel):
    """As vLLM 0.24 launches them on an H100."""
    assert load_rules().family(kernel) == "experts"


def measured_as(ratios: dict[str, float], ran: Deployment) -> FamilyTimes:
    """A trace whose families took the given multiples of what is predicted."""
    prediction = predict(ran)
    kinds = {"dense_gemm": "dense_gemm", "mla_absorb": "dense_gemm", "mla_decode": "attention", "grouped_gemm": "experts"}
    per_step: dict[str, float] = {}
    for line in prediction.operators:
        family = line.family.partition(".")[0]
        if family in kinds:
            per_step[kinds[family]] = per_step.get(kinds[family], 0.0) + line.time_s
    return FamilyTimes({k: v * ratios.get(k, 1.0) for k, v in per_step.items()}, {}, None, (), "trace sha256 0")


def test_rescaling_makes_the_prediction_equal_the_trace():
    ran = deployment()
    base = calibration_for("H200", "sglang")
    results = rescale([TracedStep("decode", measured_as({"attention": 1.3, "experts": 1.1}, ran), predict(ran))], base, "test")
    ratios = {item.family: item.ratio for item in results}
    assert ratios == pytest.approx({"attention": 1.3, "dense_gemm": 1.0, "experts": 1.1})
    recalibrated = base.with_entries(entry for item in results for entry in item.entries)
    traced = TracedStep("decode", measured_as({"attention": 1.3, "experts": 1.1}, ran), _predicted_with(ran, recalibrated))
    again = rescale([traced], recalibrated, "test")
    assert {item.family: item.ratio for item in again} == pytest.approx({"attention": 1, "dense_gemm": 1, "experts": 1}, rel=1e-3)


def _predicted_with(ran, calibration):
    import dataclasses

    from autotune.predicting.step import predict_decode, resolve

    resolved = resolve(ran)
    return predict_decode(dataclasses.replace(resolved, machine=dataclasses.replace(resolved.machine, calibration=calibration)))


def test_faster_than_the_roofline_is_refused():
    ran = deployment()
    with pytest.raises(ProblemError, match="below its roofline"):
        rescale(
            [TracedStep("decode", measured_as({"experts": 0.2}, ran), predict(ran))], calibration_for("H200", "sglang"), "test"
        )


H200 = {"peak_flops_per_s": 989e12, "hbm_bytes_per_s": 4.8e12}


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.7])
def test_scaled_coefficients_scale_every_shape(ratio):
    c = calibration_for("H200", "sglang")

    def both(family, variant, kind, time):
        entry = c.entry(family, variant)
        return time(kind(**entry.coefficients)), time(kind(**scaled_coefficients(entry.coefficients, ratio)))

    m = np.array([1, 64, 4096])
    links = Links(8, 450e9, 50e9)
    moved = volumes("deepep_low_latency", 128, np.array([8, 16, 64]), token_bytes=7400, top_k=8, groups=1, top_k_groups=1,
                    contiguous=False, links=links)  # fmt: skip
    gemm = {"weight_bytes": 1, "activation_bytes": 1, "processors": 132, **H200}
    experts = {"hidden": 7168, "intermediate": 2048, "weight_bytes": 1, "activation_bytes": 1, **H200}
    mla = {"latent_dim": 512, "rope_dim": 64, "kv_bytes": 2, "processors": 132, **H200}
    kinds = {
        ("dense_gemm", "fp8_block"): (DenseGemmCoefficients, lambda k: dense_gemm_time_s(m, 4096, 7168, coefficients=k, **gemm)),
        ("mla_decode", "bf16"): (DecodeAttentionCoefficients, lambda k: mla_decode_time_s(m, 3000, 32, 1, coefficients=k, **mla)),
        ("grouped_gemm", "fp8_block"): (
            GroupedGemmCoefficients,
            lambda k: grouped_gemm_time_s(8 * m, 32, 20, m, 1, coefficients=k, **experts),
        ),
        ("all_reduce", "default"): (
            AllReduceCoefficients,
            lambda k: all_reduce_time_s(m * 1e4, 8, links=links, coefficients=k),
        ),
        ("dispatch", "deepep_low_latency.dispatch"): (
            DispatchCoefficients,
            lambda k: transfer_time_s(moved, np.array([8, 16, 64]), 288, 1.2, links=links, coefficients=k),
        ),
    }
    cases = [both(*name, *parts) for name, parts in kinds.items()]
    for before, after in cases:
        assert after == pytest.approx(before * ratio, rel=1e-3)
    traffic = c.entry("elementwise", "default").coefficients
    scaled = scaled_coefficients(traffic, ratio)
    before, after = (
        elementwise_time_s(64, 100, hidden=7168, hidden_passes=k["hidden_passes"], query_passes=k["query_passes"],
                           memory_efficiency=k["memory_efficiency"], hbm_bytes_per_s=4.8e12)
        for k in (traffic, scaled)
    )  # fmt: skip
    assert after == pytest.approx(before * ratio, rel=1e-3)


VLLM_SERVE = {
    "date": "20261121-101112", "backend": "vllm", "model_id": "deepseek-ai/DeepSeek-V3", "num_prompts": 5120,
    "request_rate": "inf", "max_concurrency": 512, "duration": 100.0, "completed": 5120, "total_input_tokens": 5120 * 2000,
    "total_output_tokens": 5120 * 500, "request_throughput": 51.2, "output_throughput": 25600.0,
    "mean_ttft_ms": 900.0, "mean_tpot_ms": 20.0, "median_tpot_ms": 19.5, "median_itl_ms": 19.0,
}  # fmt: skip


def results_file(path: Path, deployment_: Deployment, host_s: float, per_sequence_s: float, batches=(16, 64, 128)) -> Path:
    """vllm bench serve lines (--append-result) whose steps are the predicted GPU time plus a known host time."""
    lines = []
    for batch in batches:
        pool = deployment_.pool.model_copy(update={"batch_per_dp_rank": batch})
        prediction = predict(deployment_.model_copy(update={"pools": {"decode": pool}}))
        host = sum(o.time_s for o in prediction.operators if o.name == "host")
        step = prediction.step_s - host + host_s + per_sequence_s * batch
        rate = batch * deployment_.pool.dp / step
        lines.append({**VLLM_SERVE, "max_concurrency": batch * 8, "output_throughput": rate,
                      "mean_tpot_ms": step * 1e3, "median_itl_ms": step * 1e3})  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_host_time_is_recovered_from_benchmark_results(tmp_path):
    ran = deployment()
    base = calibration_for("H200", "sglang").entry("host", "default")
    sync = base.coefficients["data_parallel_sync_s"]
    points, other = read_benchmark(results_file(tmp_path / "r.jsonl", ran, 3e-3 + sync, 2e-5))
    assert (len(points), other) == (3, 0)
    assert [round(p.sequences) for p in points] == [128, 512, 1024]
    entry, warnings = fit_host(host_points(points, ran), base, dp=8)
    assert warnings == []
    assert entry.coefficients["step_s"] == pytest.approx(3e-3, rel=0.02)
    assert entry.coefficients["per_sequence_s"] == pytest.approx(2e-5, rel=0.02)
    assert entry.coefficients["output_s"] == base.coefficients["output_s"]
    assert entry.box == {"sequences": (16, 128)}


def test_steps_shorter_than_the_gpu_time_are_named_not_fitted(tmp_path):
    ran = deployment()
    base = calibration_for("H200", "sglang").entry("host", "default")
    points, _ = read_benchmark(results_file(tmp_path / "r.jsonl", ran, -5e-3, 0.0))
    with pytest.raises(ProblemError, match="shorter than the predicted GPU time"):
        fit_host(host_points(points, ran), base, dp=8)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (VLLM_SERVE, ("vllm bench serve", 512, 2000, 500, 19e-3)),
        # SGLang gives the concurrency it reached and an accept length
        ({**VLLM_SERVE, "sharegpt_output_len": None, "random_input_len": 2000, "concurrency": 400.0, "accept_length": 1.8,
          "max_concurrency": 512}, ("sglang bench_serving", 400, 2000, 500, 19e-3)),
        ({"run_name": "default", "batch_size": 32, "input_len": 1024, "output_len": 16, "prefill_latency": 0.4,
          "prefill_throughput": 8e4, "median_decode_latency": 0.021, "median_decode_throughput": 1500.0,
          "total_latency": 0.7, "overall_throughput": 5e4}, ("sglang bench_one_batch", 32, 1024, 16, 0.021)),
        ({"avg_latency": 4.0, "latencies": [4.0], "percentiles": {"50": 4.0}, "batch_size": 8, "input_len": 32,
          "output_len": 128}, ("vllm bench latency", 8, 32, 128, 4.0 / 128)),
    ],
)  # fmt: skip
def test_each_tools_result_is_read(tmp_path, item, expected):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(item))
    (point,), _ = read_benchmark(path)
    found = (point.kind, point.sequences, point.isl_tokens, point.osl_tokens, point.token_s)
    assert found[0] == expected[0]
    assert found[1:] == pytest.approx(expected[1:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "no benchmark result"),
        ('{"hello": 1}', "neither a profiler trace nor a benchmark result"),
        (json.dumps({**VLLM_SERVE, "completed": "many"}), "completed is 'many'"),
        (json.dumps(VLLM_SERVE) + "\n" + json.dumps(VLLM_SERVE)[:40], "neither a profiler trace nor"),
    ],
)
def test_broken_benchmark_files_are_one_message(tmp_path, text, message):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ProblemError, match=message):
        read_inputs([path]) if "neither" in message else read_benchmark(path)
