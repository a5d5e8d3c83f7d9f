"""AMD accelerators: one hardware file, one calibration and these claims each."""

from __future__ import annotations

import pytest

from autotune.documents.deployment import Deployment
from autotune.documents.problem import Problem
from autotune.exporters import export
from autotune.resolving import default_engine, resolve_problem
from autotune.searching.pools import search
from autotune.serving.predicting import predict_service
from cost_models.catalog import load_hardware

GPUS = ("mi300x", "mi325x", "mi355x")


@pytest.mark.parametrize("name", GPUS)
def test_an_accelerator_is_known_by_its_datasheet(name):
    hardware = load_hardware(name)
    assert default_engine(hardware) == "vllm"
    assert resolve_problem(Problem(hardware=name, model="deepseek-r1", engine="sglang")).machine.recipe.name == "fp8-block"
    # HBM streams a byte in the time of 200 to 700 BF16 FLOP, as on every accelerator of its generation
    assert 200 < hardware.gpu.peak_flops_per_s("bf16") / hardware.gpu.hbm_bytes_per_s.value < 700


def test_default_engines_follow_the_vendor():
    assert default_engine(load_hardware("gb200-nvl72")) == "vllm"
    assert default_engine(load_hardware("ascend-910b2")) == "vllm-ascend"


def test_plans_keep_off_kernels_of_another_vendor_and_switch_aiter_on():
    result = search(Problem(hardware="mi355x", model="deepseek-r1", trials=0, top_k=3))
    assert all("deepep" not in plan.deployment.pool.all2all_backend for plan in result.plans)
    script = "\n".join(script.text for script in export(result.best.deployment))
    assert "VLLM_ROCM_USE_AITER" in script


# DeepSeek-R1 in FP8 with SGLang on 8 MI355X, TP8, 8,192 in and 1,024 out, lengths 0.8-1 of that: mean TPOT of the newest runs
# (SemiAnalysisAI/InferenceX, Apache-2.0, 2026-05). No coefficient has seen them: they are those of H200.
MEASURED = {4: 12.369e-3, 16: 18.568e-3, 32: 26.430e-3, 64: 41.764e-3}


@pytest.mark.slow
def test_mi355x_is_predicted_from_efficiencies_of_another_vendor():
    errors = []
    for concurrency, measured_s in MEASURED.items():
        deployment = Deployment.model_validate({
            "hardware": "mi355x", "model": "deepseek-r1", "precision": "fp8-block", "engine": {"name": "sglang"},
            "phase": "serve",
            "workload": {"isl_tokens": 8192, "osl_tokens": 1024}, "load": {"concurrency": concurrency, "shortest": 0.8},
            "pools": {"serve": {"tp": 8}},
        })  # fmt: skip
        errors.append(abs(predict_service(deployment).tpot_s.mean / measured_s - 1))
    assert sum(errors) / len(errors) < 0.15
    assert max(errors) < 0.2
