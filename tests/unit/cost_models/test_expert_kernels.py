"""Expert kernels that TensorRT-LLM is told to take: which one is priced, under which name, and what it costs."""

import numpy as np
import pytest

from cost_models.catalog import calibration_for, load_hardware, load_model, load_recipe
from cost_models.expert_kernels import EXPERT_KERNELS, TAKEN, kernel_variant, own_kernel, priced_instead, taken_kernel
from cost_models.machine import Machine
from cost_models.moe_layer import kernel_variants, moe_operators
from cost_models.rows import Rows


def machine(recipe: str, hardware: str = "hgx-b200") -> Machine:
    loaded = load_hardware(hardware)
    return Machine(
        load_model("deepseek-r1"),
        loaded,
        load_recipe(recipe),
        calibration_for(loaded.gpu.name, "trtllm"),
    )


def experts_s(told: str, recipe: str, tokens: float, **layout: int) -> float:
    rows = Rows.of(expert_kernel=EXPERT_KERNELS.index(told), imbalance=1.0, **layout)
    return float(moe_operators(machine(recipe), rows, np.array([tokens]))["experts"].time_s[0])


@pytest.mark.parametrize("key", TAKEN)
def test_what_is_taken_is_a_kernel_that_can_be_told(key):
    for spread in (False, True):
        assert taken_kernel(*key, spread) in EXPERT_KERNELS


def test_an_architectures_usual_kernel_stands_under_the_dtype_alone():
    assert kernel_variant("blackwell", "nvfp4", "trtllm_gen") == "nvfp4"
    assert kernel_variant("blackwell", "nvfp4", "cutlass") == "nvfp4.cutlass"
    assert kernel_variant("hopper", "fp8_block", "cutlass") == "fp8_block"
    assert kernel_variant("blackwell", "nvfp4", "wideep") == "nvfp4.cutlass", "WIDEEP calls CUTLASS's kernels"


def test_left_to_the_engine_it_is_cutlass_but_for_fp8_blocks_of_newer_releases():
    assert own_kernel("blackwell", "nvfp4", True) == "cutlass"
    assert own_kernel("blackwell", "fp8_block", False) == "cutlass"
    assert own_kernel("blackwell", "fp8_block", True) == "trtllm_gen"
    assert own_kernel("hopper", "fp8_block", True) == "cutlass"
    assert own_kernel("blackwell", "mxfp4_mxfp8", True) == "auto", "gpt-oss has one of its own on each architecture"


def test_a_kernel_without_timings_is_said_to_be_priced_by_another():
    known = calibration_for("B200", "trtllm")
    assert priced_instead("blackwell", "nvfp4", "cutedsl", known) == "trtllm_gen"
    assert priced_instead("blackwell", "nvfp4", "deepgemm", known) == "the usual kernel for nvfp4"
    assert priced_instead("blackwell", "nvfp4", "cutlass", known) is None
    assert priced_instead("blackwell", "nvfp4", "auto", known) is None


def test_cutlass_takes_longer_than_trtllm_gen_at_every_size():
    """As timed on B200 (DeepSeek's layer, EP8): 197 against 95 us at 32 tokens, 865 against 684 at 8,192."""
    for tokens in (4, 32, 256, 1024):
        layout = {"dp": 8, "ep": 8, "backend": 1}
        ratio = experts_s("cutlass", "nvfp4", tokens, **layout) / experts_s("trtllm_gen", "nvfp4", tokens, **layout)
        assert 1.1 < ratio < 3, tokens


def test_deepgemm_is_for_large_steps():
    """As timed on B200 in TP8: 220 against 102 us at 16 tokens; in EP8 762 against 2,494 us at 8,192 tokens."""
    small = [experts_s(told, "fp8-block", 16, tp=8) for told in ("deepgemm", "trtllm_gen")]
    large = [experts_s(told, "fp8-block", 1024, dp=8, ep=8, backend=1) for told in ("deepgemm", "trtllm_gen")]
    assert small[0] > 1.5 * small[1]
    assert 1.9 * large[0] < large[1]


@pytest.mark.parametrize(("told", "whole"), [("deepgemm", True), ("cutlass", True), ("wideep", True), ("trtllm_gen", False)])
def test_kernels_that_quantise_blocks_themselves_are_handed_whole_bf16_tokens(told, whole):
    """7,168 elements: 2 bytes each instead of 1 and a scale per 128; a gather that is bound by its bytes takes twice as long."""
    rows = Rows.of(expert_kernel=EXPERT_KERNELS.index(told), dp=8, ep=8, backend=1, imbalance=1.0)
    on = machine("fp8-block")
    quantised = rows.replace(expert_kernel=EXPERT_KERNELS.index("trtllm_gen"))
    times = [float(moe_operators(on, r, np.array([8192.0]))["dispatch"].time_s[0]) for r in (rows, quantised)]
    assert times[0] == pytest.approx((2 if whole else 1) * times[1], rel=0.1)
    assert on.sends_bf16_to(told, False) == whole
    assert not machine("nvfp4").sends_bf16_to(told, False)


def test_decode_takes_the_kernel_of_attention_dp_and_prompts_the_other():
    on = machine("nvfp4")
    assert kernel_variants(on, "allgather_reducescatter", "decode", "auto", True) == ("nvfp4.cutlass",)
    assert kernel_variants(on, "allgather_reducescatter", "prefill", "auto", True) == ("nvfp4",)
    assert kernel_variants(on, "none", "decode", "auto", False) == ("nvfp4",)


def test_engines_that_are_told_none_choose_with_the_all_to_all():
    loaded = load_hardware("hgx-b200")
    on = Machine(load_model("deepseek-r1"), loaded, load_recipe("fp8-block"), calibration_for("B200", "sglang"))
    assert not on.chooses_expert_kernel
    assert kernel_variants(on, "deepep_low_latency", "decode", "auto", True) == ("fp8_block.masked",)
