"""Latent attention: what dense and sparse kinds share (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from cost_models.arrays import Floats, as_floats
from cost_models.attention.base import AttentionKind
from cost_models.dense_gemm import DenseGemmCoefficients
from cost_models.elementwise import ElementwiseCoefficients
from cost_models.specs.matrix import Matrix
from cost_models.specs.precision import DTYPES, PrecisionRecipe

if TYPE_CHECKING:
    from cost_models.machine import Machine


class LatentKind(AttentionKind):
    """Keys and values are up-projections of one latent per token, which is all that is cached."""

    heads: int = Field(gt=0)
    q_lora_rank: int = Field(gt=0)
    kv_lora_rank: int = Field(gt=0)
    qk_nope_dim: int = Field(gt=0)
    qk_rope_dim: int = Field(ge=0)
    v_dim: int = Field(gt=0)
    output_gate: bool = False
    """The output of every head is gated by a projection of the layer's input."""

    @property
    def shardable_heads(self) -> int:
        return self.heads

    @property
    def cache_elements_per_token(self) -> int:
        """Latent and rope key, stored once for all heads: kv_lora_rank + qk_rope_dim, not doubled."""
        return self.kv_lora_rank + self.qk_rope_dim

    @property
    def qk_dim(self) -> int:
        """Query and key elements of one expanded head."""
        return self.qk_nope_dim + self.qk_rope_dim

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        gate = [Matrix("o_gate", "attention_in", self.heads * self.v_dim, hidden, layers, "column")] if self.output_gate else []
        return [
            Matrix("q_a_kv_a", "attention_in", self.q_lora_rank + self.cache_elements_per_token, hidden, layers, "replicated"),
            Matrix("q_b", "q_b", self.heads * self.qk_dim, self.q_lora_rank, layers, "column"),
            Matrix("kv_b", "kv_b", self.heads * (self.qk_nope_dim + self.v_dim), self.kv_lora_rank, layers, "column"),
            *gate,
            Matrix("o_proj", "o_proj", hidden, self.heads * self.v_dim, layers, "row"),
        ]

    def vector_parameters(self, layers: int) -> int:
        """The two latent norms."""
        return layers * (self.q_lora_rank + self.kv_lora_rank)

    def absorb(self, machine: Machine, tokens: Floats, heads: Floats) -> tuple[Floats, Floats]:
        """The two batched GEMMs that absorb kv_b into query and output: streaming, not FLOPs.

        Each reads and writes the per-head activations [tokens, heads, nope] and [tokens, heads, latent]
        in BF16 and the per-head weights once (62 us measured at 1,024 tokens on GB200; FLOPs alone say 11).
        """
        elementwise = machine.coefficients("elementwise", "default", ElementwiseCoefficients)
        start_s = machine.coefficients("dense_gemm", "bf16", DenseGemmCoefficients).start_s
        dims = self.qk_nope_dim + self.v_dim
        moved = 2 * heads * (tokens * (dims + 2 * self.kv_lora_rank) + dims * self.kv_lora_rank)
        flops_s = 2 * tokens * heads * dims * self.kv_lora_rank / machine.hardware.gpu.peak_flops_per_s("bf16")
        moved_s = moved / machine.hbm_bytes_per_s
        time_s = 2 * start_s + moved_s / elementwise.memory_efficiency
        return as_floats(np.where(tokens > 0, np.maximum(time_s, flops_s), 0.0)), np.maximum(moved_s, flops_s)

    def state_bytes(self, context_tokens: ArrayLike, tp: ArrayLike, recipe: PrecisionRecipe) -> Floats:
        """The latent is shared by all heads, so tensor parallelism replicates it."""
        context, _ = np.broadcast_arrays(as_floats(context_tokens), as_floats(tp))
        return as_floats(context * self.cache_elements_per_token * DTYPES[recipe.kv_cache].weight_bytes)

    def state_copies(self, tp: float) -> float:
        return tp
