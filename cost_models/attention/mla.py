"""Dense multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats
from cost_models.attention.base import Operators, OperatorSource, Phase, Requirement, core_inputs
from cost_models.attention.decode import DecodeAttentionCoefficients, mla_decode_bound_s, mla_decode_time_s
from cost_models.attention.latent import LatentKind
from cost_models.attention.prompt import PrefillAttentionCoefficients, prefill_attention_bound_s, prefill_attention_time_s
from cost_models.operators import gemm, matrix_gemm
from cost_models.specs.precision import PrecisionRecipe

if TYPE_CHECKING:
    from cost_models.machine import Machine


class MlaSpec(LatentKind):
    """Decode absorbs the up-projection into query and output and attends over latents; prefill expands keys and values."""

    kind: Literal["mla"] = "mla"

    @property
    def absorbed_over_expanded(self) -> float:
        """Of a query head and key: 2 (2 latent + rope) against 2 (qk + v), 3.4 times in DeepSeek-V3."""
        return (2 * self.kv_lora_rank + self.qk_rope_dim) / (self.qk_dim + self.v_dim)

    @property
    def reach_tokens(self) -> float:
        """Tokens back that a query sees."""
        return np.inf

    def decode(self, machine: Machine, sequences: Floats, query_tokens: Floats, tp: Floats, context_tokens: float) -> Operators:
        tokens = sequences * query_tokens
        heads = self.heads / tp
        result = self.projections(machine, tokens, tp, without=("kv_b",))
        result["absorb"] = self.absorb(machine, tokens, heads)
        result["attention"] = self._core(machine, sequences, query_tokens, heads, context_tokens)
        return result

    def shared_core(
        self,
        machine: Machine,
        sequences: Floats,
        query_tokens: Floats,
        tp: Floats,
        dcp: Floats,
        context_tokens: float,
    ) -> Operators:
        heads = self.heads / tp * dcp
        return {"attention": self._core(machine, sequences, query_tokens, heads, context_tokens / dcp)}

    def _core(
        self, machine: Machine, sequences: Floats, query_tokens: Floats, heads: Floats, context_tokens: ArrayLike
    ) -> tuple[Floats, Floats]:
        """The absorbed kernel over `context_tokens` latents of each sequence."""
        shape: dict[str, Any] = {
            "latent_dim": self.kv_lora_rank,
            "rope_dim": self.qk_rope_dim,
            "kv_bytes": machine.dtype_info("kv_cache").weight_bytes,
            "peak_flops_per_s": machine.peak_flops_per_s("attention_compute"),
            "hbm_bytes_per_s": machine.hbm_bytes_per_s,
        }
        c = machine.coefficients("mla_decode", machine.recipe.kv_cache, DecodeAttentionCoefficients)
        columns = (sequences, context_tokens, heads, query_tokens)
        time_s = mla_decode_time_s(*columns, processors=machine.processors, coefficients=c, **shape)
        return time_s, mla_decode_bound_s(*columns, **shape)

    def prefill(self, machine: Machine, sequences: Floats, new_tokens: Floats, prefix_tokens: Floats, tp: Floats) -> Operators:
        """Keys and values of the cached prefix are expanded again, because the cache holds latents."""
        result: Operators = {}
        for matrix in self.matrices(machine.model.hidden, 1):
            if matrix.name == "kv_b":
                dtype = machine.recipe.kv_b_expand or machine.recipe.kv_b
                result["kv_b"] = gemm(machine, dtype, sequences * (new_tokens + prefix_tokens), matrix.n / tp, matrix.k)
            else:
                result[matrix.name] = matrix_gemm(machine, matrix, sequences * new_tokens, tp)
        shape: dict[str, Any] = {
            "qk_dim": self.qk_dim,
            "v_dim": self.v_dim,
            "window_tokens": self.reach_tokens,
            "peak_flops_per_s": machine.hardware.gpu.peak_flops_per_s("bf16"),
            "hbm_bytes_per_s": machine.hbm_bytes_per_s,
        }
        c = machine.coefficients("mla_prefill", machine.recipe.prefill_attention, PrefillAttentionCoefficients)
        columns = (sequences, new_tokens, prefix_tokens, self.heads / tp)
        time_s = prefill_attention_time_s(*columns, processors=machine.processors, coefficients=c, **shape)
        result["attention"] = (time_s, prefill_attention_bound_s(*columns, **shape))
        return result

    def elementwise_elements(self, phase: Phase, tp: Floats) -> Floats:
        """Queries: over latents in decode, expanded in prefill."""
        width = self.cache_elements_per_token if phase == "decode" else self.qk_dim
        return as_floats(self.heads / tp * width)

    def activation_elements(self, phase: Phase, tp: Floats) -> Floats:
        """Query and output over latents in decode; query, key, value and output in prefill."""
        width = 2 * self.cache_elements_per_token if phase == "decode" else 2 * self.qk_dim + 2 * self.v_dim
        return as_floats(self.heads / tp * width)

    def timing_columns(self, phase: Phase, tp: int) -> dict[str, int]:
        return {"heads": self.heads // tp}

    def requirements(self, recipe: PrecisionRecipe, phase: Phase) -> tuple[Requirement, ...]:
        if phase == "decode":
            return (("mla_decode", recipe.kv_cache), ("mla_absorb", "bf16"), ("elementwise", "default"))
        return (("mla_prefill", recipe.prefill_attention), ("elementwise", "prefill"))

    def sources(self, recipe: PrecisionRecipe, phase: Phase, inputs: Mapping[str, float]) -> dict[str, OperatorSource]:
        core = core_inputs(inputs, self.heads)
        if phase == "decode":
            return {"attention": ("mla_decode", recipe.kv_cache, core), "absorb": self.absorb_source(inputs)}
        expand = {"m": inputs["sequences"] * inputs["new_tokens"], "k": float(self.kv_lora_rank)}
        expand["n"] = self.heads * (self.qk_nope_dim + self.v_dim) / inputs["tp"]
        return {
            "attention": ("mla_prefill", recipe.prefill_attention, core),
            "kv_b": ("dense_gemm", recipe.kv_b_expand or recipe.kv_b, expand),
        }
