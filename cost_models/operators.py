"""Operators of one layer at a given microbatch, each as seconds and roofline seconds per layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cost_models.arrays import Floats, Ints, evaluate_distinct
from cost_models.collectives import AllReduceCoefficients, all_reduce_bound_s, all_reduce_time_s
from cost_models.context_parallel import decode_exchange
from cost_models.dense_gemm import (
    DenseGemmCoefficients,
    SustainedCoefficients,
    dense_gemm_bound_s,
    dense_gemm_time_s,
    sustained_s,
)
from cost_models.elementwise import ElementwiseCoefficients, elementwise_time_s
from cost_models.specs.matrix import Matrix
from cost_models.specs.precision import DTYPES

if TYPE_CHECKING:  # a model specification holds attention kinds, which are priced with what is here
    from cost_models.attention.base import AttentionKind
    from cost_models.machine import Machine
    from cost_models.specs.model import DenseSpec


@dataclass(frozen=True, slots=True)
class Timing:
    """Time and lower bound of an operator in one layer [s], (rows,) each."""

    time_s: Floats
    bound_s: Floats

    def scaled(self, factor: Floats | float) -> Timing:
        return Timing(self.time_s * factor, self.bound_s * factor)

    def __add__(self, other: Timing) -> Timing:
        return Timing(self.time_s + other.time_s, self.bound_s + other.bound_s)

    def take(self, index: Ints) -> Timing:
        """Of the rows at the given positions."""
        return Timing(self.time_s[index], self.bound_s[index])


class LaterTimings(Mapping[str, Timing]):
    """Operators by name, each computed when it is asked for: a search asks most rows only how long they take in all."""

    def __init__(self, names: Iterable[str], compute: Callable[[str], Timing]) -> None:
        self._names = dict.fromkeys(names)
        self._compute = compute

    def __getitem__(self, name: str) -> Timing:
        if name not in self._names:
            raise KeyError(name)
        return self._compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def joined(later: Mapping[str, Timing], others: Mapping[str, Timing]) -> LaterTimings:
    """Operators of both; each has names of its own."""
    return LaterTimings([*later, *others], lambda name: others[name] if name in others else later[name])


def total_s(timings: Mapping[str, Timing]) -> Floats:
    """Time of all operators together, (rows,) [s]."""
    first, *others = (timing.time_s for timing in timings.values())
    return sum(others, first)


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
    if machine.calibration.has("sustained", info.compute):
        power = machine.coefficients("sustained", info.compute, SustainedCoefficients)
        time_s = np.maximum(time_s, sustained_s(m, n, k, shape["peak_flops_per_s"], power))
    return time_s, dense_gemm_bound_s(m, n, k, **shape)


def matrix_gemm(machine: Machine, matrix: Matrix, m: Floats, shards: Floats) -> tuple[Floats, Floats]:
    """The GEMM of a (possibly sharded) weight matrix over m rows."""
    return gemm(machine, machine.dtype(matrix.family), m, matrix.rank_n(shards), matrix.rank_k(shards))


def attention_operators(
    machine: Machine,
    kind: AttentionKind,
    sequences: Floats,
    query_tokens: Floats,
    tp: Floats,
    context_tokens: float,
    dcp: Floats | float = 1.0,
) -> dict[str, Timing]:
    """Projections, attention core, exchanges of a shared context, output all-reduce and element-wise traffic of one layer.

    sequences, query_tokens (per sequence), tp, dcp : (rows,). Evaluated once per distinct shape.
    """

    def distinct(b: Floats, q: Floats, t: Floats, n: Floats) -> dict[str, tuple[Floats, Floats]]:
        result = kind.decode(machine, b, q, t, context_tokens)
        shared = kind.shared_context
        if shared is not None and (n > 1).any():
            result |= kind.shared_core(machine, b, q, t, n, context_tokens)
            result |= decode_exchange(machine, shared, b * q, kind.shardable_heads / t, n)
        result |= attention_all_reduces(machine, kind, b * q, t)
        c = machine.coefficients("elementwise", "default", ElementwiseCoefficients)
        elements = kind.elementwise_elements("decode", t)
        result["elementwise"] = traffic(machine, b * q, elements, c.hidden_passes, c.query_passes, c)
        return result

    return {name: Timing(*pair) for name, pair in evaluate_distinct(distinct, sequences, query_tokens, tp, dcp).items()}


def attention_all_reduces(machine: Machine, kind: AttentionKind, tokens: Floats, tp: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Of the output, and of the sums of squares of norms that run over the heads of all ranks.

    These are 4 bytes a token and norm, in one exchange before the core (vLLM: minimax_qk_norm_fusion, an all-reduce before).
    """
    result = {"tp_all_reduce": tp_all_reduce(machine, tokens, tp)}
    if kind.norms_across_heads:
        result["norm_all_reduce"] = _all_reduce(machine, tokens * kind.norms_across_heads * 4, tp)
    return result


def tp_all_reduce(machine: Machine, tokens: Floats, tp: Floats) -> tuple[Floats, Floats]:
    """All-reduce of BF16 hidden states over the TP group: (time, bound)."""
    return _all_reduce(machine, tokens * machine.model.hidden * 2, tp)


def _all_reduce(machine: Machine, message: Floats, tp: Floats) -> tuple[Floats, Floats]:
    """All-reduce of a message [B] over the TP group: (time, bound)."""
    coefficients = machine.coefficients("all_reduce", machine.all_reduce_variant, AllReduceCoefficients)
    time_s = all_reduce_time_s(message, tp, links=machine.links, coefficients=coefficients)
    return time_s, all_reduce_bound_s(message, tp, machine.links)


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


def dense_ffn_operators(machine: Machine, ffn: DenseSpec, tokens: Floats, tp: Floats) -> dict[str, Timing]:
    """The dense FFN of one layer, sharded over TP."""

    def distinct(m: Floats, t: Floats) -> dict[str, tuple[Floats, Floats]]:
        result = {matrix.name: matrix_gemm(machine, matrix, m, t) for matrix in ffn.matrices(machine.model.hidden, 1)}
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
