"""What a calibration holds of older releases of its engine, and the kernel that vLLM up to 0.14 decodes FP8 experts with."""

import pytest

from cost_models.attention.decode import DecodeAttentionCoefficients, mla_decode_time_s
from cost_models.calibration import Calibration, Entry
from cost_models.catalog import calibration_for, load_calibration, load_hardware, load_model, load_recipe
from cost_models.errors import CatalogError, MissingFactError
from cost_models.grouped_gemm import GroupedGemmCoefficients, grouped_gemm_time_s
from cost_models.machine import Machine
from cost_models.moe_layer import kernel_variants
from cost_models.releases import up_to
from cost_models.rows import Rows
from cost_models.step import decode_step


def entry(value: float) -> Entry:
    return Entry(coefficients={"step_s": value}, status="assumed", source="a test")


def document() -> Calibration:
    return Calibration(
        id="some",
        title="some",
        applies_to={"gpus": ("H200",), "engine": "vllm"},
        date="2026-11-26",
        families={"host": {"default": entry(1)}, "norm": {"default": entry(9)}},
        earlier={
            "0.14": {"host": {"default": entry(3)}, "old": {"only": entry(5)}},
            "0.19": {"host": {"default": entry(2)}},
        },
    )


@pytest.mark.parametrize(
    ("version", "last", "within"),
    [
        ("0.12", "0.14", True),
        ("0.14", "0.14", True),
        ("0.14.1", "0.14", True),
        ("0.15", "0.14", False),
        ("1.3.0rc9", "1.3.0", True),
    ],
)
def test_a_patch_release_is_of_its_release(version, last, within):
    assert up_to(version, last) is within


@pytest.mark.parametrize(("release", "host"), [("0.12", 3), ("0.14.1", 3), ("0.15", 2), ("0.19.1", 2), ("0.20", 1)])
def test_what_ended_soonest_after_a_release_holds_for_it(release, host):
    at = document().at(release)
    assert at.entry("host", "default").coefficients == {"step_s": host}
    assert at.entry("norm", "default").coefficients == {"step_s": 9}


@pytest.mark.parametrize(("release", "small_kernel_us"), [("1.1.0rc2.post2", 2.1), ("1.2.0rc6", 1.3), ("1.3.0rc14", 1.3)])
def test_small_kernels_overlap_since_tensorrt_llm_launches_dependents_ahead(release, small_kernel_us):
    # 8 of them in a layer of DeepSeek with its norms in the all-reduce, 61 layers: 0.8 us each are 0.4 ms a step
    calibration = calibration_for(load_hardware("hgx-b200").gpu.name, "trtllm").at(release)
    assert calibration.entry("host", "default").coefficients["small_kernel_s"] == pytest.approx(small_kernel_us * 1e-6)


def test_a_kernel_of_older_releases_alone_is_absent_from_the_newest():
    assert document().at("0.14").has("old", "only")
    for newer in (document(), document().at("0.15")):
        with pytest.raises(MissingFactError):
            newer.entry("old", "only")


def test_a_recalibrated_document_keeps_older_releases():
    again = document().with_entries([("host", "default", entry(7))])
    assert again.at("0.30").entry("host", "default").coefficients == {"step_s": 7}
    assert again.at("0.15").entry("host", "default").coefficients == {"step_s": 2}


def test_releases_are_of_one_engine_and_statuses_go_down_with_the_gpu():
    assert "0.14" not in calibration_for("H200", "sglang").earlier
    held = load_calibration("hopper-vllm").earlier["0.14"]["grouped_gemm"]["fp8_block.padded"]
    assert held.status == "transferred"


def test_a_name_that_is_no_release_is_refused(tmp_path):
    text = "inherits: h200-vllm\nid: mine\ntitle: mine\ndate: '2026-11-26'\nearlier: {nightly: {}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(CatalogError, match="'nightly' is no release"):
        load_calibration(str(tmp_path / "mine.yaml"))


def test_spare_rows_are_worked_through_whoever_gets_tokens():
    """128 experts of 4,096 x 768, 16 tokens: 128 pairs + 128 x 127 rows = 16,384, 6 x 4,096 x 768 FLOPs each, 0.309 TFLOP."""
    shape = {
        "hidden": 4096, "intermediate": 768, "weight_bytes": 1.0, "activation_bytes": 1.0,
        "peak_flops_per_s": 1e15, "hbm_bytes_per_s": 1e30,
    }  # fmt: skip
    c = GroupedGemmCoefficients(start_s=0, compute_efficiency=1, memory_efficiency=1, sharpness=8, spare_rows=127)
    assert grouped_gemm_time_s(128, 128, 82, 16, 1, coefficients=c, **shape) == pytest.approx(16_384 * 6 * 4096 * 768 / 1e15)


