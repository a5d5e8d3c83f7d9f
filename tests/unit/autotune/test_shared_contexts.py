"""Contexts that tensor-parallel ranks share, from commands and problems to scripts."""

from __future__ import annotations

import pytest

from autotune import Problem, search
from autotune.auditing.checking import check
from autotune.auditing.commands import read_command
from autotune.auditing.goals import Goals
from autotune.documents.deployment import Deployment, Load
from autotune.exporters import export
from autotune.layouts.enumerate import layout_rows
from autotune.predicting.step import held_memory, predict
from autotune.resolving import resolve_problem
from autotune.serving.predicting import predict_service

R1 = "vllm serve deepseek-ai/DeepSeek-R1-0528 --tensor-parallel-size 8"
SHORT = {"isl_tokens": 1_000, "osl_tokens": 1_000}
LONG = {"isl_tokens": 100_000, "osl_tokens": 2_000}


def read(text, hardware="hgx-h200", **more):
    return read_command(text, hardware=hardware, isl_tokens=30_000, osl_tokens=1_000, **more)


def problem(**changes) -> Problem:
    wanted = {"hardware": "hgx-h200", "model": "deepseek-r1", "gpus": 8, "workload": LONG, "tpot_limit_s": 0.05, "trials": 0}
    return Problem.model_validate({**wanted, **changes})


def test_a_command_is_read_and_its_ranks_hold_as_many_times_the_tokens():
    whole, shared = read(R1), read(f"{R1} -dcp 8")
    assert (shared.deployment.pool.dcp, shared.unmodelled, shared.conflicts) == (8, (), ())
    ratio = held_memory(shared.deployment).kv_capacity_tokens / held_memory(whole.deployment).kv_capacity_tokens
    assert 7 < ratio < 8.2  # less room, as queries and outputs of all heads are alive
    assert shared.deployment.pool.batch_per_dp_rank > 5 * whole.deployment.pool.batch_per_dp_rank


def test_plugins_whose_kernels_are_others_still_say_that_it_is_not_modelled():
    text = "vllm serve r1-w8a8 --tensor-parallel-size 8 -dcp 8 --quantization ascend"
    found = read(text, "ascend-910c", model="deepseek-r1", precision="int8")
    assert found.deployment.pool.dcp == 1
    assert any("decode context parallelism" in one.what for one in found.unmodelled)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{R1} -dcp 3", "does not divide tp 8"),
        ("vllm serve openai/gpt-oss-120b --tensor-parallel-size 8 -dcp 2", "sliding window"),
        ("vllm serve Qwen/Qwen3-235B-A22B --tensor-parallel-size 8 -dcp 4", "the most that would do is 2"),
    ],
)
def test_what_an_engine_refuses_is_a_verdict_with_a_way_out(text, message):
    found = read(text)
    verdict = check(found.deployment, Goals(), found)
    assert not verdict.works
    assert any(message in conflict for conflict in verdict.conflicts)
    assert any(change.startswith("dcp ") for smallest in verdict.changes for change in smallest.changes)


def test_more_sequences_than_fit_are_what_it_is_for():
    found = read(f"{R1} --max-num-seqs 128")
    verdict = check(found.deployment, Goals(concurrency=64), found)
    assert not verdict.works
    assert verdict.changes[0].changes[0].startswith("dcp 1 -> ")


def test_search_proposes_it_for_long_contexts_and_says_what_the_others_lose():
    result = search(problem())
    best = result.best.deployment.pool
    assert (best.tp, best.dcp, result.best.label) == (8, 8, "1 x TP8 DCP8")
    lost = {other.kind: other for other in result.alternatives}
    assert "because TP8 keeps 8 copies of each KV cache" in lost["TP attention, TP experts"].reason
    short = search(problem(workload=SHORT))
    assert short.best.deployment.pool.dcp == 1
    shared = next(other for other in short.alternatives if other.kind == "contexts shared by ranks")
    assert shared.tokens_per_s_per_gpu < short.best.prediction.tokens_per_s_per_gpu


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, {1, 2, 4, 8}),  # of a pair: all of tp or none
        ({"target": "prefill"}, {1}),
        ({"engine": "vllm", "engine_version": "0.11"}, {1}),
        ({"engine": "sglang"}, {1}),  # on Hopper its kernels are others than those that are priced
        ({"engine": "sglang", "hardware": "hgx-b200"}, {1, 2, 4, 8}),
        ({"engine": "sglang", "engine_version": "0.5.12", "hardware": "hgx-b200"}, {1}),
        ({"model": "qwen3-235b-a22b", "workload": SHORT}, {1}),  # grouped heads are not handed over shared
        ({"model": "gpt-oss-120b"}, {1}),
    ],
)
def test_layouts_share_contexts_only_where_the_engine_takes_it(changes, sizes):
    rows = layout_rows(resolve_problem(problem(**changes)))
    assert set(rows.dcp.tolist()) == sizes
    if changes.get("engine") != "sglang":
        assert set((rows.tp == rows.dcp)[rows.dcp > 1].tolist()) <= {True}


def test_scripts_say_it_and_are_read_back():
    plan = search(problem()).best
    (script,) = export(plan.deployment)
    assert "--decode-context-parallel-size 8" in script.text
    assert read_command(script.text, hardware="hgx-h200", isl_tokens=100_000, osl_tokens=2_000).deployment.pool.dcp == 8
    whole = plan.deployment.with_pool("decode", dcp=1)
    assert "context-parallel" not in export(whole)[0].text


def test_sglang_says_it_by_its_own_name():
    plan = search(problem(engine="sglang", hardware="gb200-nvl72", gpus=4)).best
    pool = plan.deployment.pool
    assert pool.dcp == pool.tp > 1
    assert f"--dcp-size {pool.dcp}" in export(plan.deployment)[0].text


def test_a_layer_shows_the_exchange_around_its_core():
    deployment = read(f"{R1} -dcp 8").deployment
    names = [operator.name for operator in predict(deployment).layers[0].operators]
    assert names.index("context_gather") < names.index("attention") < names.index("context_combine") < names.index("o_proj")
    lanes = {operator.name: operator.lane for operator in predict(deployment).layers[0].operators}
    assert lanes["context_gather"] == lanes["context_combine"] == "communication"


def test_a_service_takes_in_more_sequences():
    def slots(dcp: int) -> int:
        pool = {"tp": 8, "dcp": dcp, "max_batched_tokens": 8192, "memory_fraction": 0.9}
        service = Deployment.model_validate(
            {"hardware": "hgx-h200", "model": "deepseek-r1", "precision": "fp8-block", "engine": {"name": "vllm"},
             "phase": "serve", "workload": LONG, "pools": {"serve": pool}, "load": Load(concurrency=64, requests=64)}
        )  # fmt: skip
        return predict_service(service).decode_slots

    few, many = slots(1), slots(8)
    assert 8 * few <= many < 8 * (few + 1)  # whole sequences of 101,000 tokens
