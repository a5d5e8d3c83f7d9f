"""Deployments and predictions: schema, contradictions, offload, layer override."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from autotune.documents.deployment import Deployment
from autotune.documents.problem import Problem
from autotune.errors import ProblemError
from autotune.predicting.step import predict
from autotune.resolving import resolve_problem
from cost_models.errors import AutotuneError

BASE = {
    "hardware": "gb200-nvl72",
    "model": "deepseek-r1",
    "precision": "nvfp4",
    "engine": {"name": "vllm"},
    "workload": {"isl_tokens": 2000, "osl_tokens": 2000},
}
POOL = {"dp": 8, "ep": 8, "batch_per_dp_rank": 256, "all2all_backend": "allgather_reducescatter"}


TP8 = {"tp": 8, "dp": 1, "ep": 1, "all2all_backend": "none"}


def deployment(pool: dict | None = None, **changes) -> Deployment:
    return Deployment.model_validate({**BASE, **changes, "pools": {"decode": {**POOL, **(pool or {})}}})


def test_a_prediction_adds_up():
    prediction = predict(deployment({"instances": 3}))
    assert sum(line.time_s for line in prediction.operators) == pytest.approx(prediction.step_s)
    assert sum(line.bytes for line in prediction.memory) == pytest.approx(prediction.memory_total_bytes)
    assert prediction.tokens_per_s == pytest.approx(prediction.tokens_per_s_per_gpu * prediction.gpus)
    assert (prediction.gpus, prediction.concurrency) == (24, 8 * 256 * 3)
    assert prediction.fits
    assert prediction.bottleneck.startswith(prediction.operators[0].name)


def test_a_plan_too_large_for_memory_is_predicted_and_says_so():
    assert not predict(deployment({"batch_per_dp_rank": 4000})).fits


def test_fewer_layers_take_proportionally_less():
    whole, part = predict(deployment()), predict(deployment(layers=8))
    per_layer = whole.layer_kinds["moe_layers"] / 58
    assert part.layer_kinds["moe_layers"] == pytest.approx(5 * per_layer)


def test_a_calibration_of_another_engine_can_be_named():
    assert predict(deployment(calibration={"engine": "sglang"})).calibration == "gb200-sglang"


def test_offload_frees_memory_and_stalls_over_a_slow_link():
    plain = predict(deployment())
    offloaded = predict(deployment({"offload": {"group_size": 2, "num_in_group": 1, "prefetch_step": 1}}))
    assert offloaded.memory_total_bytes < plain.memory_total_bytes
    # 30 of 61 layers x about 1.02 GB copied at 225 GB/s: 136 ms, more than the step hides
    assert offloaded.step_s > plain.step_s
    assert any(line.name == "offload_stall" for line in offloaded.operators)


def test_measured_imbalance_replaces_the_prior():
    even, skewed = (predict(deployment({"expert_balance": {"max_over_mean": r}})).step_s for r in (1.0, 2.0))
    # experts are a fifth of this step and memory-bound: doubling the busiest rank's pairs adds their FLOPs only
    assert even * 1.03 < skewed < even * 1.3


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"ep": 3}, "ep 3 does not divide tp.dp = 8"),
        ({"moe_tp": 2}, "must equal tp.dp = 8"),
        ({"all2all_backend": "none"}, "needs an all2all_backend"),
        ({"batch_per_dp_rank": 0}, "a decode pool needs batch_per_dp_rank"),
        ({"batch_per_dp_rank": -5}, "greater than or equal to 0"),
        ({"colour": "green"}, "Extra inputs"),
        ({"dp": 1, "ep": 1}, "needs dp > 1"),
        ({"offload": {"group_size": 1, "num_in_group": 2}}, "exceeds group_size"),
    ],
)
def test_pools_that_contradict_themselves(pool, message):
    with pytest.raises(ValidationError, match=message):
        deployment(pool)


@pytest.mark.parametrize(
    ("changes", "pool", "message"),
    [
        ({}, {"tp": 3, "dp": 1, "ep": 1, "all2all_backend": "none"}, "tp 3 does not divide the 128"),
        ({"model": "llama-3.1-70b", "precision": "bf16"}, {}, "is dense"),
        ({}, {"dp": 72, "ep": 72}, "does not divide the 256 . 0 physical"),
        ({}, {"draft_tokens": 1}, "mtp_acceptance"),
        ({"model": "qwen3-235b-a22b"}, {"draft_tokens": 1}, "no MTP module"),
        ({"hardware": "gb201"}, {}, "Did you mean .*gb200-nvl72"),
        ({"engine": {"name": "vllm", "version": "0.10"}}, {}, "unknown vllm version '0.10'"),
        ({"engine": {"name": "vlm"}}, {}, "Did you mean vllm"),
        ({"precision": "fp9"}, {}, "unknown precision"),
        ({}, {"flags": {"enable_dbbo": True}}, "Did you mean enable_dbo"),
        ({}, {"flags": {"moe_dp_chunk_tokens": 256}}, "unknown vllm 0.33 flag"),
        ({}, {"flags": {"--prefill-context-parallel-size": 2}}, "prefill context parallelism is not modelled"),
        ({}, {"tp": 8, "dp": 2, "dcp": 3}, "dcp 3 does not divide tp 8"),
        ({"model": "gpt-oss-120b", "precision": "mxfp4"}, {**TP8, "dcp": 2}, "at most 1 of tp 8 ranks"),
        ({"engine": {"name": "trtllm"}}, {**TP8, "dcp": 8}, "TensorRT-LLM 1.3 has no decode context parallelism"),
        ({"hardware": "mi300x"}, {}, "no nvfp4 tensor throughput|no tensor cores for nvfp4"),
        ({"hardware": "h20-4node-25gbe", "precision": "fp8-block"}, {"instances": 5}, "40 GPUs wanted"),
    ],
)
def test_deployments_that_cannot_be(changes, pool, message):
    with pytest.raises(AutotuneError, match=message):
        predict(deployment(pool, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 64, "hardware": "h20-4node-25gbe"}, "has 32"),
        ({"precision": "nvfp4", "hardware": "mi300x"}, "nvfp4 cannot run on mi300x"),
        (
            {"workload": {"isl_tokens": 200_000, "osl_tokens": 2000}, "hardware": "gb200-nvl72"},
            "exceeds the 163,840-token context",
        ),
        ({"engine": "vllm", "hardware": "ascend-910c"}, "does not run on huawei"),
        ({"model": "kimi-k2", "hardware": "ascend-910c"}, "no checkpoint in a precision"),
        (
            {
                "model": "kimi-k2",
                "hardware": "gb200-nvl72",
                "workload": {"isl_tokens": 1, "osl_tokens": 1, "mtp_acceptance": [0.5]},
            },
            "no MTP",
        ),
        ({"hardware": "gb200-nvl72", "workload": {"isl_tokens": 1, "osl_tokens": 1, "mtp_acceptance": [0.0]}}, r"\(0, 1\]"),
    ],
)
def test_problems_that_cannot_be(changes, message):
    with pytest.raises(ProblemError, match=message):
        resolve_problem(Problem.model_validate(changes))


def test_defaults_are_named_and_given_values_are_not():
    resolved = resolve_problem(Problem(hardware="gb200-nvl72"))
    text = " ".join(resolved.assumed)
    for part in ("deepseek-v3", "0.33", "nvfp4", "2,000 in / 2,000 out", "72 GPUs", "100 ms", "tokens_per_s_per_gpu", "97%"):
        assert part in text
    given = resolve_problem(Problem(hardware="gb200-nvl72", gpus=72, tpot_limit_s=0.1))
    assert not any("GPUs" in line or "TPOT" in line for line in given.assumed)


@pytest.mark.parametrize(
    ("hardware", "model", "recipe"),
    [
        ("gb200-nvl72", "deepseek-v3", "nvfp4"),
        ("hgx-h200", "deepseek-v3", "fp8-block"),
        ("hgx-h100", "gpt-oss-120b", "mxfp4"),
        ("ascend-910c", "deepseek-r1", "int8"),
        ("hgx-h200", "llama-3.1-70b", "fp8-tensor"),
    ],
)
def test_the_best_precision_the_hardware_runs_is_taken(hardware, model, recipe):
    assert resolve_problem(Problem(hardware=hardware, model=model)).machine.recipe.name == recipe
