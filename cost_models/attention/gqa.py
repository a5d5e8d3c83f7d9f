"""Grouped-query attention, over the whole context or over a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from cost_models.arrays import Floats, as_floats
from cost_models.attention.base import (
    Operators,
    OperatorSource,
    Phase,
    Requirement,
    SharedContext,
    core_inputs,
    per_head_rank,
)
from cost_models.attention.decode import DecodeAttentionCoefficients, gqa_decode_bound_s, gqa_decode_time_s
from cost_models.attention.grouped import GroupedKind
from cost_models.attention.prompt import PrefillAttentionCoefficients, prefill_attention_bound_s, prefill_attention_time_s
from cost_models.specs.precision import DTYPES, PrecisionRecipe

if TYPE_CHECKING:
    from cost_models.machine import Machine


class GqaSpec(GroupedKind):
    """Every query sees all tokens before it, or those of a window."""

    kind: Literal["gqa"] = "gqa"
    window_tokens: int | None = Field(default=None, gt=0)
    """Tokens back that a query sees; none: all."""

    @property
    def core(self) -> str:
        """Name of the core operator: layers with a window are listed apart from those without."""
        return "window_attention" if self.window_tokens else "attention"

    def decode(self, machine: Machine, sequences: Floats, query_tokens: Floats, tp: Floats, context_tokens: float) -> Operators:
        core = self._decode_core(machine, sequences, query_tokens, tp, context_tokens)
        return self.projections(machine, sequences * query_tokens, tp) | core

    @property
    def shared_context(self) -> SharedContext | None:
        """Queries and outputs, those of prompts only where they attend to a cached prefix; a window stays whole.

        Beside, new tokens attend to each other on every rank, and the two parts are merged (_forward_with_dcp of vllm
        v1/attention/backends/flash_attn.py, 0.33.0).
        """
        return None if self.window_tokens else SharedContext(query=self.head_dim, output=self.v_dim, beside=2)

    def context_ranks(self, tp: ArrayLike) -> Floats:
        """Ranks with copies of the same KV heads."""
        copies = np.maximum(as_floats(tp) // self.kv_heads, 1.0)
        return np.ones_like(copies) if self.window_tokens else as_floats(copies)

    def shared_core(
        self,
        machine: Machine,
        sequences: Floats,
        query_tokens: Floats,
        tp: Floats,
        dcp: Floats,
        context_tokens: float,
    ) -> Operators:
        if self.window_tokens:
            return {}
        return self._decode_core(machine, sequences, query_tokens, tp / dcp, context_tokens / dcp)

    def _decode_core(
        self, machine: Machine, sequences: Floats, query_tokens: Floats, tp: Floats, context_tokens: ArrayLike
    ) -> Operators:
        """The kernel on the heads of one of tp ranks, over context_tokens of each sequence."""
        shape: dict[str, Any] = {
            "head_dim": self.mean_dim,
            "kv_bytes": machine.dtype_info("kv_cache").weight_bytes,
            "peak_flops_per_s": machine.peak_flops_per_s("attention_compute"),
            "hbm_bytes_per_s": machine.hbm_bytes_per_s,
        }
        c = machine.coefficients("gqa_decode", machine.recipe.kv_cache, DecodeAttentionCoefficients)
        seen = self._seen(context_tokens)
        columns = (sequences, seen, self.heads / tp, per_head_rank(self.kv_heads, tp), query_tokens)
        time_s = gqa_decode_time_s(*columns, processors=machine.processors, coefficients=c, **shape)
        return {self.core: (time_s, gqa_decode_bound_s(*columns, **shape))}

    def prefill(self, machine: Machine, sequences: Floats, new_tokens: Floats, prefix_tokens: Floats, tp: Floats) -> Operators:
        result = self.projections(machine, sequences * new_tokens, tp)
        shape: dict[str, Any] = {
            "qk_dim": self.head_dim,
            "v_dim": self.v_dim,
            "window_tokens": self.window_tokens or np.inf,
            "peak_flops_per_s": machine.hardware.gpu.peak_flops_per_s("bf16"),
            "hbm_bytes_per_s": machine.hbm_bytes_per_s,
        }
        c = machine.coefficients("gqa_prefill", machine.recipe.prefill_attention, PrefillAttentionCoefficients)
        columns = (sequences, new_tokens, prefix_tokens, self.heads / tp)
        time_s = prefill_attention_time_s(*columns, processors=machine.processors, coefficients=c, **shape)
        result[self.core] = (time_s, prefill_attention_bound_s(*columns, **shape))
        return result

    def _seen(self, context_tokens: ArrayLike) -> Floats:
        """Tokens that a query attends to."""
        return as_floats(np.minimum(context_tokens, self.window_tokens or np.inf))

    def state_bytes(self, context_tokens: ArrayLike, tp: ArrayLike, recipe: PrecisionRecipe) -> Floats:
        """Keys and values of what a query can still see; tensor parallelism beyond the KV heads replicates them."""
        elements = self.cache_elements_per_token * DTYPES[recipe.kv_cache].weight_bytes
        shards = np.minimum(as_floats(tp), self.kv_heads)
        return as_floats(self._seen(context_tokens) * elements / shards)

    def state_copies(self, tp: float) -> float:
        return tp / min(tp, self.kv_heads)

    def timing_columns(self, phase: Phase, tp: int) -> dict[str, int]:
        shared = {"kv_heads": max(self.kv_heads // tp, 1)} if phase == "decode" else {}
        return {"heads": self.heads // tp, **shared, "head_dim": self.head_dim}

    def requirements(self, recipe: PrecisionRecipe, phase: Phase) -> tuple[Requirement, ...]:
        if phase == "decode":
            return (("gqa_decode", recipe.kv_cache), ("elementwise", "default"))
        return (("gqa_prefill", recipe.prefill_attention), ("elementwise", "prefill"))

    def sources(self, recipe: PrecisionRecipe, phase: Phase, inputs: Mapping[str, float]) -> dict[str, OperatorSource]:
        core = core_inputs(inputs, self.heads)
        if phase == "decode":
            core["context_tokens"] = float(self._seen(core["context_tokens"]))
            return {self.core: ("gqa_decode", recipe.kv_cache, core)}
        return {self.core: ("gqa_prefill", recipe.prefill_attention, core)}
