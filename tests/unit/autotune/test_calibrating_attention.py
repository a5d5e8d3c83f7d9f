"""Recurrent and sparse attention: raw tables to rows, and fits that give back what made the timings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from autotune.calibrating import silicon_attention
from autotune.calibrating.attention_modules import DSA, DSA_DIMS, fit_module
from autotune.calibrating.silicon import attention_sources
from cost_models.attention.dsa import DsaSpec
from cost_models.attention.indexing import SparseCoefficients
from cost_models.attention.recurrent import (
    ScanCoefficients,
    StreamCoefficients,
    fit_scan,
    fit_stream,
    scan_time_s,
    stream_time_s,
    update_bytes,
)
from cost_models.catalog import calibration_for, load_hardware, load_recipe
from cost_models.machine import Machine
from cost_models.operators import attention_operators
from cost_models.specs.model import ModelSpec

V32 = {"heads": 16, "hidden": 7168, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_dim": 128, "qk_rope_dim": 64, "v_dim": 128,
       "index_heads": 64, "index_dim": 128, "top_k": 2048, "computes_index": 1}  # fmt: skip
KERNEL = SparseCoefficients(2.5e-5, 0.6, 0.7, 2.0, 2e-5, 0.5, 0.7, 8e-6, 2.0, 1e-7)


def delta_rows() -> pd.DataFrame:
    shape = {"d_conv": 4, "num_k_heads": 16, "head_k_dim": 128, "num_v_heads": 64, "head_v_dim": 128, "model_name": "Qwen3.5"}
    rows = [
        ("context", "causal_conv1d_fn", 2, 1024, 0.04),
        ("context", "chunk_gated_delta_rule", 2, 1024, 0.06),
        ("context", "chunk_gated_delta_rule", 2, 8, 0.02),
        ("context", "fused_recurrent", 1, 64, 0.02),
        ("generation", "causal_conv1d_update", 32, 1, 0.0035),
        ("generation", "fused_recurrent", 32, 1, 0.0486),
        ("generation", "fused_recurrent", 32, 1, 0.0490),
        ("verify", "fused_recurrent", 32, 4, 0.12),
    ]
    columns = ("phase", "kernel_source", "batch_size", "seq_len", "latency")
    return pd.DataFrame([{**dict(zip(columns, row, strict=True)), **shape} for row in rows])


def test_recurrent_kernels_become_rows_and_the_rest_is_counted():
    rows, dropped = silicon_attention.gated_delta(delta_rows(), "vllm")
    found = {row.operator: row for row in rows.itertuples()}
    assert set(found) == {
        "gated_delta_update", "gated_delta_scan", "gated_delta_convolution.decode", "gated_delta_convolution.prefill"
    }  # fmt: skip
    update = found["gated_delta_update"]
    assert (update.sequences, update.state_elements, update.latency_ms) == (32, 64 * 128 * 128, pytest.approx(0.0488))
    assert found["gated_delta_convolution.decode"].channels == 2 * 16 * 128 + 64 * 128
    assert dropped["gated_delta: verification of drafts"] == 1
    assert dropped["gated_delta: prompts below 16"] == 1
    assert dropped["gated_delta: prompts that the decode kernel takes"] == 1


def test_a_serial_convolution_is_left_out():
    rows, dropped = silicon_attention.gated_delta(delta_rows(), "trtllm")
    assert "gated_delta_convolution.prefill" not in set(rows.operator)
    assert dropped["gated_delta: prefill convolution (one sequence after the other)"] == 1


def test_sparse_modules_carry_the_dimensions_of_their_architecture():
    raw = pd.DataFrame({
        "architecture": ["DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM", "GlmMoeDsaForCausalLM", "Other"],
        "op_name": ["dsa_generation_module", "dsa_generation_module_skip_indexer", "dsa_generation_module", "x"],
        "gemm_type": ["bfloat16", "bfloat16", "nvfp4", "bfloat16"], "kv_cache_dtype": "fp8", "num_heads": 16,
        "batch_size": 8, "step": 4095, "isl": 1, "latency": 0.15,
    })  # fmt: skip
    rows, dropped = silicon_attention.dsa_decode(raw, "vllm")
    assert list(rows.sort_values("hidden").hidden) == [6144, 7168]
    assert list(rows.sort_values("hidden").computes_index) == [0, 1]
    assert set(rows.context_tokens) == {4096}
    assert sorted(dropped.values()) == [1, 1]


def test_sglang_reads_the_modules_that_its_own_table_times_eagerly_from_vllm():
    owners = {(source.file, source.owner) for source in attention_sources("sglang", blackwell=True)}
    assert ("dsa_context_module_perf.parquet", "vllm") in owners
    assert ("dsa_generation_module_perf.parquet", "sglang") in owners


def test_scans_and_streams_give_their_coefficients_back():
    rng = np.random.default_rng(0)
    b, s, h = (rng.choice(values, 400).astype(float) for values in ([1, 2, 4, 8, 16, 64], [64, 512, 4096, 32768], [8, 16, 64]))
    scan = ScanCoefficients(5e-6, 1.5e-5, 4e-8, 2e-8, 0.8, 1.3)
    fit = fit_scan(b, s, h, scan_time_s(b, s, h, processors=148, coefficients=scan), processors=148)
    assert fit.median_error < 0.02
    assert fit.values["token_s"] == pytest.approx(4e-8, rel=0.2)
    moved = update_bytes(b, 1.0, h * 128 * 128)
    stream = StreamCoefficients(4.4e-6, 0.79, 1.5)
    fit = fit_stream(moved, h, stream_time_s(moved, hbm_bytes_per_s=8e12, coefficients=stream), hbm_bytes_per_s=8e12)
    assert fit.values["memory_efficiency"] == pytest.approx(0.79, rel=0.02)


def module(dims: Mapping[str, int], machine: Machine) -> tuple[Machine, DsaSpec]:
    fields = {**dims, "computes_index": bool(dims["computes_index"])}
    hidden = fields.pop("hidden")
    kind = DsaSpec.model_validate(fields)
    model = ModelSpec.uniform(
        name="m",
        title="",
        source="",
        hidden=hidden,
        vocab=8,
        max_context_tokens=8,
        layers=1,
        attention=kind,
        dense_intermediate=8,
    )
    return Machine(model, machine.hardware, machine.recipe, machine.calibration), kind


def test_a_module_is_its_gemms_and_the_kernels_that_are_fitted():
    hardware = load_hardware("gb200-nvl72")
    base = calibration_for("GB200", "vllm")
    blank = Machine(ModelSpec.uniform(name="m", title="", source="", hidden=8, vocab=8, max_context_tokens=8, layers=1,
                    attention=DsaSpec(**{k: v for k, v in V32.items() if k not in ("hidden", "computes_index")}),
                    dense_intermediate=8), hardware, load_recipe("bf16"), base)  # fmt: skip
    rng = np.random.default_rng(1)
    batch, context = rng.choice([1, 8, 64, 256, 1024], 240).astype(float), rng.choice([128, 1024, 8192, 65536], 240).astype(float)
    indexed = rng.choice([0, 1], 240)
    columns: dict[str, np.ndarray] = {"sequences": batch, "context_tokens": context}
    columns |= {name: np.full(240, float(V32[name])) for name in DSA_DIMS} | {"computes_index": indexed.astype(float)}
    latency_s = np.zeros(240)
    gaps = base.entry("host", "default").coefficients["small_kernel_s"]
    for flag in (0, 1):
        machine, kind = module({**V32, "computes_index": flag}, blank)
        for row in np.flatnonzero(indexed == flag):
            one = np.ones(1)
            priced = attention_operators(machine, kind, batch[row] * one, one, one, context[row])
            known = [
                t.time_s[0]
                for name, t in priced.items()
                if name not in ("sparse_attention", "indexer", "elementwise", "tp_all_reduce")
            ]
            core = kind.decode_core(machine, KERNEL, batch[row] * one, one, one * kind.heads, context[row] * one)
            c = base.entry("elementwise", "default").coefficients
            moved = c["query_passes"] * batch[row] * kind.elementwise_elements("decode", one)[0] * 2
            light_s = moved / machine.hbm_bytes_per_s / c["memory_efficiency"]
            latency_s[row] = sum(known) + light_s + gaps * (len(known) + 1) + sum(t[0] for t, _ in core.values())
    fit = fit_module(DSA, "decode", columns, latency_s, "bf16", hardware, base)
    assert fit.median_error < 0.02
    assert fit.values["start_s"] == pytest.approx(KERNEL.start_s, rel=0.15)
