"""Steps that hold prompts and decode, and the hand-over of KV caches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autotune.serving.policies import GENERATIONS
from cost_models import catalog
from cost_models.attention.gated_delta import GatedDeltaSpec
from cost_models.kv_transfer import HandoverCoefficients, handover_bytes_s, link_bytes_per_s
from cost_models.machine import Machine
from cost_models.memory import MemoryCoefficients, decode_memory, state_bytes
from cost_models.operators import gemm
from cost_models.prefill import prefill_step
from cost_models.rows import Rows
from cost_models.serving import ServiceCoefficients, joined_s, prompt_step
from cost_models.specs.workload import Workload


def _machine(hardware: str, engine: str, recipe: str = "fp8-block", model: str = "deepseek-r1") -> Machine:
    spec = catalog.load_hardware(hardware)
    calibration = catalog.calibration_for(spec.gpu.name, engine)
    return Machine(catalog.load_model(model), spec, catalog.load_recipe(recipe), calibration)


def test_decoding_sequences_fill_the_gaps_between_eager_launches_first():
    # 50 ms with 8 ms of gaps: 5 ms of attention disappear in them, 12 ms leave 4 ms over
    assert joined_s(0.05, 0.008, [0.0, 0.005, 0.012]) == pytest.approx([0.05, 0.05, 0.054])


def test_the_parts_of_a_prompt_step_are_the_step():
    cost = prefill_step(
        _machine("hgx-h200", "sglang"), Rows.of(tp=8, batched_tokens=[512, 8192]), Workload(isl_tokens=1024, osl_tokens=1)
    )
    parts = prompt_step(cost)
    assert parts.whole_s == pytest.approx(cost.step_s)
    assert (parts.core_s > 0).all()
    assert (parts.gaps_s >= 0).all()
    assert (parts.own_s > parts.gaps_s).all()


def test_hand_over_takes_bytes_over_the_link():
    """32,768 tokens of 61 layers x 576 B of FP8 latents are 1.15 GB: one 25 GbE NIC among eight GPUs passes 0.39 GB/s."""
    machine = _machine("h20-4node-25gbe", "sglang")
    c = HandoverCoefficients(start_s=0.08, efficiency=0.8)
    latents = state_bytes(machine, Rows.of(tp=1), 32_768)
    per_token = float(latents[0]) / 32_768
    slow, fast = link_bytes_per_s(machine.hardware, False), link_bytes_per_s(_machine("gb200-nvl72", "sglang").hardware, True)
    assert slow == pytest.approx(25e9 / 8 / 8)
    assert handover_bytes_s(latents, slow, c)[0] == pytest.approx(32_768 * per_token / (25e9 / 64 * 0.8))
    assert handover_bytes_s(latents, slow, c)[0] > 3.0
    assert handover_bytes_s(latents, fast, c)[0] < 0.01
    overlapped = HandoverCoefficients(start_s=0.08, efficiency=0.8, overlapped=0.75)
    assert handover_bytes_s(latents, slow, overlapped) == pytest.approx(handover_bytes_s(latents, slow, c) / 4)


@pytest.mark.parametrize(
    ("gpu", "engine"),
    [*((gpu, engine) for gpu in ("H200", "GB200") for engine in ("vllm", "sglang", "trtllm")), ("910C", "vllm-ascend")],
)
def test_layout_search_and_the_replay_agree_which_engines_mix(gpu, engine):
    """The closed form reads `mixed` of the calibration, the replay its policy."""
    mixed = catalog.calibration_for(gpu, engine).get("serving", "default", ServiceCoefficients).mixed
    assert {policy.mixes for _, policy in GENERATIONS[engine]} == {bool(mixed)}


def test_one_gpu_alone_needs_no_communicators():
    machine = _machine("hgx-h100", "vllm", "bf16", "llama-3.1-8b")
    c = machine.coefficients("memory", "default", MemoryCoefficients)
    workload = Workload(isl_tokens=1000, osl_tokens=100)
    runtime = decode_memory(machine, Rows.of(tp=np.array([1, 2]), batch=1), workload).lines["runtime"]
    assert runtime[1] - runtime[0] == pytest.approx(c.communicator_bytes)
    assert c.communicator_bytes > 0


def test_a_router_in_fp32_runs_without_tensor_cores():
    """MiniMax-M2 on an H100: 2 x 8,192 x 3,072 x 256 FLOPs are 12.9 GFLOP; 67 TFLOP/s take 192 us, 989 of BF16 13 us."""
    on = _machine("hgx-h100", "vllm", model="minimax-m2")
    assert on.dtype("router_fp32") == "fp32"
    rows, workload = Rows.of(tp=4, batched_tokens=8192), Workload(isl_tokens=8192, osl_tokens=1)
    routing = prefill_step(on, rows, workload).layers[0].operators["router"]
    assert routing.bound_s[0] == pytest.approx(192e-6, rel=5e-3)
    assert 192e-6 < routing.time_s[0] < 400e-6  # timed: 257 us, and 79 us to widen the inputs
    as_bf16 = dataclasses.replace(on, recipe=on.recipe.model_copy(update={"router_fp32": "bf16"}))
    assert prefill_step(as_bf16, rows, workload).layers[0].operators["router"].time_s[0] < 50e-6


def test_a_router_in_fp32_is_priced_as_bf16_where_fp32_was_not_timed():
    assert _machine("mi355x", "sglang", model="minimax-m2").dtype("router_fp32") == "bf16"


def test_a_short_prompt_of_recurrent_layers_waits_for_its_launches():
    """A layer's floor grows by eager_scan_s where there is a scan, and by nothing where there is none."""
    on = _machine("hgx-h200", "sglang", model="qwen3.5-397b-a17b")
    host = on.calibration.entry("host", "default")
    without = {name: value for name, value in host.coefficients.items() if name != "eager_scan_s"}
    bare = dataclasses.replace(
        on, calibration=on.calibration.with_entries([("host", "default", host.model_copy(update={"coefficients": without}))])
    )
    rows, workload = Rows.of(tp=8, batched_tokens=16, graph_tokens=0), Workload(isl_tokens=16, osl_tokens=1)
    pairs = zip(on.model.groups, prefill_step(on, rows, workload).layers, prefill_step(bare, rows, workload).layers, strict=True)
    for group, layer, other in pairs:
        scans = any(name.endswith("_scan") for name in layer.operators)
        added = host.coefficients["eager_scan_s"] if scans else 0.0
        assert layer.time_s[0] - other.time_s[0] == pytest.approx(added), group.attention
    assert host.coefficients["eager_scan_s"] > 5e-4


