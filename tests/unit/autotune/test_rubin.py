"""Vera Rubin NVL72: datasheet figures and GB300's efficiencies, against the measured steps that are public."""

from __future__ import annotations

import numpy as np

from autotune.documents.deployment import Deployment
from autotune.predicting.step import predict
from cost_models.catalog import calibration_for, load_hardware

# GLM-5.2 NVFP4, TP4, SGLang 0.5.18, (sequences, context) -> decode step [s]
# (ai-dynamo/aisimulate benchmarks/evidence/accuracy/vr-nvl72-glm52.md at 78d208e, Apache-2.0). No coefficient has seen them.
MEASURED = {
    (1, 1024): 6.974e-3, (3, 1024): 7.1976e-3, (8, 1024): 8.75e-3, (29, 1024): 11.819e-3, (32, 1024): 12.0179e-3,
    (1, 8192): 6.9281e-3, (3, 8192): 7.5474e-3, (8, 8192): 8.821e-3, (29, 8192): 12.2791e-3, (32, 8192): 12.4937e-3,
}  # fmt: skip


def test_decode_steps_are_met_without_a_coefficient_of_its_own():
    errors = []
    for (sequences, context), measured_s in MEASURED.items():
        deployment = Deployment.model_validate({
            "hardware": "vr-nvl72", "model": "glm-5.2", "precision": "nvfp4", "engine": {"name": "sglang"}, "phase": "decode",
            "workload": {"isl_tokens": context, "osl_tokens": 2, "mean_context_tokens": context},
            "pools": {"decode": {"tp": 4, "batch_per_dp_rank": sequences}},
        })  # fmt: skip
        errors.append(predict(deployment).tpot_s / measured_s - 1)
    assert np.mean(np.abs(errors)) < 0.1
    assert np.max(np.abs(errors)) < 0.15


def test_nothing_about_it_is_called_measured():
    for engine in ("vllm", "sglang", "trtllm"):
        families = calibration_for("Rubin", engine).families.values()
        assert all(entry.status != "measured" for variants in families for entry in variants.values())


def test_a_rack_is_seventy_two_of_its_gpus():
    # 1,580 TB/s, 260 TB/s both ways and 288 PFLOPS in BF16 of a rack, over 72 GPUs
    hardware = load_hardware("vr-nvl72")
    assert hardware.gpu.hbm_bytes_per_s.value * 72 == 1584e12
    assert hardware.scale_up.bytes_per_s.value * 2 * 72 == 259.2e12
    assert hardware.gpu.peak_flops_per_s("bf16") * 72 == 288e15
