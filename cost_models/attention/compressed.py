"""Compressed shared-KV attention (DeepSeek-V4): a window of tokens, and a stream that keeps one entry per several tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from cost_models.arrays import Floats, as_floats
from cost_models.attention.base import AttentionKind, Operators, OperatorSource, Phase, Requirement
from cost_models.attention.indexing import (
    IndexShape,
    SparseCoefficients,
    index_bound_s,
    index_time_s,
    sparse_decode_bound_s,
    sparse_decode_time_s,
    sparse_prefill_bound_s,
    sparse_prefill_time_s,
)
from cost_models.attention.prompt import seen_pairs
from cost_models.specs.matrix import Matrix
from cost_models.specs.precision import PrecisionRecipe

if TYPE_CHECKING:
    from cost_models.machine import Machine

CACHE = "fp8"
"""Engines keep these caches in FP8, whatever the flag says."""
STATE_BYTES = 4
OVERLAPPING = 4
"""Ratio whose entries weigh twice as many tokens as they advance; longer ratios do not overlap."""


class CompressedSpec(AttentionKind):
    """One key-value head, key equal to value, for all query heads; output projected in groups of low rank.

    Every layer sees a window of tokens. With a ratio it also sees a stream of entries, one per `ratio` tokens: all of them,
    or, where there is an indexer, the top_k that it selects.
    """

    kind: Literal["compressed"] = "compressed"
    heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    rope_dim: int = Field(ge=0)
    q_lora_rank: int = Field(gt=0)
    o_lora_rank: int = Field(gt=0)
    o_groups: int = Field(gt=0)
    window_tokens: int = Field(gt=0)
    ratio: int = Field(ge=0)
    """Tokens per entry of the stream; 0: the window alone."""
    index_heads: int = Field(default=0, ge=0)
    """0: all entries are attended to."""
    index_dim: int = Field(default=0, ge=0)
    top_k: int = Field(default=0, ge=0)

    @property
    def shardable_heads(self) -> int:
        return self.o_groups

    @property
    def entry_bytes(self) -> int:
        """An entry in FP8: rope part in BF16, a scale byte per 64 elements of the rest."""
        plain = self.head_dim - self.rope_dim
        return plain + 2 * self.rope_dim + -(-plain // 64) + 1

    @property
    def index(self) -> IndexShape:
        return IndexShape(self.index_heads, self.index_dim, self.top_k)

    @property
    def spread(self) -> int:
        """Projections of the compressor per entry: two where entries overlap."""
        return 2 if self.ratio == OVERLAPPING else 1

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        width = self.heads * self.head_dim
        found = [
            Matrix("q_a_kv", "attention_in", self.q_lora_rank + self.head_dim, hidden, layers, "replicated"),
            Matrix("q_b", "q_b", width, self.q_lora_rank, layers, "column"),
            Matrix("o_a", "o_proj", self.o_groups * self.o_lora_rank, width // self.o_groups, layers, "column"),
            Matrix("o_b", "o_proj", hidden, self.o_groups * self.o_lora_rank, layers, "row"),
        ]
        if self.ratio:
            found.append(Matrix("compressor", "attention_in", 2 * self.spread * self.head_dim, hidden, layers, "replicated"))
        if self.index_heads:
            found += [
                Matrix("index_q", "q_b", self.index_heads * self.index_dim, self.q_lora_rank, layers, "replicated"),
                Matrix("index_compressor", "attention_in", 2 * self.spread * self.index_dim, hidden, layers, "replicated"),
                Matrix("index_weights", "attention_in", self.index_heads, hidden, layers, "replicated"),
            ]
        return found

    def vector_parameters(self, layers: int) -> int:
        """Norms, sinks, and the positions that compressors add."""
        streams = [self.head_dim] if self.ratio else []
        streams += [self.index_dim] if self.index_heads else []
        added = sum(width * (1 + self.spread * self.ratio) for width in streams)
        return layers * (self.q_lora_rank + self.head_dim + self.heads + added)

    def around(self, machine: Machine, tokens: Floats, tp: Floats) -> Operators:
        """What surrounds the core: the projections."""
        return self.projections(machine, tokens, tp)

    def decode(self, machine: Machine, sequences: Floats, query_tokens: Floats, tp: Floats, context_tokens: float) -> Operators:
        c = machine.coefficients("compressed_decode", self._variant, SparseCoefficients)
        core = self.decode_core(machine, c, sequences, query_tokens, self.heads / tp, as_floats(context_tokens))
        return self.around(machine, sequences * query_tokens, tp) | core

    def prefill(self, machine: Machine, sequences: Floats, new_tokens: Floats, prefix_tokens: Floats, tp: Floats) -> Operators:
        c = machine.coefficients("compressed_prefill", self._variant, SparseCoefficients)
        core = self.prefill_core(machine, c, sequences, new_tokens, prefix_tokens, self.heads / tp)
        return self.around(machine, sequences * new_tokens, tp) | core

    @property
    def _variant(self) -> str:
        return f"{CACHE}.{'indexed' if self.index_heads else 'whole'}"

    def _entries(self, context_tokens: ArrayLike) -> Floats:
        """Entries that the stream holds for a context."""
        return as_floats(context_tokens) / self.ratio if self.ratio else np.zeros_like(as_floats(context_tokens))

    def decode_core(
        self, machine: Machine, c: SparseCoefficients, sequences: Floats, query_tokens: Floats, heads: Floats, context: Floats
    ) -> Operators:
        """Core and indexer of a decode step; heads : of the rank."""
        entries = self._entries(context)
        attended = np.minimum(entries, self.top_k) if self.index_heads else entries
        seen = np.minimum(context, self.window_tokens) + attended
        shape: dict[str, Any] = {
            "latent_dim": self.head_dim,
            "rope_dim": 0,
            "kv_bytes": self.entry_bytes / self.head_dim,
            "peak_flops_per_s": machine.hardware.gpu.peak_flops_per_s("bf16"),
            "hbm_bytes_per_s": machine.hbm_bytes_per_s,
        }
        columns = (sequences, seen, heads, query_tokens)
        core = sparse_decode_time_s(*columns, top_k=WHOLE, coefficients=c, **shape)
        result: Operators = {self.core: (core, sparse_decode_bound_s(*columns, top_k=WHOLE, **shape))}
        pairs = sequences * entries * query_tokens
        return result | self._index(machine, c, sequences * entries, pairs, pairs, entries)

    def prefill_core(
        self, machine: Machine, c: SparseCoefficients, sequences: Floats, new_tokens: Floats, prefix_tokens: Floats, heads: Floats
    ) -> Operators:
        """Core and indexer of a prefill step; heads : of the rank."""
        near = seen_pairs(new_tokens, prefix_tokens, self.window_tokens)
        far = np.zeros_like(near)
        if self.ratio:
            reach = self.top_k * self.ratio if self.index_heads else np.inf
            far = seen_pairs(new_tokens, prefix_tokens, reach) / self.ratio
        shape: dict[str, Any] = {
            "latent_dim": self.head_dim,
            "rope_dim": 0,
            "peak_flops_per_s": machine.hardware.gpu.peak_flops_per_s("bf16"),
            "hbm_bytes_per_s": machine.hbm_bytes_per_s,
        }
        tokens = sequences * new_tokens
        columns = (sequences, tokens, sequences * (near + far), heads)
        full = self.window_tokens + self.top_k
        core = sparse_prefill_time_s(*columns, full_selection=full, coefficients=c, **shape)
        result: Operators = {self.core: (core, sparse_prefill_bound_s(*columns[1:], **shape))}
        last = self._entries(new_tokens + prefix_tokens)
        scored = sequences * (seen_pairs(new_tokens, prefix_tokens) / self.ratio if self.ratio else 0.0 * new_tokens)
        return result | self._index(machine, c, sequences * last, scored, tokens * sequences * last, last, tokens)

    @property
    def core(self) -> str:
        """Name of the core operator: layers with an indexer are listed apart."""
        return "selected_attention" if self.index_heads else "compressed_attention"

    def _index(
        self,
        machine: Machine,
        c: SparseCoefficients,
        keys: Floats,
        pairs: Floats,
        scores: Floats,
        longest: Floats,
        queries: ArrayLike = 0.0,
    ) -> Operators:
        if not self.index_heads:
            return {}
        peak = machine.hardware.gpu.peak_flops_per_s("fp8")
        shape: dict[str, Any] = {"index": self.index, "peak_flops_per_s": peak, "hbm_bytes_per_s": machine.hbm_bytes_per_s}
        time_s = index_time_s(keys, pairs, scores, longest, queries=queries, coefficients=c, **shape)
        return {"indexer": (time_s, index_bound_s(keys, pairs, **shape))}

    def state_bytes(self, context_tokens: ArrayLike, tp: ArrayLike, recipe: PrecisionRecipe) -> Floats:
        """Window, stream, index keys of the stream, and the tokens that compressors are still collecting; on every rank.

        The one head is shared by all query heads, so tensor parallelism replicates it.
        """
        context, _ = np.broadcast_arrays(as_floats(context_tokens), as_floats(tp))
        per_entry = self.entry_bytes + (self.index.key_bytes if self.index_heads else 0)
        collected = 2 * self.spread * self.ratio * (self.head_dim + self.index_dim * bool(self.index_heads)) * STATE_BYTES
        window = np.minimum(context, self.window_tokens) * self.entry_bytes
        return as_floats(window + self._entries(context) * per_entry + np.where(context > 0, collected, 0.0))

    def state_copies(self, tp: float) -> float:
        return tp

    def elementwise_elements(self, phase: Phase, tp: Floats) -> Floats:
        """Queries, and those of the indexer."""
        return as_floats(self.heads / tp * self.head_dim + self.index_heads * self.index_dim)

    def activation_elements(self, phase: Phase, tp: Floats) -> Floats:
        """Query and output of every head."""
        return as_floats(self.heads / tp * 2 * self.head_dim)

    def requirements(self, recipe: PrecisionRecipe, phase: Phase) -> tuple[Requirement, ...]:
        return ((f"compressed_{phase}", self._variant), ("elementwise", "default" if phase == "decode" else "prefill"))

    def sources(self, recipe: PrecisionRecipe, phase: Phase, inputs: Mapping[str, float]) -> dict[str, OperatorSource]:
        core = (f"compressed_{phase}", self._variant, {**inputs, "heads": self.heads / inputs["tp"]})
        return {self.core: core, **({"indexer": core} if self.index_heads else {})}


WHOLE = 2**40
"""More entries than any context has: nothing is cut off."""