def step_s(release: str, tp: int, batch: int) -> float:
    calibration = calibration_for("H200", "vllm").at(release)
    on = Machine(load_model("qwen3-235b-a22b"), load_hardware("hgx-h200"), load_recipe("fp8-block"), calibration, 1.57)
    return float(decode_step(on, Rows.of(tp=tp, batch=batch), 2000).step_s[0])


def test_padding_costs_the_same_whatever_the_batch_and_half_with_twice_the_ranks():
    """Public rows of vLLM 0.12: 51 ms a token with 7 to 16 in flight on two H200, 34 to 37 with 14 to 48 on four."""
    excess = {(tp, batch): step_s("0.12", tp, batch) - step_s("0.24", tp, batch) for tp in (2, 4) for batch in (8, 16)}
    assert excess[2, 16] == pytest.approx(excess[2, 8], rel=0.25)
    assert 1.3 < excess[2, 8] / excess[4, 8] < 2


def test_eight_ranks_and_newer_releases_take_the_fused_kernel():
    assert step_s("0.14", 8, 8) == step_s("0.24", 8, 8)
    assert step_s("0.17", 2, 8) == step_s("0.24", 2, 8)
    on = Machine(
        load_model("qwen3-235b-a22b"),
        load_hardware("hgx-h200"),
        load_recipe("fp8-block"),
        calibration_for("H200", "vllm").at("0.12"),
    )
    assert kernel_variants(on, "none", "decode") == ("fp8_block.padded",)
    assert kernel_variants(on, "none", "decode", wide=True) == ("fp8_block",)
    assert kernel_variants(on, "deepep_low_latency", "decode") == ("fp8_block.masked",)


def mla_us(release: str, sequences: int, context: int) -> float:
    """One layer's FP8 core of DeepSeek-V3 on a B200 with TensorRT-LLM."""
    gpu = load_hardware("hgx-b200").gpu
    c = calibration_for("B200", "trtllm").at(release).get("mla_decode", "fp8", DecodeAttentionCoefficients)
    time_s = mla_decode_time_s(
        sequences, context, 128, 1, latent_dim=512, rope_dim=64, kv_bytes=1.0, peak_flops_per_s=gpu.peak_flops_per_s("fp8"),
        hbm_bytes_per_s=gpu.hbm_bytes_per_s.value, processors=gpu.processors.value, coefficients=c,
    )  # fmt: skip
    return float(time_s) * 1e6


def test_trtllm_up_to_1_0_decodes_an_fp8_cache_at_two_thirds_of_the_rate_of_1_1():
    # aiconfigurator 0.8.0, 1,024 sequences of 2,048 tokens: 495 us on B200 with 1.0.0rc6, 327 us on GB200 with 1.1.0.
    # 1024 x 2048 x 128 heads x 2 x (2 x 512 + 64) FLOP = 584 GFLOP, at 4.5 PFLOPS 130 us: neither is faster than the machine.
    assert mla_us("1.0.0rc6", 1024, 2048) == pytest.approx(495, rel=0.1)
    assert mla_us("1.1.0rc2", 1024, 2048) == pytest.approx(327, rel=0.1)
    assert mla_us("1.0.0", 1024, 2048) > 1.4 * mla_us("1.1.0", 1024, 2048) > 1.4 * 130


def test_what_releases_had_is_inherited_beside_a_document_s_own():
    """B200 has an older attention of its own; that small kernels were launched one by one up to 1.1 it has from its family."""
    earlier = calibration_for("B200", "trtllm").earlier
    assert {last: set(families) for last, families in earlier.items()} == {"1.0": {"mla_decode"}, "1.1": {"host"}}
    own = load_calibration("b200-trtllm").earlier["1.0"]["mla_decode"]["bf16"]
    assert own != load_calibration("gb200-trtllm").earlier["1.0"]["mla_decode"]["bf16"]


@pytest.mark.parametrize(("engine", "kernel"), [("vllm", "fp8_block.cutlass"), ("sglang", "fp8_block")])
def test_whole_experts_in_fp8_blocks_take_cutlass_from_vllm_alone(engine, kernel):
    on = Machine(
        load_model("minimax-m2"), load_hardware("hgx-h200"), load_recipe("fp8-block"), calibration_for("H200", engine), 1.57
    )
    assert kernel_variants(on, "none", "decode", whole=True) == (kernel,)
    assert kernel_variants(on, "none", "prefill", whole=False) == ("fp8_block",)


def test_two_releases_take_cutlass_whatever_the_parallelism():
    newest = calibration_for("H200", "vllm")
    entries = {
        release: newest.at(release).entry("grouped_gemm", "fp8_block").coefficients for release in ("0.14", "0.16", "0.17")
    }
    assert entries["0.16"] == newest.entry("grouped_gemm", "fp8_block.cutlass").coefficients
    assert entries["0.14"] == entries["0.17"] == newest.entry("grouped_gemm", "fp8_block").coefficients
