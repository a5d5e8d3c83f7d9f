"""Block-sparse grouped-query attention (MiniMax-M3): an indexer scores blocks of keys, queries attend to the best blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from cost_models.arrays import Floats, as_floats
from cost_models.attention.base import Operators, OperatorSource, Phase, Requirement, per_head_rank
from cost_models.attention.blocks import (
    block_decode_time_s,
    block_prefill_bound_s,
    block_prefill_time_s,
)
from cost_models.attention.decode import gqa_decode_bound_s
from cost_models.attention.grouped import GroupedKind
from cost_models.attention.indexing import IndexShape, SparseCoefficients, index_bound_s, index_time_s
from cost_models.attention.prompt import seen_pairs
from cost_models.specs.precision import DTYPES, PrecisionRecipe

if TYPE_CHECKING:
    from cost_models.machine import Machine

INDEX_BYTES = 2
"""Index keys stay in BF16 whatever the cache is kept in (module timings do not move with the cache's dtype)."""


class BlockSparseSpec(GroupedKind):
    """Every KV head has an index head of its own that chooses top_blocks blocks for the query heads of its group.

    One index key per token serves all index heads; it is held by every tensor-parallel rank. A block's score is the best of
    its tokens'. The newest block is always among the chosen, half full on average. Index projections are fused with those of
    queries, keys and values.
    """

    kind: Literal["block_sparse"] = "block_sparse"
    block_tokens: int = Field(gt=0)
    top_blocks: int = Field(gt=0)
    index_heads: int = Field(gt=0)
    index_dim: int = Field(gt=0)

    @property
    def index(self) -> IndexShape:
        return IndexShape(self.index_heads, self.index_dim, self.top_blocks, self.index_dim * INDEX_BYTES)

    @property
    def page_tokens(self) -> int:
        """Blocks are chosen and read as whole pages."""
        return self.block_tokens

    @property
    def reach_tokens(self) -> float:
        """Tokens that a query attends to where the context has more."""
        return (self.top_blocks - 0.5) * self.block_tokens

    def input_parts(self) -> tuple[tuple[int, int], ...]:
        """Queries of the index are shared out like KV heads; its key is on every rank."""
        return (*super().input_parts(), (self.index_heads * self.index_dim, self.index_heads), (self.index_dim, 1))

    def vector_parameters(self, layers: int) -> int:
        """Norms of the index's queries and keys too."""
        return super().vector_parameters(layers) + (2 * self.index_dim * layers if self.qk_norm else 0)

    def around(self, machine: Machine, tokens: Floats, tp: Floats) -> Operators:
        """What surrounds the core: the projections."""
        return self.projections(machine, tokens, tp)

    def decode(self, machine: Machine, sequences: Floats, query_tokens: Floats, tp: Floats, context_tokens: float) -> Operators:
        c = machine.coefficients("block_sparse_decode", machine.recipe.kv_cache, SparseCoefficients)
        core = self.decode_core(machine, c, sequences, query_tokens, self.heads / tp, as_floats(context_tokens))
        return self.around(machine, sequences * query_tokens, tp) | core

    def prefill(self, machine: Machine, sequences: Floats, new_tokens: Floats, prefix_tokens: Floats, tp: Floats) -> Operators:
        c = machine.coefficients("block_sparse_prefill", machine.recipe.kv_cache, SparseCoefficients)
        core = self.prefill_core(machine, c, sequences, new_tokens, prefix_tokens, self.heads / tp)
        return self.around(machine, sequences * new_tokens, tp) | core

    def decode_core(
        self, machine: Machine, c: SparseCoefficients, sequences: Floats, query_tokens: Floats, heads: Floats, context: Floats
    ) -> Operators:
        """Indexer and core of a decode step; heads : of the rank. Every query token chooses and reads its own blocks."""
        shape: dict[str, Any] = {**self._shape(machine), "kv_bytes": machine.dtype_info("kv_cache").weight_bytes}
        columns = (sequences, np.minimum(context, self.reach_tokens), heads, self._shared(self.kv_heads, heads), query_tokens)
        time_s = block_decode_time_s(*columns, processors=machine.processors, coefficients=c, **shape)
        # one selection of each sequence read once, as its query tokens may choose alike
        result: Operators = {"block_attention": (time_s, gqa_decode_bound_s(*columns, **shape))}
        keys = sequences * context
        return result | self._index(machine, c, keys, keys * query_tokens, context, heads)

    def prefill_core(
        self, machine: Machine, c: SparseCoefficients, sequences: Floats, new_tokens: Floats, prefix_tokens: Floats, heads: Floats
    ) -> Operators:
        """Indexer and core of a prefill step; heads : of the rank."""
        shape = self._shape(machine)
        chosen = sequences * seen_pairs(new_tokens, prefix_tokens, self.reach_tokens)
        columns = (sequences, sequences * new_tokens, chosen, heads, self._shared(self.kv_heads, heads))
        time_s = block_prefill_time_s(*columns, coefficients=c, **shape)
        # one selection of each sequence read once, as its query tokens may choose alike
        result: Operators = {"block_attention": (time_s, block_prefill_bound_s(*columns[1:4], **shape))}
        last = new_tokens + prefix_tokens
        pairs = sequences * seen_pairs(new_tokens, prefix_tokens)
        return result | self._index(machine, c, sequences * last, pairs, last, heads)

    def _shape(self, machine: Machine) -> dict[str, Any]:
        return {
            "head_dim": self.mean_dim,
            "peak_flops_per_s": machine.hardware.gpu.peak_flops_per_s("bf16"),
            "hbm_bytes_per_s": machine.hbm_bytes_per_s,
        }

    def _shared(self, count: int, heads: Floats) -> Floats:
        """KV or index heads on a rank with so many query heads."""
        return per_head_rank(count, self.heads / as_floats(heads))

    def _index(
        self, machine: Machine, c: SparseCoefficients, keys: Floats, pairs: Floats, longest: Floats, heads: Floats
    ) -> Operators:
        """Scores of all keys, and the choice of blocks. pairs : (query, key) pairs of one index head."""
        peak = machine.hardware.gpu.peak_flops_per_s("bf16")
        shape: dict[str, Any] = {"index": self.index, "peak_flops_per_s": peak, "hbm_bytes_per_s": machine.hbm_bytes_per_s}
        own = self._shared(self.index_heads, heads)
        scored = pairs * own / self.index_heads
        blocks = pairs * own / self.block_tokens
        time_s = index_time_s(keys, scored, blocks, longest / self.block_tokens, coefficients=c, **shape)
        return {"indexer": (time_s, index_bound_s(keys, scored, **shape))}

    def state_bytes(self, context_tokens: ArrayLike, tp: ArrayLike, recipe: PrecisionRecipe) -> Floats:
        """Keys and values, which ranks beyond the KV heads hold in copies, and the index key, which every rank holds."""
        elements = self.cache_elements_per_token * DTYPES[recipe.kv_cache].weight_bytes
        shards = np.minimum(as_floats(tp), self.kv_heads)
        return as_floats(as_floats(context_tokens) * (elements / shards + self.index.key_bytes))

    def state_copies(self, tp: float) -> float:
        """Of a BF16 cache."""
        cache, index = 2 * self.cache_elements_per_token, self.index.key_bytes
        return (cache * tp / min(tp, self.kv_heads) + index * tp) / (cache + index)

    def elementwise_elements(self, phase: Phase, tp: Floats) -> Floats:
        """Queries, keys and values, and those of the indexer."""
        own = (per_head_rank(self.index_heads, tp) + 1) * self.index_dim
        return as_floats(super().elementwise_elements(phase, tp) + own)

    def requirements(self, recipe: PrecisionRecipe, phase: Phase) -> tuple[Requirement, ...]:
        return ((f"block_sparse_{phase}", recipe.kv_cache), ("elementwise", "default" if phase == "decode" else "prefill"))

    def sources(self, recipe: PrecisionRecipe, phase: Phase, inputs: Mapping[str, float]) -> dict[str, OperatorSource]:
        core = (f"block_sparse_{phase}", recipe.kv_cache, {**inputs, "heads": self.heads / inputs["tp"]})
        return {"block_attention": core, "indexer": core}
