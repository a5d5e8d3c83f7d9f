"""What `autotune export` writes is read back as the plan that it was, for every target that the plan can be rendered to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autotune.documents.deployment import Deployment, Load, Pool
from autotune.errors import ExportError
from autotune.exporters import launch_of
from autotune.exporters.targets.base import TargetOptions
from autotune.exporters.targets.registry import MODULES, load_target
from autotune.manifests.judging import GivenToo, read_manifest
from autotune.manifests.kustomize import is_kustomization
from autotune.manifests.registry import read_file

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
FIELDS = ("tp", "dp", "ep", "pp", "instances", "all2all_backend", "redundant_experts", "draft_tokens", "cuda_graph")
CASES = [
    pytest.param(plan, target, marks=() if plan.endswith("-small") else pytest.mark.slow) for plan in PLANS for target in MODULES
]


def deployment(name: str) -> Deployment:
    said = {"hardware": "hgx-h200", "model": "deepseek-r1", "precision": "fp8-block", "engine": "vllm", **PLANS[name]}
    return Deployment.model_validate({
        **said, "engine": {"name": said["engine"]}, "phase": "serve", "load": {"rate_per_s": 1.0},
        "workload": {"isl_tokens": 1000, "osl_tokens": 1000, "mtp_acceptance": [0.8] if "trtllm" in name else []},
    })  # fmt: skip


def settings(pool: Pool) -> dict[str, Any]:
    return {name: getattr(pool, name) for name in FIELDS}


@pytest.mark.parametrize(("name", "target"), CASES)
def test_a_plan_comes_back(tmp_path: Path, name: str, target: str):
    plan = deployment(name)
    images = TargetOptions(
        router_image="registry.example/router:1.2.0", image=None if target == "srt-slurm" else "x.example/e:1.5.1"
    )
    try:
        files = load_target(target).render(launch_of(plan), TargetOptions() if target in ("bash", "sbatch") else images)
    except ExportError:
        pytest.skip("the target cannot say this plan")
    for file in files:
        (tmp_path / file.name).write_text(file.text)
    manifests = [path for path in sorted(tmp_path.glob("*.yaml")) if target not in ("bash", "sbatch")]
    manifest = read_file(tmp_path if is_kustomization(tmp_path) or not manifests else manifests[0])
    assert manifest is not None
    found = read_manifest(manifest, GivenToo(load=Load(rate_per_s=1.0), isl_tokens=1000, osl_tokens=1000), target)
    assert found.conflicts == ()
    back = found.deployment
    assert (back.hardware, back.model, back.precision) == (plan.hardware, plan.model, plan.precision)
    assert {role: settings(pool) for role, pool in back.pools.items()} == {r: settings(p) for r, p in plan.pools.items()}
