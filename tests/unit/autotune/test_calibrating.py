"""Importers and documents: units, traps, refusals, and that nothing is dropped in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autotune.calibrating.document import new_document, write_document
from autotune.calibrating.fits import fit_table
from autotune.calibrating.infersim import read_infersim
from autotune.calibrating.silicon import read_silicon, sources
from autotune.calibrating.silicon_kernels import TRITON, absorb_rows, busiest_rank, expert_rows, static_scales
from autotune.calibrating.timings import merge, read_timings
from autotune.errors import ProblemError
from cost_models.catalog import calibration_for, load_calibration, load_hardware, raw_calibration
from cost_models.dense_gemm import DenseGemmCoefficients, dense_gemm_time_s

H200 = {"peak_flops_per_s": 989e12, "hbm_bytes_per_s": 4.8e12, "processors": 132.0}


def gemm_rows(gpu: str = "H200") -> pd.DataFrame:
    """Synthetic BF16 timings, 20 % slower than the shipped kernel would be."""
    m, n, k = (a.ravel() for a in np.meshgrid([1, 16, 64, 256, 1024, 4096], [512, 2112, 4096, 7168], [512, 1536, 7168, 16384]))
    c = DenseGemmCoefficients(3e-6, 0.7, 0.7, 2.5, k_prologue=100, tile_fill=1.0, split_start_s=2e-6)
    time = dense_gemm_time_s(m, n, k, weight_bytes=2, activation_bytes=2, coefficients=c, **H200)
    return pd.DataFrame({"operator": "dense_gemm", "dtype": "bf16", "gpu": gpu, "m": m, "n": n, "k": k, "latency_us": time * 1e6})


def written(frame: pd.DataFrame, path: Path) -> Path:
    writers = {".csv": lambda: frame.to_csv(path, index=False), ".parquet": lambda: frame.to_parquet(path)}
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        writers[path.suffix]()
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_formats_and_units_read_alike(tmp_path, suffix):
    frame = gemm_rows()
    table = read_timings(written(frame, tmp_path / f"t{suffix}"))
    assert table.rows.latency_s.to_numpy() == pytest.approx(frame.latency_us.to_numpy() * 1e-6)
    in_ms = frame.drop(columns="latency_us").assign(latency_ms=frame.latency_us / 1e3)
    again = read_timings(written(in_ms, tmp_path / f"ms{suffix}"))
    assert again.rows.latency_s.to_numpy() == pytest.approx(table.rows.latency_s.to_numpy())
    assert table.rows.source.str.contains("sha256").all()


def test_unknown_operators_are_counted(tmp_path):
    frame = pd.concat([gemm_rows(), gemm_rows().head(3).assign(operator="softmax")])
    assert read_timings(written(frame, tmp_path / "t.csv")).dropped == {"unknown operator softmax": 3}


def test_duplicates_are_counted(tmp_path):
    table = read_timings(written(gemm_rows(), tmp_path / "t.csv"))
    assert merge([table, table]).dropped == {"duplicate rows": len(table.rows)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(latency_ms=1.0), "do not mix units"),
        (lambda f: f.drop(columns="latency_us"), "found none"),
        (lambda f: f.assign(latency_us=f.latency_us.where(f.index != 4, 0)), r"1 latencies are not positive numbers \(lines 6"),
        (lambda f: f.assign(latency_us=f.latency_us.where(f.index != 4)), "1 latencies are not positive"),
        (lambda f: f.assign(latency_us=-f.latency_us), "96 latencies are not positive"),
        (lambda f: f.drop(columns="k"), "missing or empty: k"),
        (lambda f: f.drop(columns="gpu"), "columns gpu are missing"),
        (lambda f: f.assign(operator="softmax"), "no row has a known operator"),
        (lambda f: f.head(0), "no rows"),
    ],
)
def test_bad_tables_are_one_message(tmp_path, change, message):
    with pytest.raises(ProblemError, match=message):
        read_timings(written(change(gemm_rows()), tmp_path / "t.csv"))


def test_a_truncated_file_is_one_message(tmp_path):
    path = written(gemm_rows(), tmp_path / "t.parquet")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ProblemError, match="cannot be read"):
        read_timings(path)
    with pytest.raises(ProblemError, match="no such file"):
        read_timings(tmp_path / "missing.csv")
    with pytest.raises(ProblemError, match="unknown format"):
        read_timings(written(gemm_rows(), tmp_path / "t.csv").rename(tmp_path / "t.txt"))


def test_timings_of_another_gpu_are_refused(tmp_path):
    table = read_timings(written(gemm_rows("H100"), tmp_path / "t.csv"))
    with pytest.raises(ProblemError, match="timings are of H100, hgx-h200 has H200"):
        fit_table(table, load_hardware("hgx-h200"), calibration_for("H200", "vllm"))


def test_too_few_points_say_how_many_are_needed(tmp_path):
    table = read_timings(written(gemm_rows().head(8), tmp_path / "t.csv"))
    with pytest.raises(ProblemError, match="coefficients need 24"):
        fit_table(table, load_hardware("hgx-h200"), calibration_for("H200", "vllm"))


def test_a_new_document_replaces_what_was_fitted_and_keeps_the_rest(tmp_path):
    table = read_timings(written(gemm_rows(), tmp_path / "t.csv"))
    fitted, skipped = fit_table(table, load_hardware("hgx-h200"), calibration_for("H200", "vllm"))
    assert skipped == {}
    document = new_document(
        "h200-vllm", [(f.family, f.variant, f.entry) for f in fitted], name="mine", gpu="H200", engine="vllm", date="2026-01-01"
    )
    path = tmp_path / "mine.yaml"
    write_document(document, path)
    mine, shipped = load_calibration(str(path)), calibration_for("H200", "vllm")
    entry = mine.entry("dense_gemm", "bf16")
    assert entry.box == {"m": (1, 4096), "n": (512, 7168), "k": (512, 16384)}
    assert entry.fit is not None
    assert entry.fit.median_error < 0.03
    assert all(
        low <= entry.coefficients[name] * 1.001 and entry.coefficients[name] <= high * 1.001
        for name, (low, high) in entry.ci95.items()
    )
    assert mine.entry("mla_decode", "bf16") == shipped.entry("mla_decode", "bf16")


def test_a_base_shared_by_several_gpus_is_inherited_not_copied():
    assert len(raw_calibration("hopper-vllm")["applies_to"]["gpus"]) > 1
    document = new_document("hopper-vllm", [], name="mine", gpu="H20", engine="vllm", date="2026-01-01")
    assert (document["inherits"], document["inherited_status"]) == ("hopper-vllm", "transferred")
    assert document["families"] == {}


def silicon_tree(root: Path) -> Path:
    """A few rows of each table with its traps."""

    def put(frame: pd.DataFrame, *parts: str) -> None:
        path = root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(path)

    gemm = pd.DataFrame(
        {
            "gemm_dtype": ["bfloat16", "bfloat16", "bfloat16", "fp8_block", "int4", "bfloat16"],
            "m": [16, 16, 16, 16, 16, 32],
            "n": [4096, 4096, 128, 4096, 4096, 4096],
            "k": [7168] * 6,
            "latency": [0.010, 0.012, 0.005, 0.495, 0.01, 0.0],
        }
    )
    put(gemm, "h200_sxm", "gemm", "vllm", "0.24.0", "gemm_perf.parquet")
    shape = {"device": "NVIDIA H200", "num_heads": 16, "batch_size": 4, "isl": 1, "step": 1023}
    mla = pd.DataFrame({**shape, "kv_cache_dtype": ["bfloat16", "fp8"], "latency": [0.02, 0.08]})
    put(mla, "h200_sxm", "mla", "sglang", "0.5.14", "generation_mla_perf.parquet")
    moe = pd.DataFrame(
        {
            "moe_dtype": "nvfp4",
            "num_tokens": [64, 64, 64, 65536],
            "hidden_size": [7168, 7168, 4096, 7168],
            "inter_size": 2048,
            "topk": 8,
            "num_experts": 256,
            "moe_tp_size": 1,
            "moe_ep_size": 8,
            "distribution": ["power_law_1.2", "balanced", "power_law_1.2", "power_law_1.2"],
            "kernel_source": "sglang_flashinfer_trtllm_moe",
            "latency": 0.1,
        }
    )
    put(moe, "gb200", "moe", "sglang", "0.5.14", "moe_perf.parquet")
    prefill = pd.DataFrame(
        {
            "device": "NVIDIA H200",
            "kernel_source": ["default", "default", "flash_attention"],
            "kv_cache_dtype": "bfloat16",
            "num_heads": 128,
            "batch_size": 2,
            "isl": [4096, 8, 4096],
            "step": 0,
            "latency": [2.0, 0.01, 6.0],
        }
    )
    put(prefill, "h200_sxm", "mla", "trtllm", "1.3.0", "context_mla_perf.parquet")
    nccl = pd.DataFrame(
        {
            "op_name": ["all_gather", "reduce_scatter", "alltoall"],
            "nccl_dtype": "half",
            "num_gpus": 4,
            "message_size": 1024,
            "latency": [0.01, 0.02, 0.03],
        }
    )
    put(nccl, "h200_sxm", "comm", "nccl", "2.29.2", "nccl_perf.parquet")
    deepep = pd.DataFrame(
        {
            "device": "NVIDIA H200",
            "node_num": [2, 8],
            "hidden_size": 7168,
            "num_token": 4096,
            "num_topk": 8,
            "num_experts": 256,
            "dispatch_sms": 24,
            "combine_sms": 24,
            "dispatch_transmit_us": 800.0,
            "dispatch_notify_us": 50.0,
            "combine_transmit_us": 2000.0,
            "combine_notify_us": 60.0,
        }
    )
    put(deepep, "h200_sxm", "comm", "sglang", "0.5.6.post2", "wideep_deepep_normal_perf.parquet")
    alltoall = pd.DataFrame(
        {
            "kernel_source": ["NVLinkOneSided", "NVLinkTwoSided"],
            "op_name": "alltoall_dispatch",
            "moe_dtype": "nvfp4",
            "num_tokens": 64,
            "hidden_size": 7168,
            "topk": 8,
            "num_experts": 256,
            "moe_ep_size": 4,
            "latency": 0.02,
        }
    )
    put(alltoall, "gb200", "comm", "trtllm", "1.3.0rc10", "trtllm_alltoall_perf.parquet")
    return root


def rows_of(table, operator: str) -> pd.DataFrame:
    return table.rows[table.rows.operator == operator]


def test_silicon_gemm_rows_are_milliseconds_and_traps_are_counted(tmp_path):
    table = read_silicon("H200", "vllm", silicon_tree(tmp_path))
    # duplicates by median: 11 us; the 128-wide, the eager fp8_block, the int4 and the zero row are left out
    assert rows_of(table, "dense_gemm").latency_s.tolist() == pytest.approx([11e-6])
    assert table.dropped["gemm: n or k below 256"] == 1
    assert table.dropped["gemm: eager-launch rows (vllm fp8_block)"] == 1
    assert table.dropped["gemm: dtype not modelled"] == 1
    assert table.dropped["duplicate keys (median kept)"] == 1
    assert table.dropped["latency not positive"] == 1


def test_absorbing_kernels_are_read_in_bf16_and_one_by_one():
    pd = pytest.importorskip("pandas")
    raw = pd.DataFrame(
        [("mla_gen_pre", "bfloat16", 0.035), ("mla_gen_post", "bfloat16", 0.033), ("mla_gen_pre", "fp8", 0.193)],
        columns=["op_name", "bmm_dtype", "latency"],
    ).assign(num_tokens=1024, num_heads=128)
    rows, dropped = absorb_rows(raw, "sglang")
    assert sorted(rows.latency_ms) == [0.033, 0.035]
    assert dropped["mla_bmm: FP8 rows"] == 1


def test_experts_of_one_dtype_are_read_of_one_kernel():
    pd = pytest.importorskip("pandas")
    layer = {"hidden_size": 3072, "inter_size": 1536, "num_experts": 256, "topk": 8, "moe_tp_size": 1, "moe_ep_size": 1}
    raw = pd.DataFrame(
        {"kernel_source": [TRITON, "sglang_flashinfer_trtllm_moe", TRITON], "moe_dtype": ["fp8_block", "fp8_block", "bfloat16"]}
    )
    raw = raw.assign(**layer, num_tokens=64, distribution="power_law_1.2", latency=[0.8, 0.4, 0.9])
    rows, dropped = expert_rows(raw, "sglang")
    # Triton's FP8 row stands beside TRTLLM-gen's; BF16 has no other
    assert sorted(rows.latency_ms) == [0.4, 0.9]
    assert dropped["moe: Triton, where the other layers of the dtype run another kernel"] == 1


def test_quantising_that_serving_does_elsewhere_is_taken_off():
    pd = pytest.importorskip("pandas")
    raw = pd.DataFrame({"gemm_dtype": ["fp8", "fp8", "bfloat16"], "m": [16, 1, 16], "k": 8192, "latency": [0.010, 0.004, 0.010]})
    beside = pd.DataFrame({"quant_dtype": "fp8", "m": [1, 16], "k": 8192, "latency": [0.003, 0.002]})
    # 10 - 2 us; 4 - 3 us would leave less than 0.3 of 4; BF16 quantises nothing
    assert static_scales(raw, beside).latency.tolist() == pytest.approx([0.008, 0.0012, 0.010])


def test_tensorrt_llm_reads_tuned_gemms_and_is_handed_fp8():
    def gemms(engine, gpu):
        return [source for source in sources(engine, gpu) if source.file == "gemm_perf.parquet"]

    (own, tuned), (hopper,) = gemms("trtllm", "GB200"), gemms("trtllm", "H200")
    assert (own.owner, tuned.owner) == (None, "vllm")
    assert own.beside == hopper.beside
    assert [file for _, file in own.beside] == ["computescale_perf.parquet", "scale_matrix_perf.parquet"]
    assert [file for _, file in gemms("vllm", "GB200")[0].beside] == ["computescale_perf.parquet"]


def test_nvfp4_gemms_are_read_of_the_newer_package_alone():
    on_blackwell = [source for source in sources("vllm", "GB200") if source.file == "gemm_perf.parquet"]
    assert {source.package for source in on_blackwell} == {"aiconfigurator_core", "aisimulate_core"}
    assert all(
        source.package == "aiconfigurator_core" for source in sources("vllm", "H200") if source.file == "gemm_perf.parquet"
    )


def test_silicon_mla_rows_of_the_fallback_kernel_are_left_out(tmp_path):
    table = read_silicon("H200", "sglang", silicon_tree(tmp_path))
    rows = rows_of(table, "mla_decode")
    assert rows.dtype.tolist() == ["bf16"]
    assert rows.context_tokens.tolist() == [1024]
    assert table.dropped["mla: other kernels than the engine's step runs (sglang fp8)"] == 1


@pytest.mark.parametrize("engine", ["sglang", "vllm", "trtllm"])
def test_silicon_expert_rows_come_from_the_table_of_the_shared_kernel(tmp_path, engine):
    table = read_silicon("GB200", engine, silicon_tree(tmp_path))
    row = rows_of(table, "grouped_gemm").iloc[0]
    assert (row["operator"], row["dtype"], row.local_experts, row.input_tokens) == ("grouped_gemm", "nvfp4", 32, 64)
    assert 64 <= row.pairs <= 512  # the busiest of eight ranks has at least its share of 512 pairs
    assert table.dropped["moe: balanced rows (another gate)"] == 1
    assert table.dropped["moe: other models or dtypes"] == 1
    assert table.dropped["moe: above 16384 tokens or EP 8"] == 1


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_hopper_prefill_is_read_from_the_only_unabsorbed_table(tmp_path, engine):
    table = read_silicon("H200", engine, silicon_tree(tmp_path))
    assert rows_of(table, "mla_prefill").latency_s.tolist() == pytest.approx([2e-3])
    assert table.dropped["mla prefill: absorbed path (sglang on Hopper)"] == 1
    assert table.dropped["mla prefill: prompts below 16"] == 1


def test_nccl_sizes_are_elements_of_the_whole_buffer(tmp_path):
    # 1,024 halves gathered from 4 GPUs: 256 elements of 2 bytes each contribute
    table = read_silicon("H200", "vllm", silicon_tree(tmp_path))
    gathered = rows_of(table, "allgather_reducescatter.dispatch").iloc[0]
    assert (gathered.tokens, gathered.token_bytes, gathered.ranks, gathered.latency_s) == (256, 2, 4, pytest.approx(1e-5))
    assert table.dropped["nccl: all_reduce and alltoall"] == 1


def test_deepep_rows_are_microseconds_of_fp8_out_and_bf16_back(tmp_path):
    table = read_silicon("H200", "sglang", silicon_tree(tmp_path))
    out, back = (rows_of(table, f"deepep_normal.{d}").iloc[0] for d in ("dispatch", "combine"))
    assert (out.ranks, out.latency_s, out.token_bytes) == (16, pytest.approx(850e-6), 7168 * (1 + 4 / 128) + 8 * 8)
    assert (back.latency_s, back.token_bytes) == (pytest.approx(2060e-6), 14336)
    assert table.dropped["deepep normal: 8 nodes (waits in notify)"] == 1


def test_one_sided_rows_send_to_as_many_ranks_as_there_are(tmp_path):
    # perfect router on 4 ranks: 4 copies of 7,168 x 0.5625 B and 64 B of routing, 3 of them remote
    row = rows_of(read_silicon("GB200", "trtllm", silicon_tree(tmp_path)), "nvlink_one_sided.dispatch").iloc[0]
    assert (row.top_k, row.token_bytes) == (1, pytest.approx(4 * (7168 * 0.5625 + 64)))


INFERSIM_SAMPLE = {
    "gemm/h20/data.csv": "m,k,n,latency_us,mfu\n16,2048,6144,10.63,0.1\n16,2048,128,9.0,0.1\n",
    "mla/decode/h20/128-512-64.csv": (
        "dtype,kv_dtype,batch_size,kv_len,latency_us,mfu\nbf16,bf16,1,1024,25.1,0.1\nbf16,bf16,64,4096,689.6,0.5\n"
    ),
    "mha/decode/h20/64-2-128.csv": "bf16,bf16,64,4096,300.0,0.1\n",
    "grouped_gemm/decode/h20/data.csv": (
        "num_experts,num_gpus,num_local_experts,topk,hidden_size,intermediate_size,batch_size_per_gpu,tokens_per_expert,"
        "up_proj_us,up_mfu,down_proj_us,down_mfu\n96,4,24,8,2048,1560,16,5,97.5,0.05,51.6,0.04\n"
    ),
    "gemm/h800/data.csv": "m,k,n,latency_us,mfu\n16,7168,1536,16.4,0.1\n",
}


def infersim_tree(root: Path) -> Path:
    for name, text in INFERSIM_SAMPLE.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_infersim_rows_are_kernels_of_one_gpu_with_its_traps_counted(tmp_path):
    table = read_infersim(infersim_tree(tmp_path), "H20")
    assert set(table.rows.gpu) == {"H20"}
    assert rows_of(table, "dense_gemm_kernel").latency_s.tolist() == pytest.approx([10.63e-6])
    assert rows_of(table, "mla_decode").latency_s.tolist() == pytest.approx([689.6e-6])  # the other was launch-bound
    assert rows_of(table, "gqa_decode").heads.tolist() == [64]  # the file without a header
    experts = rows_of(table, "grouped_gemm_kernel").iloc[0]
    assert (experts.pairs, experts["dtype"], experts.latency_s) == (120, "fp8_block.masked", pytest.approx(149.1e-6))
    assert table.dropped["infersim gemm: n or k below 256"] == 1
    assert table.dropped["infersim mla_decode: below 40 us (eager launch)"] == 1


def test_infersim_without_the_gpu_is_one_message(tmp_path):
    with pytest.raises(ProblemError, match="no InferSim tables of H200"):
        read_infersim(infersim_tree(tmp_path), "H200")
    with pytest.raises(ProblemError, match="no such folder"):
        read_infersim(tmp_path / "missing", "H20")


def test_kernel_timings_keep_what_feeds_the_kernel_from_the_base(tmp_path):
    frame = gemm_rows().assign(operator="dense_gemm_kernel", dtype="fp8_block")
    table = read_timings(written(frame, tmp_path / "t.csv"))
    base = calibration_for("H200", "sglang")
    (fitted,), _ = fit_table(table, load_hardware("hgx-h200"), base)
    assert (fitted.family, fitted.variant) == ("dense_gemm", "fp8_block")
    assert fitted.entry.coefficients["quantise_bytes"] == base.entry("dense_gemm", "fp8_block").coefficients["quantise_bytes"]


def test_busiest_rank_has_more_than_its_share_and_all_pairs_without_ep():
    rng = np.random.default_rng(0)
    assert busiest_rank(1000, 1.2, 1, rng, experts=256, top_k=8).pairs == pytest.approx(8000, rel=0.02)
    assert busiest_rank(1000, 1.2, 8, rng, experts=256, top_k=8).pairs > 1000


@pytest.mark.parametrize(
    ("tokens", "active"),
    [
        (1, 8),  # every load rounds to zero; the 8 pairs go to the 8 largest
        # log-uniform on [0.01, 2]: mean 1.99 / ln 200 = 0.376, scaled to 16 x 8 / 256 = 0.5, so loads above 0.376 round up
        (16, 256 * np.log(2 / 0.376) / np.log(200)),
        # on [1, 38.4]: mean 37.4 / ln 38.4 = 10.25, scaled to 1.5, so loads above 0.5 x 10.25 / 1.5 = 3.42 round up
        (48, 256 * np.log(38.4 / 3.42) / np.log(38.4)),
    ],
)
def test_few_tokens_reach_fewer_experts_than_pairs(tokens, active):
    loads = busiest_rank(tokens, 1.01, 1, np.random.default_rng(0), experts=256, top_k=8)
    assert loads.pairs == tokens * 8
    assert loads.active_experts == pytest.approx(active, rel=0.06)


def test_a_gpu_or_engine_without_tables_is_one_message(tmp_path):
    with pytest.raises(ProblemError, match="has no H20"):
        read_silicon("H20", "vllm", tmp_path)
    with pytest.raises(ProblemError, match="no tables of H200 for vllm"):
        read_silicon("H200", "vllm", tmp_path)


@pytest.mark.parametrize("gpu", ["GB200", "GB300", "B200", "B300", "H200", "H100"])
@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_shipped_fits_state_source_box_intervals_and_errors(gpu, engine):
    calibration = calibration_for(gpu, engine)
    assert calibration.applies_to.gpus == (gpu,)
    for dtype in ("bf16", "fp8"):
        entry = calibration.entry("dense_gemm", dtype)
        assert entry.status == "measured"
        assert "sha256" in entry.source
        assert set(entry.box) == {"m", "n", "k"}
        assert entry.fit is not None
        assert entry.fit.median_error < 0.13
        low, high = entry.fit.measured_over_predicted_80
        assert low < 1 < high
