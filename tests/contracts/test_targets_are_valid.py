"""What `autotune export` writes is valid and read back as the plan that it was, for every target that can say the plan.

The whole matrix of hardware, models and engines: scripts/targets_matrix.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import target_validity
from target_validity import complaints_of

from autotune.documents.deployment import Deployment
from autotune.errors import ExportError
from autotune.exporters import launch_of
from autotune.exporters.targets.registry import MODULES, load_target

PREFILL = {"tp": 4, "ep": 4, "max_batched_tokens": 8192, "cuda_graph": False, "instances": 3}
DECODE = {"dp": 8, "ep": 8, "batch_per_dp_rank": 64, "all2all_backend": "deepep_low_latency", "instances": 2}
WIDE = {**DECODE, "dp": 16, "ep": 16}
TRTLLM_PREFILL = {"dp": 4, "ep": 4, "max_batched_tokens": 8192, "cuda_graph": False, "instances": 3,
                  "all2all_backend": "nvlink_one_sided"}  # fmt: skip
TRTLLM_DECODE = {"dp": 8, "ep": 8, "batch_per_dp_rank": 64, "all2all_backend": "nvlink_one_sided", "instances": 2}
PLANS: dict[str, dict[str, Any]] = {
    "vllm-small": {"model": "qwen3-32b", "precision": "bf16",
     "pools": {"serve": {"tp": 2, "batch_per_dp_rank": 8, "max_batched_tokens": 4096}}},
    "vllm-pair-nvl72": {"hardware": "gb200-nvl72", "precision": "nvfp4", "pools": {"prefill": PREFILL, "decode": DECODE}},
    "sglang-pair": {"engine": "sglang", "pools": {"prefill": PREFILL, "decode": WIDE}},
    "sglang-small": {"engine": "sglang", "model": "qwen3-32b", "precision": "bf16",
     "pools": {"serve": {"tp": 2, "batch_per_dp_rank": 8, "max_batched_tokens": 4096, "instances": 3}}},
    "sglang-wide": {"engine": "sglang", "pools": {"serve": {**DECODE, "max_batched_tokens": 4096}}},
    "sglang-tensor-over-nodes": {"engine": "sglang",
     "pools": {"serve": {"tp": 16, "batch_per_dp_rank": 16, "max_batched_tokens": 4096}}},
    "trtllm-small": {"engine": "trtllm", "model": "qwen3-32b", "precision": "bf16",
     "pools": {"serve": {"tp": 2, "batch_per_dp_rank": 8, "max_batched_tokens": 4096, "instances": 4}}},
    "trtllm-pair": {"engine": "trtllm", "hardware": "hgx-b200", "precision": "nvfp4",
     "pools": {"prefill": TRTLLM_PREFILL, "decode": TRTLLM_DECODE}},
    "trtllm-pair-nvl72": {"engine": "trtllm", "hardware": "gb200-nvl72", "precision": "nvfp4",
     "pools": {"prefill": TRTLLM_PREFILL, "decode": {**TRTLLM_DECODE, "dp": 16, "ep": 16, "draft_tokens": 1}}},
    "trtllm-tensor-over-nodes": {"engine": "trtllm", "hardware": "gb200-nvl72", "precision": "nvfp4",
     "pools": {"serve": {"tp": 8, "ep": 8, "batch_per_dp_rank": 16, "max_batched_tokens": 4096}}},
}  # fmt: skip
CASES = [
    pytest.param(plan, target, marks=() if plan.endswith("-small") else pytest.mark.slow) for plan in PLANS for target in MODULES
]


def deployment(name: str) -> Deployment:
    said = {"hardware": "hgx-h200", "model": "deepseek-r1", "precision": "fp8-block", "engine": "vllm", **PLANS[name]}
    return Deployment.model_validate({
        **said, "engine": {"name": said["engine"]}, "phase": "serve", "load": {"rate_per_s": 1.0},
        "workload": {"isl_tokens": 1000, "osl_tokens": 1000, "mtp_acceptance": [0.8] if "trtllm" in name else []},
    })  # fmt: skip


@pytest.mark.parametrize(("name", "target"), CASES)
def test_a_plan_is_valid_and_comes_back(name: str, target: str):
    try:
        assert complaints_of(target, deployment(name), launch_of(deployment(name))) == []
    except ExportError:
        pytest.skip("the target cannot say this plan")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("replicas: 1", "replicas: 2", "4 GPUs in the files, the plan has 2"),
        ("startupPolicy:", "startUpPolicy:", "Additional properties are not allowed"),
        ("--tensor-parallel-size", "--pipeline-parallel-size", "serve.tp comes back as 1, was 2"),
        ("name: qwen3-32b", "name: 3_qwen", "is no name"),
    ],
)
def test_what_is_not_valid_is_complained_about(monkeypatch, old: str, new: str, says: str):
    """One word of the files changed, so that a matrix without complaints says something."""
    target = load_target("lws")

    def changed(launch, options):
        return [dataclasses.replace(file, text=file.text.replace(old, new)) for file in target.render(launch, options)]

    monkeypatch.setattr(target_validity, "load_target", lambda _: dataclasses.replace(target, render=changed))
    plan = deployment("vllm-small")
    assert any(says in line for line in complaints_of("lws", plan, launch_of(plan)))
