"""Latent attention: what dense and sparse kinds share (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from cost_models.arrays import Floats, as_floats
from cost_models.attention.base import AttentionKind, OperatorSource, SharedContext
from cost_models.attention.recurrent import StreamCoefficients, stream_time_s
from cost_models.specs.matrix import Matrix
from cost_models.specs.precision import DTYPES, PrecisionRecipe

if TYPE_CHECKING:
    from cost_models.machine import Machine


def absorb_bytes(tokens: ArrayLike, heads: ArrayLike, width: ArrayLike, latent: ArrayLike) -> Floats:
    """Traffic of one absorbing batched GEMM in BF16: activations over `width` and over the latent, weights once [B].

    width : of a head outside of the latent. Nothing moves without tokens.
    """
    tokens, heads, width, latent = (as_floats(x) for x in np.broadcast_arrays(tokens, heads, width, latent))
    moved = 2 * heads * (tokens * (width + latent) + width * latent)
    return np.where(tokens > 0, moved, 0.0)


class LatentKind(AttentionKind):
    """Keys and values are up-projections of one latent per token, which is all that is cached."""

    heads: int = Field(gt=0)
    q_lora_rank: int = Field(ge=0)
    """0: queries are projected at once, without a latent of their own (DeepSeek-V2-Lite, Kimi Linear)."""
    kv_lora_rank: int = Field(gt=0)
    qk_nope_dim: int = Field(gt=0)
    qk_rope_dim: int = Field(ge=0)
    v_dim: int = Field(gt=0)
    output_gate: bool = False
    """The output of every head is gated by a projection of the layer's input."""
    head_gate: bool = False
    """That gate is one number per head (Ling-3.0), not one per element."""

    @property
    def shardable_heads(self) -> int:
        return self.heads

    @property
    def cache_elements_per_token(self) -> int:
        """Latent and rope key, stored once for all heads: kv_lora_rank + qk_rope_dim, not doubled."""
        return self.kv_lora_rank + self.qk_rope_dim

    @property
    def expanded_elements_per_token(self) -> int:
        return self.heads * (self.qk_nope_dim + self.v_dim)

    @property
    def shared_context(self) -> SharedContext | None:
        """Absorbed queries and outputs over the latent; prompts gather the latents of their prefix and expand them."""
        latents = self.cache_elements_per_token
        return SharedContext(query=latents, output=self.kv_lora_rank, gathered_prefix=latents)

    def context_ranks(self, tp: ArrayLike) -> Floats:
        """Every rank holds the same latents, and the same index keys."""
        return as_floats(tp) if self.shared_context else super().context_ranks(tp)

    @property
    def qk_dim(self) -> int:
        """Query and key elements of one expanded head."""
        return self.qk_nope_dim + self.qk_rope_dim

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        gates = self.heads * (1 if self.head_gate else self.v_dim)
        gate = [Matrix("o_gate", "attention_in", gates, hidden, layers, "column")] if self.output_gate else []
        width = self.q_lora_rank + self.cache_elements_per_token
        return [
            Matrix("q_a_kv_a" if self.q_lora_rank else "kv_a", "attention_in", width, hidden, layers, "replicated"),
            Matrix(
                "q_b" if self.q_lora_rank else "q", "q_b", self.heads * self.qk_dim, self.q_lora_rank or hidden, layers, "column"
            ),
            Matrix("kv_b", "kv_b", self.heads * (self.qk_nope_dim + self.v_dim), self.kv_lora_rank, layers, "column"),
            *gate,
            Matrix("o_proj", "o_proj", hidden, self.heads * self.v_dim, layers, "row"),
        ]

    def vector_parameters(self, layers: int) -> int:
        """The latents' norms."""
        return layers * (self.q_lora_rank + self.kv_lora_rank)

    def absorb(self, machine: Machine, tokens: Floats, heads: Floats) -> tuple[Floats, Floats]:
        """The two batched GEMMs that absorb kv_b into query and output: streaming, not FLOPs.

        Each reads and writes the per-head activations, [tokens, heads, nope] and [tokens, heads, latent] before the core and
        [tokens, heads, latent] and [tokens, heads, v] after it, in BF16, and the weights of its heads once: 335 kB a token and
        17 MB a kernel for 128 heads of DeepSeek-V3 (68 us measured at 1,024 tokens on GB200; FLOPs alone say 14).
        """
        c = machine.coefficients("mla_absorb", "bf16", StreamCoefficients)
        time_s, bound_s = np.zeros(len(tokens)), np.zeros(len(tokens))
        for width in (self.qk_nope_dim, self.v_dim):
            moved = absorb_bytes(tokens, heads, width, self.kv_lora_rank)
            flops_s = 2 * tokens * heads * width * self.kv_lora_rank / machine.hardware.gpu.peak_flops_per_s("bf16")
            streamed_s = stream_time_s(moved, hbm_bytes_per_s=machine.hbm_bytes_per_s, coefficients=c)
            time_s = time_s + np.maximum(streamed_s, flops_s)
            bound_s = bound_s + np.maximum(moved / machine.hbm_bytes_per_s, flops_s)
        return time_s, bound_s

    def absorb_source(self, inputs: Mapping[str, float]) -> OperatorSource:
        """What priced `absorb`; inputs : as of `sources`."""
        tokens = inputs["sequences"] * inputs.get("new_tokens", 1.0)
        return "mla_absorb", "bf16", {"tokens": tokens, "heads": self.heads / inputs["tp"]}

    def state_bytes(self, context_tokens: ArrayLike, tp: ArrayLike, recipe: PrecisionRecipe) -> Floats:
        """The latent is shared by all heads, so tensor parallelism replicates it."""
        context, _ = np.broadcast_arrays(as_floats(context_tokens), as_floats(tp))
        return as_floats(context * self.cache_elements_per_token * DTYPES[recipe.kv_cache].weight_bytes)

    def state_copies(self, tp: float) -> float:
        return tp
