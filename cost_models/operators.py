"""Operators of one layer at a given microbatch, each as seconds and roofline seconds per layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cost_models.arrays import Floats, as_floats, evaluate_distinct
from cost_models.attention import (
    DecodeAttentionCoefficients,
    gqa_decode_bound_s,
    gqa_decode_time_s,
    mla_decode_bound_s,
    mla_decode_time_s,
)
from cost_models.collectives import AllReduceCoefficients, all_reduce_bound_s, all_reduce_time_s
from cost_models.dense_gemm import DenseGemmCoefficients, dense_gemm_bound_s, dense_gemm_time_s
from cost_models.elementwise import ElementwiseCoefficients, elementwise_time_s
from cost_models.machine import Machine
from cost_models.specs.model import GqaSpec, Matrix, MlaSpec
from cost_models.specs.precision import DTYPES


@dataclass(frozen=True, slots=True)
class Timing:
    """Time and lower bound of an operator in one layer [s], (rows,) each."""

    time_s: Floats
    bound_s: Floats

    def scaled(self, factor: Floats | float) -> Timing:
        return Timing(self.time_s * factor, self.bound_s * factor)

    def __add__(self, other: Timing) -> Timing:
        return Timing(self.time_s + other.time_s, self.bound_s + other.bound_s)


def gemm(machine: Machine, dtype: str, m: Floats, n: Floats | float, k: Floats | float) -> tuple[Floats, Floats]:
    """A dense GEMM with weights in a dtype: (time, bound)."""
    info = DTYPES[dtype]
    shape = {
        "weight_bytes": info.weight_bytes,
        "activation_bytes": info.activation_bytes,
        "peak_flops_per_s": machine.hardware.gpu.peak_flops_per_s(info.compute),
        "hbm_bytes_per_s": machine.hbm_bytes_per_s,
    }
    coefficients = machine.coefficients("dense_gemm", dtype, DenseGemmCoefficients)
    time_s = dense_gemm_time_s(m, n, k, processors=machine.processors, coefficients=coefficients, **shape)
    return time_s, dense_gemm_bound_s(m, n, k, **shape)


def matrix_gemm(machine: Machine, matrix: Matrix, m: Floats, shards: Floats) -> tuple[Floats, Floats]:
    """The GEMM of a (possibly sharded) weight matrix over m rows."""
    n = matrix.n / shards if matrix.sharding == "column" else matrix.n
    k = matrix.k / shards if matrix.sharding == "row" else matrix.k
    return gemm(machine, machine.dtype(matrix.family), m, n, k)


def attention_operators(
    machine: Machine, sequences: Floats, query_tokens: Floats, tp: Floats, context_tokens: float
) -> dict[str, Timing]:
    """Projections, attention core, output all-reduce and element-wise traffic of one layer.

    sequences, query_tokens (per sequence), tp : (rows,). Evaluated once per distinct shape.
    """

    def distinct(b: Floats, q: Floats, t: Floats) -> dict[str, tuple[Floats, Floats]]:
        core = _mla if isinstance(machine.model.attention, MlaSpec) else _gqa
        result: dict[str, tuple[Floats, Floats]] = {}
        for matrix in machine.model.attention.matrices(machine.model.hidden, 1):
            if matrix.name == "kv_b":  # absorbed: a batched GEMM per head, see _absorb
                continue
            result[matrix.name] = matrix_gemm(machine, matrix, b * q, t)
        result |= core(machine, b, q, t, context_tokens)
        result["tp_all_reduce"] = tp_all_reduce(machine, b * q, t)
        result["elementwise"] = _attention_elementwise(machine, b * q, t)
        return result

    return {name: Timing(*pair) for name, pair in evaluate_distinct(distinct, sequences, query_tokens, tp).items()}


def _mla(machine: Machine, b: Floats, q: Floats, tp: Floats, context: float) -> dict[str, tuple[Floats, Floats]]:
    attention = machine.model.attention
    assert isinstance(attention, MlaSpec)
    heads = attention.heads / tp
    shape: dict[str, Any] = {
        "latent_dim": attention.kv_lora_rank,
        "rope_dim": attention.qk_rope_dim,
        "kv_bytes": machine.dtype_info("kv_cache").weight_bytes,
        "peak_flops_per_s": machine.peak_flops_per_s("attention_compute"),
        "hbm_bytes_per_s": machine.hbm_bytes_per_s,
    }
    coefficients = machine.coefficients("mla_decode", machine.recipe.kv_cache, DecodeAttentionCoefficients)
    time_s = mla_decode_time_s(b, context, heads, q, processors=machine.processors, coefficients=coefficients, **shape)
    return {
        "absorb": _absorb(machine, attention, b * q, heads),
        "attention": (time_s, mla_decode_bound_s(b, context, heads, q, **shape)),
    }


def _absorb(machine: Machine, attention: MlaSpec, tokens: Floats, heads: Floats) -> tuple[Floats, Floats]:
    """The two batched GEMMs that absorb kv_b into query and output: streaming, not FLOPs.

    Each reads and writes the per-head activations [tokens, heads, nope] and [tokens, heads, latent]
    in BF16 and the per-head weights once (62 us measured at 1,024 tokens on GB200; FLOPs alone say 11).
    """
    elementwise = machine.coefficients("elementwise", "default", ElementwiseCoefficients)
    start_s = machine.coefficients("dense_gemm", "bf16", DenseGemmCoefficients).start_s
    dims = attention.qk_nope_dim + attention.v_dim
    moved = 2 * heads * (tokens * (dims + 2 * attention.kv_lora_rank) + dims * attention.kv_lora_rank)
    flops_s = 2 * tokens * heads * dims * attention.kv_lora_rank / machine.hardware.gpu.peak_flops_per_s("bf16")
    moved_s = moved / machine.hbm_bytes_per_s
    time_s = 2 * start_s + moved_s / elementwise.memory_efficiency
    return as_floats(np.where(tokens > 0, np.maximum(time_s, flops_s), 0.0)), np.maximum(moved_s, flops_s)


def _gqa(machine: Machine, b: Floats, q: Floats, tp: Floats, context: float) -> dict[str, tuple[Floats, Floats]]:
    attention = machine.model.attention
    assert isinstance(attention, GqaSpec)
    heads, kv_heads = attention.heads / tp, np.maximum(attention.kv_heads / tp, 1)
    shape: dict[str, Any] = {
        "head_dim": attention.head_dim,
        "kv_bytes": machine.dtype_info("kv_cache").weight_bytes,
        "peak_flops_per_s": machine.peak_flops_per_s("attention_compute"),
        "hbm_bytes_per_s": machine.hbm_bytes_per_s,
    }
    coefficients = machine.coefficients("gqa_decode", machine.recipe.kv_cache, DecodeAttentionCoefficients)

    def core(tokens: float) -> tuple[Floats, Floats]:
        time_s = gqa_decode_time_s(
            b, tokens, heads, kv_heads, q, processors=machine.processors, coefficients=coefficients, **shape
        )
        return time_s, gqa_decode_bound_s(b, tokens, heads, kv_heads, q, **shape)

    full_time, full_bound = core(context)
    if not attention.window_tokens or not attention.windowed_layers:
        return {"attention": (full_time, full_bound)}
    share = attention.windowed_layers / machine.model.layers
    near_time, near_bound = core(min(context, attention.window_tokens))
    return {"attention": (full_time * (1 - share) + near_time * share, full_bound * (1 - share) + near_bound * share)}


def tp_all_reduce(machine: Machine, tokens: Floats, tp: Floats) -> tuple[Floats, Floats]:
    """All-reduce of BF16 hidden states over the TP group: (time, bound)."""
    message = tokens * machine.model.hidden * 2
    coefficients = machine.coefficients("all_reduce", "default", AllReduceCoefficients)
    time_s = all_reduce_time_s(message, tp, links=machine.links, coefficients=coefficients)
    return time_s, all_reduce_bound_s(message, tp, machine.links)


def _attention_elementwise(machine: Machine, tokens: Floats, tp: Floats) -> tuple[Floats, Floats]:
    c = machine.coefficients("elementwise", "default", ElementwiseCoefficients)
    attention = machine.model.attention
    if isinstance(attention, MlaSpec):
        query_elements = attention.heads / tp * (attention.kv_lora_rank + attention.qk_rope_dim)
    else:
        query_elements = (attention.heads + 2 * attention.kv_heads) / tp * attention.head_dim
    return traffic(machine, tokens, query_elements, c.hidden_passes, c.query_passes, c)


def traffic(
    machine: Machine, tokens: Floats, query: Floats | float, hidden_passes: float, query_passes: float, c: ElementwiseCoefficients
) -> tuple[Floats, Floats]:
    """Element-wise traffic of one layer: (time, the same bytes at full bandwidth)."""
    time_s = elementwise_time_s(
        tokens,
        query,
        hidden=machine.model.hidden,
        hidden_passes=hidden_passes,
        query_passes=query_passes,
        memory_efficiency=c.memory_efficiency,
        hbm_bytes_per_s=machine.hbm_bytes_per_s,
    )
    return time_s, time_s * c.memory_efficiency


def dense_ffn_operators(machine: Machine, tokens: Floats, tp: Floats) -> dict[str, Timing]:
    """The dense FFN of one layer, sharded over TP."""

    def distinct(m: Floats, t: Floats) -> dict[str, tuple[Floats, Floats]]:
        matrices = [x for x in machine.model.layer_matrices() if x.family == "dense_ffn"]
        result = {matrix.name: matrix_gemm(machine, matrix, m, t) for matrix in matrices}
        result["ffn_all_reduce"] = tp_all_reduce(machine, m, t)
        return result

    return {name: Timing(*pair) for name, pair in evaluate_distinct(distinct, tokens, tp).items()}


def head_operators(machine: Machine, tokens: Floats, tp: Floats, sampling_bytes_per_logit: float) -> dict[str, Timing]:
    """lm_head and sampling of one step."""

    def distinct(m: Floats, t: Floats) -> dict[str, tuple[Floats, Floats]]:
        model = machine.model
        logits_s = m * model.vocab / t * sampling_bytes_per_logit / machine.hbm_bytes_per_s
        return {
            "lm_head": gemm(machine, machine.dtype("lm_head"), m, model.vocab / t, model.hidden),
            "sampling": (logits_s, logits_s),
        }

    return {name: Timing(*pair) for name, pair in evaluate_distinct(distinct, tokens, tp).items()}


def moe_traffic(machine: Machine, tokens: Floats, variant: str) -> Timing:
    """Hidden-state traffic of an MoE layer outside the expert kernel: quantise, shared add."""
    c = machine.coefficients("elementwise", variant, ElementwiseCoefficients)
    return Timing(*traffic(machine, tokens, 0.0, c.moe_hidden_passes, 0.0, c))
