"""Grouped-query attention: what dense and block-sparse kinds share."""

from __future__ import annotations

from pydantic import Field

from cost_models.arrays import Floats, as_floats
from cost_models.attention.base import AttentionKind, Phase, per_head_rank
from cost_models.specs.matrix import Matrix


class GroupedKind(AttentionKind):
    """Keys and values of kv_heads heads; kv_heads = heads is multi-head, kv_heads = 1 multi-query attention."""

    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    """Of queries and keys, and of values where they are not said to be narrower."""
    value_dim: int | None = Field(default=None, gt=0)
    """Of values and outputs, where they are narrower than keys (MiMo-V2)."""
    keys_are_values: bool = False
    """One projection makes keys and values (Gemma 4); the cache holds both, as their norms differ."""
    bias: bool = False
    qk_norm: bool = False
    qk_norm_across_heads: bool = False
    """Queries are normed over all heads at once, and keys too (MiniMax-M2, OLMo 2); otherwise by head."""
    sinks: bool = False
    output_gate: bool = False
    """The output of every head is gated by a projection of the layer's input, fused with the query's."""
    head_gate: bool = False
    """That gate is one number per head (Laguna), not one per element."""

    @property
    def shardable_heads(self) -> int:
        return self.heads

    @property
    def normed_heads(self) -> bool:
        return self.qk_norm

    @property
    def norms_across_heads(self) -> int:
        return 2 if self.qk_norm and self.qk_norm_across_heads else 0

    @property
    def v_dim(self) -> int:
        """Of a value and of an output head."""
        return self.value_dim or self.head_dim

    @property
    def gate_dim(self) -> int:
        """Gates of a head's output."""
        return (1 if self.head_gate else self.v_dim) if self.output_gate else 0

    @property
    def mean_dim(self) -> float:
        """Of keys and values: kernels that read and multiply both take as long as with this width for both."""
        return (self.head_dim + self.v_dim) / 2

    @property
    def cache_elements_per_token(self) -> int:
        """Keys and values of all heads."""
        return self.kv_heads * (self.head_dim + self.v_dim)

    def input_parts(self) -> tuple[tuple[int, int], ...]:
        """Output features of the fused input projection and the most ranks that share each part."""
        query = self.heads * (self.head_dim + self.gate_dim)
        shared = self.kv_heads * (self.head_dim if self.keys_are_values else self.head_dim + self.v_dim)
        return ((query, self.heads), (shared, self.kv_heads))

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        parts = self.input_parts()
        return [
            Matrix("qkv", "attention_in", sum(n for n, _ in parts), hidden, layers, "column", parts=parts),
            Matrix("o_proj", "o_proj", hidden, self.heads * self.v_dim, layers, "row"),
        ]

    def vector_parameters(self, layers: int) -> int:
        """Biases, norms and sinks."""
        qkv_bias = (self.heads * self.head_dim + self.cache_elements_per_token) if self.bias else 0
        normed = self.heads + self.kv_heads if self.qk_norm_across_heads else 2
        norms = normed * self.head_dim if self.qk_norm else 0
        return layers * (qkv_bias + norms + (self.heads if self.sinks else 0))

    def elementwise_elements(self, phase: Phase, tp: Floats) -> Floats:
        """Queries, keys and values."""
        return as_floats(self.heads / tp * self.head_dim + per_head_rank(self.kv_heads, tp) * (self.head_dim + self.v_dim))

    def activation_elements(self, phase: Phase, tp: Floats) -> Floats:
        """Query and output of every head; in prefill keys and values too, before they are in the cache."""
        width = self.heads / tp * (self.head_dim + self.v_dim)
        shared = per_head_rank(self.kv_heads, tp) * (self.head_dim + self.v_dim)
        return as_floats(width + shared if phase == "prefill" else width)