def test_sglang_multiplied_a_delta_layers_input_four_times_up_to_0_5_9():
    """On eight ranks: queries, keys and values (1,536 columns), gate (1,024), rates and decays (8 each), each by itself."""
    newest, model = catalog.calibration_for("B200", "sglang"), catalog.load_model("qwen3.5-397b-a17b")
    spec, recipe = catalog.load_hardware("hgx-b200"), catalog.load_recipe("fp8-block")
    older, newer = (Machine(model, spec, recipe, newest.at(release)) for release in ("0.5.9", "0.5.10"))
    kind = next(group.attention for group in model.groups if isinstance(group.attention, GatedDeltaSpec))
    m, ranks = np.array([4.0]), np.array([8.0])
    apart, fused = kind.projections(older, m, ranks), kind.projections(newer, m, ranks)
    rates = gemm(newer, "bf16", m, 8, model.hidden)  # narrower than a block of 128, so not in FP8
    assert apart["delta_decay"][0] == pytest.approx(2 * rates[0])
    start_s = newest.entry("dense_gemm", "fp8_block").coefficients["start_s"]
    assert 0.8 * start_s < (apart["delta_in"][0] - fused["delta_in"][0])[0] < 1.5 * start_s
    assert apart["delta_out"] == fused["delta_out"]
