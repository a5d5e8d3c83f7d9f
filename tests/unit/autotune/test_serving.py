"""Predictions of services, the requests they are sent, and the traces these are read from."""

from __future__ import annotations

import dataclasses
import gzip
import json

import numpy as np
import pytest
from pydantic import ValidationError

from autotune.documents.deployment import Deployment
from autotune.errors import ProblemError
from autotune.predicting.step import predict
from autotune.serving.errors import service_errors
from autotune.serving.policies import VLLM_V1_ASYNC
from autotune.serving.predicting import predict_service, service_of
from autotune.serving.replay import replay_steady
from autotune.serving.requests import Requests, poisson_requests, read_trace
from autotune.serving.service import Frontend, PoolModel, ServiceModel
from autotune.serving.steady import settled_replay, slice_of
from cost_models.serving import interrupted_step_s
from cost_models.specs.workload import Workload


def _requests(*entries: tuple[float, float, float]) -> Requests:
    """(sent, input, output) of each."""
    sent, isl, osl = np.array(entries, dtype=float).T
    return Requests(isl, osl, sent)


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:48.1805900,396,109\n"
MOONCAKE = [
    {"timestamp": 500, "input_length": 6758, "output_length": 500, "hash_ids": [0]},
    {"timestamp": 2000, "input_length": 9, "output_length": 1},
]


def test_azure_and_mooncake_traces_are_read_plain_or_compressed(tmp_path):
    azure, mooncake = tmp_path / "azure.csv", tmp_path / "mooncake.jsonl.gz"
    azure.write_text(AZURE)
    mooncake.write_bytes(gzip.compress("\n".join(map(json.dumps, MOONCAKE)).encode()))
    one, two = read_trace(azure), read_trace(mooncake)
    assert (one.isl_tokens.tolist(), one.osl_tokens.tolist()) == ([374, 396], [44, 109])
    assert one.arrival_s == pytest.approx([0, 1.5])
    assert (two.isl_tokens.tolist(), two.osl_tokens.tolist(), two.arrival_s.tolist()) == ([6758, 9], [500, 1], [0, 1.5])
    assert one.rate_per_s == pytest.approx(1 / 1.5)
    assert one.at_rate(2.0).arrival_s == pytest.approx([0, 0.5])
    assert one.every(2).isl_tokens.tolist() == [374]
    assert one.first(1).osl_tokens.tolist() == [44]
    assert one.closed(8).arrival_s is None


