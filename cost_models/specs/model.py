"""Model specification: the matrices of a transformer, named by family.

One list of matrices serves parameter counts, memory by shard and the GEMMs of a step, so the
three cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from cost_models.specs.base import Spec
from cost_models.specs.precision import DTYPES, PrecisionRecipe

Sharding = Literal["column", "row", "replicated"]
Family = Literal[
    "attention_in", "q_b", "kv_b", "o_proj", "dense_ffn", "shared_expert", "experts", "router", "lm_head", "embedding"
]


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight matrix y = x W^T: n output features, k input features, in `layers` layers."""

    name: str
    family: Family
    n: int
    k: int
    layers: int
    sharding: Sharding
    copies: int = 1
    """Matrices of this shape per layer (routed experts)."""

    @property
    def parameters(self) -> int:
        return self.n * self.k * self.layers * self.copies


class MlaSpec(Spec):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    kind: Literal["mla"] = "mla"
    heads: int = Field(gt=0)
    q_lora_rank: int = Field(gt=0)
    kv_lora_rank: int = Field(gt=0)
    qk_nope_dim: int = Field(gt=0)
    qk_rope_dim: int = Field(gt=0)
    v_dim: int = Field(gt=0)

    @property
    def cache_elements_per_token(self) -> int:
        """Latent and rope key, stored once for all heads: kv_lora_rank + qk_rope_dim, not doubled."""
        return self.kv_lora_rank + self.qk_rope_dim

    @property
    def max_kv_shards(self) -> int:
        """The latent is shared by all heads, so tensor parallelism replicates it."""
        return 1

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        qk_dim = self.qk_nope_dim + self.qk_rope_dim
        return [
            Matrix("q_a_kv_a", "attention_in", self.q_lora_rank + self.cache_elements_per_token, hidden, layers, "replicated"),
            Matrix("q_b", "q_b", self.heads * qk_dim, self.q_lora_rank, layers, "column"),
            Matrix("kv_b", "kv_b", self.heads * (self.qk_nope_dim + self.v_dim), self.kv_lora_rank, layers, "column"),
            Matrix("o_proj", "o_proj", hidden, self.heads * self.v_dim, layers, "row"),
        ]

    def vector_parameters(self, layers: int) -> int:
        """The two latent norms."""
        return layers * (self.q_lora_rank + self.kv_lora_rank)


class GqaSpec(Spec):
    """Grouped-query attention, optionally with a sliding window in some layers."""

    kind: Literal["gqa"] = "gqa"
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    window_tokens: int | None = Field(default=None, gt=0)
    windowed_layers: int = Field(default=0, ge=0)
    bias: bool = False
    qk_norm: bool = False
    sinks: bool = False

    @property
    def cache_elements_per_token(self) -> int:
        """Keys and values of every KV head."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def max_kv_shards(self) -> int:
        """Tensor parallelism beyond the KV heads replicates them."""
        return self.kv_heads

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        return [
            Matrix("qkv", "attention_in", (self.heads + 2 * self.kv_heads) * self.head_dim, hidden, layers, "column"),
            Matrix("o_proj", "o_proj", hidden, self.heads * self.head_dim, layers, "row"),
        ]

    def vector_parameters(self, layers: int) -> int:
        """Biases, per-head norms and sinks."""
        qkv_bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.bias else 0
        norms = 2 * self.head_dim if self.qk_norm else 0
        return layers * (qkv_bias + norms + (self.heads if self.sinks else 0))


class MoeSpec(Spec):
    """Routed and shared experts; SwiGLU with fused gate and up."""

    experts: int = Field(gt=0)
    top_k: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    shared_intermediate: int = Field(default=0, ge=0)
    """Width of all shared experts together; 0 where there are none."""
    groups: int = Field(default=1, gt=0)
    top_k_groups: int = Field(default=1, gt=0)
    """Group-limited routing: the top_k experts come from this many of the groups."""
    bias: bool = False
    correction_bias: bool = False

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        routed = [
            Matrix("router", "router", self.experts, hidden, layers, "replicated"),
            Matrix("expert_gate_up", "experts", 2 * self.intermediate, hidden, layers, "column", self.experts),
            Matrix("expert_down", "experts", hidden, self.intermediate, layers, "row", self.experts),
        ]
        if not self.shared_intermediate:
            return routed
        return [
            *routed,
            Matrix("shared_gate_up", "shared_expert", 2 * self.shared_intermediate, hidden, layers, "column"),
            Matrix("shared_down", "shared_expert", hidden, self.shared_intermediate, layers, "row"),
        ]

    def vector_parameters(self, hidden: int, layers: int) -> int:
        expert_bias = self.experts * (2 * self.intermediate + hidden) + self.experts if self.bias else 0
        return layers * (expert_bias + (self.experts if self.correction_bias else 0))


class PublishedCount(Spec):
    """An exact parameter count to check the specification against."""

    parameters: int
    source: str


class ModelSpec(Spec):
    """A decoder-only transformer as the cost models see it."""

    name: str
    title: str
    source: str
    hidden: int = Field(gt=0)
    layers: int = Field(gt=0)
    dense_layers: int = Field(ge=0)
    """Layers with a dense FFN; the others have experts. Dense layers come first."""
    dense_intermediate: int = Field(ge=0)
    vocab: int = Field(gt=0)
    tied_embeddings: bool = False
    attention: MlaSpec | GqaSpec = Field(discriminator="kind")
    moe: MoeSpec | None = None
    mtp_layers: int = Field(default=0, ge=0)
    """Multi-token-prediction modules in the checkpoint (not part of the main model)."""
    max_context_tokens: int = Field(gt=0)
    attention_output_bias: bool = False
    checkpoints: dict[str, str] = Field(default_factory=dict)
    """Precision recipe -> published checkpoint."""
    stored: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Precision recipe -> dtypes of the fields that its checkpoint stores otherwise than the recipe says."""
    published: PublishedCount | None = None
    flags: tuple[str, ...] = ()
    """What the cost models leave out for this model, said by name."""

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers if self.moe else 0

    def layer_matrices(self) -> list[Matrix]:
        """Matrices inside the transformer layers."""
        matrices = self.attention.matrices(self.hidden, self.layers)
        if self.dense_layers:
            matrices += [
                Matrix("ffn_gate_up", "dense_ffn", 2 * self.dense_intermediate, self.hidden, self.dense_layers, "column"),
                Matrix("ffn_down", "dense_ffn", self.hidden, self.dense_intermediate, self.dense_layers, "row"),
            ]
        if self.moe:
            matrices += self.moe.matrices(self.hidden, self.moe_layers)
        return matrices

    def head_matrices(self) -> list[Matrix]:
        """Embedding and lm_head; one matrix where they are tied."""
        embedding = Matrix("embedding", "embedding", self.vocab, self.hidden, 1, "column")
        lm_head = Matrix("lm_head", "lm_head", self.vocab, self.hidden, 1, "column")
        return [lm_head] if self.tied_embeddings else [embedding, lm_head]

    def matrices(self) -> list[Matrix]:
        return self.layer_matrices() + self.head_matrices()

    def mtp_matrices(self) -> list[Matrix]:
        """One MTP module: a whole MoE layer plus the projection of [hidden; embedding] (arXiv 2412.19437, 2.2)."""
        if not self.mtp_layers or not self.moe:
            return []
        layer = self.attention.matrices(self.hidden, 1) + self.moe.matrices(self.hidden, 1)
        return [*layer, Matrix("mtp_proj", "attention_in", self.hidden, 2 * self.hidden, 1, "replicated")]

    def vector_parameters(self) -> int:
        """Norms and biases: uncounted in GEMMs, counted in totals."""
        norms = (2 * self.layers + 1) * self.hidden
        output_bias = self.layers * self.hidden if self.attention_output_bias else 0
        moe = self.moe.vector_parameters(self.hidden, self.moe_layers) if self.moe else 0
        return norms + output_bias + moe + self.attention.vector_parameters(self.layers)

    def parameters(self) -> int:
        """Exact parameter count of the main model."""
        return sum(m.parameters for m in self.matrices()) + self.vector_parameters()

    def active_parameters(self) -> int:
        """Parameters that one token multiplies with (routed experts: top_k of experts; no embedding lookup)."""
        total = 0.0
        for m in self.matrices():
            if m.family == "embedding":
                continue
            share = self.moe.top_k / self.moe.experts if m.family == "experts" and self.moe else 1.0
            total += m.parameters * share
        return round(total)

    def kv_bytes_per_token(self, recipe: PrecisionRecipe) -> float:
        """KV cache of one token in all layers, before sharding [B]."""
        element_bytes = DTYPES[recipe.kv_cache].weight_bytes
        return self.attention.cache_elements_per_token * self.layers * element_bytes

    def scaled_to_layers(self, layers: int) -> ModelSpec:
        """The same model with another depth (dense layers kept first)."""
        dense = layers if not self.moe else min(self.dense_layers, max(layers - 1, 0))
        attention = self.attention
        if isinstance(attention, GqaSpec) and attention.windowed_layers:
            windowed = attention.windowed_layers * layers // self.layers
            attention = attention.model_copy(update={"windowed_layers": windowed})
        return self.model_copy(update={"layers": layers, "dense_layers": dense, "published": None, "attention": attention})