def test_burst_gpt_leaves_out_what_failed(tmp_path):
    path = tmp_path / "burst.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n118,GPT-4,417,276,693,API log\n"
    )
    requests = read_trace(path)
    assert requests.isl_tokens.tolist() == [472, 417]
    assert requests.osl_tokens.tolist() == [18, 276]
    assert requests.arrival_s.tolist() == [0, 113]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (AZURE + "2023-11-16 18:15:47.0,5,5\n", "line 4: sent 1.18059 s before the line above"),
        (AZURE + "2023-11-16 18:16:47.0,0,5\n", "line 4: 0 input and 5 output tokens"),
        (AZURE + "2023-11-16 18:16:47.0,,5\n", "line 4: not a request like those above it"),
        (AZURE + '{"timestamp": 1, "input_length": 5, "output_length": 5}\n', "line 4: not a request like those above it"),
        (json.dumps(MOONCAKE[0]) + "\n" + AZURE, "line 2: not a request like those above it"),
        ('{"timestamp": -1, "input_length": 5, "output_length": 5}\n', "line 1: time -0.001 s must be finite and not negative"),
        ("prompt,answer\na,b\n", "not a request trace"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request in it"),
        ("", "not a request trace"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ProblemError, match=message):
        read_trace(path)


def test_a_trace_that_is_absent_or_broken_is_named(tmp_path):
    with pytest.raises(ProblemError, match="no such file"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"timestamp": 1}')[:-9])
    with pytest.raises(ProblemError, match="cannot be read"):
        read_trace(tmp_path / "cut.jsonl.gz")
    with pytest.raises(ProblemError, match="no rate to scale"):
        _requests((0, 5, 5), (0, 5, 5)).at_rate(1.0)


DECODE = {"dp": 8, "ep": 8, "all2all_backend": "deepep_low_latency"}
PREFILL = {"dp": 8, "ep": 8, "all2all_backend": "deepep_normal", "max_batched_tokens": 16384}


def _service(pools: dict, load: dict | None, **changes) -> Deployment:
    document = {
        "hardware": "gb200-nvl72",
        "model": "deepseek-r1",
        "precision": "fp8-block",
        "engine": {"name": "sglang"},
        "phase": "serve",
        "workload": {"isl_tokens": 2048, "osl_tokens": 512},
        "pools": pools,
        "load": load,
    }
    return Deployment.model_validate({**document, **changes})


def test_tpot_of_a_disaggregated_service_is_the_decode_step_between_its_mean_batch_and_that_of_the_busiest_rank():
    service = predict_service(_service({"prefill": {**PREFILL, "instances": 8}, "decode": DECODE}, {"concurrency": 256}))
    # SGLang's decode ranks are dealt sequences in turn: 256 over 8 are 32 each, 40 at most where short answers end at one rank
    # first, and all run padded to the busiest
    batches = (int(service.decode_sequences / 8), 40)
    fixed = [{"decode": {**DECODE, "batch_per_dp_rank": batch}} for batch in batches]
    low, high = (predict(_service(pools, None, phase="decode")) for pools in fixed)
    assert low.tpot_s * 0.99 <= service.tpot_s.p50 <= high.tpot_s * 1.01


def test_a_prompt_shorter_than_the_longest_is_priced_at_its_own_length():
    # what a step takes beyond one of 400 tokens is what prefill steps of those prompts differ by: launches and host are the same
    model = service_of(_service({"prefill": PREFILL, "decode": DECODE}, {"concurrency": 4})).built.model
    lengths = (400, 1200, 1600, 2040)
    table_s = np.array([model.prefill.prompt_s(tokens, tokens, tokens * tokens / 2, 0) for tokens in lengths])
    alone = [
        _service(
            {"prefill": {**PREFILL, "max_batched_tokens": tokens}},
            None,
            phase="prefill",
            workload={"isl_tokens": tokens, "osl_tokens": 8},
        )
        for tokens in lengths
    ]
    steps_s = np.array([predict(one).step_s for one in alone])
    assert table_s[1:] - table_s[0] == pytest.approx(steps_s[1:] - steps_s[0], rel=0.05)


def test_what_sglang_waits_for_before_it_sees_a_result_follows_from_the_all_to_all():
    # DeepEP normal waits for counts in every layer, so launching takes the whole step; else it takes what the smallest step does
    waits, launches = (
        service_of(_service({"prefill": {**PREFILL, **changes}, "decode": DECODE}, {"concurrency": 4})).built.model.prefill
        for changes in ({}, {"all2all_backend": "allgather_reducescatter"})
    )
    assert waits.launch_s == float("inf")
    assert 0.03 < launches.launch_s < launches.prompt_s(1, 1, 0, 0)


def test_absorbed_pieces_cost_the_flops_of_latents_and_a_slower_kernel():
    # DeepSeek: 2 x 512 + 64 against 192 + 128 a head and key, 3.4 times; Llama has no latents to attend to
    pools = {"prefill": {**PREFILL, "absorbs_cut_prompts": True}, "decode": DECODE}
    model = service_of(_service(pools, {"concurrency": 4})).built.model
    assert model.prefill.cut_keys == pytest.approx(1088 / 320 * 3.0)
    assert model.decode.cut_keys == 1.0
    dense = {"model": "llama-3.1-70b", "hardware": "hgx-h100", "precision": "bf16"}
    plain = service_of(_service({"serve": {"tp": 8, "absorbs_cut_prompts": True}}, {"concurrency": 4}, **dense))
    assert plain.built.model.decode.cut_keys == 1.0


def test_only_a_cold_engine_that_compiles_has_kernels_to_compile():
    # SGLang's FlashInfer kernel on Blackwell; Hopper's come with the package. Warm unless said otherwise
    cold = {"concurrency": 4, "warmed_up": False}
    on_blackwell, warm = (service_of(_service({"serve": DECODE}, load)).built.model.decode for load in (cold, {"concurrency": 4}))
    on_hopper = service_of(_service({"serve": DECODE}, cold, hardware="hgx-h200", precision="fp8-block")).built.model.decode
    assert on_blackwell.first_cut_s > 10
    assert warm.first_cut_s == on_hopper.first_cut_s == 0


def test_a_steady_state_is_warm():
    with pytest.raises(ValidationError, match="a steady state is warm"):
        _service({"serve": DECODE}, {"rate_per_s": 1.0, "warmed_up": False})


def test_apart_decode_is_undisturbed_and_together_it_is_not():
    load = {"concurrency": 128}
    apart = predict_service(_service({"prefill": {**PREFILL, "instances": 4}, "decode": DECODE}, load))
    together = predict_service(_service({"serve": DECODE}, load))
    assert together.tpot_s.mean > apart.tpot_s.mean
    assert together.gpus == 8
    assert apart.gpus == 40


def test_instances_share_the_load_evenly():
    one = predict_service(_service({"serve": DECODE}, {"concurrency": 64}))
    two = predict_service(_service({"serve": {**DECODE, "instances": 2}}, {"concurrency": 128}))
    assert two.ttft_s == one.ttft_s
    assert two.tokens_per_s == pytest.approx(2 * one.tokens_per_s)


def test_more_prefill_or_a_prefix_cache_shortens_the_queue():
    load, decode = {"rate_per_s": 12.0, "requests": 1500}, {"decode": DECODE}
    waits = [predict_service(_service({"prefill": {**PREFILL, "instances": n}, **decode}, load)).ttft_s.mean for n in (1, 2, 4)]
    assert waits == sorted(waits, reverse=True)
    cached = {"isl_tokens": 2048, "osl_tokens": 512, "prefix_cache_hit_rate": 0.5}
    assert predict_service(_service({"prefill": PREFILL, **decode}, load, workload=cached)).ttft_s.mean < waits[0]


def test_a_load_beyond_capacity_is_called_so():
    pools = {"prefill": PREFILL, "decode": DECODE}
    fine = predict_service(_service(pools, {"rate_per_s": 2.0, "requests": 1000}))
    assert not any("keep up" in note for note in fine.notes)
    over = predict_service(_service(pools, {"rate_per_s": 400.0, "requests": 4000}))
    assert any("the service may not keep up" in note for note in over.notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pools", "rate"),
    [({"serve": DECODE}, 3.0), ({"serve": DECODE}, 6.0), ({"prefill": {**PREFILL, "instances": 4}, "decode": DECODE}, 8.0)],
)
def test_the_steady_state_is_where_a_long_replay_settles(pools, rate):
    steady = predict_service(_service(pools, {"rate_per_s": rate}))
    long = predict_service(_service(pools, {"rate_per_s": rate, "requests": 6000}))
    assert not steady.overloaded
    assert steady.tpot_s.mean == pytest.approx(long.tpot_s.mean, rel=0.1)  # which starts and ends empty, so faster
    assert steady.tpot_s.mean >= 0.98 * long.tpot_s.mean
    assert steady.ttft_s.mean == pytest.approx(long.ttft_s.mean, rel=0.05)
    assert steady.tokens_per_s == pytest.approx(long.tokens_per_s, rel=0.08)  # the long replay starts and ends empty
    by_little = steady.requests_per_s * 500 * steady.tpot_s.mean
    assert steady.decode_sequences == pytest.approx(by_little, rel=0.1)  # the closed form's TPOT and the replay's


@pytest.mark.slow
def test_a_slice_of_a_large_service_sees_what_the_whole_does():
    pools = {"prefill": {**PREFILL, "instances": 24}, "decode": {**DECODE, "instances": 3}}
    built = service_of(_service(pools, {"rate_per_s": 40.0})).built.model
    part = slice_of(built)
    assert (part.prefill.workers, part.decode.workers) == (8, 1)  # 24 : 3
    workload = Workload(isl_tokens=2048, osl_tokens=512)
    sent = [poisson_requests(2048, 512, count=n, rate_per_s=rate, shortest=1.0) for n, rate in ((6000, 40.0), (2000, 40.0 / 3))]
    whole, sliced = (replay_steady(r, m, round(n)) for r, m, n in zip(sent, (built, part), (60, 20), strict=True))
    assert np.median(sliced.ttft_s) == pytest.approx(np.median(whole.ttft_s), rel=0.1)
    assert sliced.tpot_s.mean() == pytest.approx(whole.tpot_s.mean(), rel=0.03)
    assert settled_replay(workload, built, 60, 40.0, 1.0).ttft_s.mean() > 0


SLICES = [(706, 47, (15, 1)), (47, 706, (1, 15)), (11, 1, (11, 1)), (9, 8, (9, 8))]


@pytest.mark.parametrize(("prefill", "decode", "wanted"), SLICES)
def test_slices_keep_the_ratio_of_workers(prefill, decode, wanted):
    pool = PoolModel(decode_s=lambda _: 0.01, prompt_s=lambda *_: 0.1)
    pools = {"prefill": dataclasses.replace(pool, workers=prefill), "decode": dataclasses.replace(pool, workers=decode)}
    part = slice_of(ServiceModel(VLLM_V1_ASYNC, frontend=Frontend(servers=2 * prefill), **pools))
    assert (part.prefill.workers, part.decode.workers) == wanted
    assert part.frontend.servers == 2 * wanted[0]


def test_prompts_at_random_interrupt_decode_as_a_renewal_says():
    # steps of 20 ms, prefill steps of 200 ms, 3 prompts/s: nothing comes in 220 ms with probability exp(-0.66) = 0.517, so a
    # cycle decodes for 20 + 517 / 3 = 192 ms and prefills for 200: 20 x 392 / 192 = 40.8 ms per step
    assert interrupted_step_s(0.02, 0.2, 3.0, 0.02) == pytest.approx(0.0408, abs=1e-4)
    assert interrupted_step_s(0.02, 0.2, 1e-9, 0.02) == pytest.approx(0.02)  # no prompts
    assert interrupted_step_s(0.02, 0.2, 1e9, 0.02) == pytest.approx(0.22)  # one prefill step after every decode step


@pytest.mark.slow
def test_a_steady_service_says_when_it_cannot_settle():
    pools = {"prefill": {**PREFILL, "instances": 8}, "decode": {**DECODE, "batch_per_dp_rank": 2}}
    service = predict_service(_service(pools, {"rate_per_s": 30.0}))
    assert service.overloaded
    assert "16 fit" in service.notes[-1]  # eight ranks of two sequences


def test_lengths_come_from_the_trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    service = predict_service(_service({"serve": DECODE}, {"trace": str(path)}))
    assert service.requests == 2
    assert service.requests_per_s == pytest.approx(service.tokens_per_s / ((44 + 109) / 2))


def test_intervals_are_the_ratios_of_measured_services():
    errors = service_errors()
    together = predict_service(_service({"serve": DECODE}, {"concurrency": 64}))
    apart = predict_service(_service({"prefill": PREFILL, "decode": DECODE}, {"concurrency": 64}))
    assert together.intervals.tpot_s.high == pytest.approx(together.tpot_s.mean * errors.of(False, "sglang").tpot.high)
    assert apart.intervals.ttft_s.low == pytest.approx(apart.ttft_s.mean * errors.of(True, "sglang").ttft.low)
    assert apart.intervals.of_ttft("p99").high == pytest.approx(apart.ttft_s.p99 * errors.of(True, "sglang").ttft_p99.high)
    assert errors.of(True, "unheard-of") == errors.disaggregated["default"]
    for service in (together, apart):
        assert (
            service.intervals.tokens_per_s_per_gpu.low
            < service.tokens_per_s_per_gpu
            < service.intervals.tokens_per_s_per_gpu.high
        )


@pytest.mark.parametrize(
    ("pools", "load", "message"),
    [
        ({"serve": DECODE}, None, "needs a load"),
        ({"serve": DECODE}, {}, "give concurrency"),
        ({"serve": DECODE}, {"concurrency": 4, "rate_per_s": 1.0}, "not both"),
        ({"decode": DECODE}, {"concurrency": 4}, "a service is one pool `serve`, or the two pools"),
        ({"serve": DECODE, "decode": DECODE}, {"concurrency": 4}, "found serve, decode"),
    ],
)
def test_a_service_without_load_or_pools_is_refused(pools, load, message):
    with pytest.raises(ValidationError, match=message):
        _service(pools, load)


def test_a_pool_too_small_is_refused_with_the_bytes_that_lack():
    with pytest.raises(ProblemError, match=r"no sequence of 2,560 tokens fits beside the weights: its KV cache needs"):
        predict_service(_service({"serve": {"tp": 2}}, {"concurrency": 4}))
    small = {"prefill": {"tp": 2, "max_batched_tokens": 16384}, "decode": DECODE}
    with pytest.raises(ProblemError, match=r"the prefill pool needs .* GB more than allowed"):
        predict_service(_service(small, {"concurrency": 4}))
