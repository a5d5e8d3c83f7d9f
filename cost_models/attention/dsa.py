"""DeepSeek sparse attention (arXiv 2512.02556): multi-head latent attention over the tokens that an indexer selects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from cost_models.arrays import Floats, as_floats
from cost_models.attention.base import Operators, OperatorSource, Phase, Requirement, SharedContext, core_inputs
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
from cost_models.attention.latent import LatentKind
from cost_models.attention.prompt import seen_pairs
from cost_models.specs.matrix import Matrix
from cost_models.specs.precision import DTYPES, PrecisionRecipe

if TYPE_CHECKING:
    from cost_models.machine import Machine

CANDIDATE_BYTES = 8
"""Score and position of a token that an index chose."""


class DsaSpec(LatentKind):
    """Latent attention whose layers compute an index of their own or reuse that of the layer before.

    The indexer is replicated over tensor-parallel ranks and keeps a second cache: an FP8 key and its scale per token.
    Prefill is absorbed like decode, so nothing is expanded.
    """

    kind: Literal["dsa"] = "dsa"
    q_lora_rank: int = Field(gt=0)
    """The indexer's queries come from the same latent."""
    index_heads: int = Field(gt=0)
    index_dim: int = Field(gt=0)
    top_k: int = Field(gt=0)
    key_pool: int = Field(default=1, gt=0)
    """Tokens that one index key stands for (GLM-5.3-Flash); top_k still counts tokens."""
    computes_index: bool = True
    """False: the layer attends to what an earlier layer selected, and keeps no index keys."""

    @property
    def index(self) -> IndexShape:
        return IndexShape(self.index_heads, self.index_dim, self.top_k // self.key_pool)

    @property
    def pools_keys(self) -> bool:
        """Whether index keys are gated sums over key_pool tokens."""
        return self.key_pool > 1

    @property
    def shared_context(self) -> SharedContext | None:
        """Absorbed queries and outputs, of prompts too; a rank's index chooses among its own keys, then all choose together.

        vllm/model_executor/layers/sparse_attn_indexer.py (0.33.0). Pooled keys are not shared out (vllm/models/glm5next).
        """
        if self.pools_keys:
            return None
        return SharedContext(
            query=self.cache_elements_per_token,
            output=self.kv_lora_rank,
            chosen_bytes=self.top_k * CANDIDATE_BYTES if self.computes_index else 0,
            exchanges_new=True,
        )

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        """A pooled key has a gate of its width beside it."""
        found = super().matrices(hidden, layers)
        if not self.computes_index:
            return found
        return [
            *found,
            Matrix("index_q", "q_b", self.index_heads * self.index_dim, self.q_lora_rank, layers, "replicated"),
            Matrix("index_k", "attention_in", self.index_dim * (1 + self.pools_keys), hidden, layers, "replicated"),
            Matrix("index_weights", "attention_in", self.index_heads, hidden, layers, "replicated"),
        ]

    def vector_parameters(self, layers: int) -> int:
        """The latent norms, scale and bias of the index key's norm, and the positions inside a pool."""
        own = self.index_dim * (2 + (self.key_pool if self.pools_keys else 0))
        return super().vector_parameters(layers) + (own * layers if self.computes_index else 0)

    def decode(self, machine: Machine, sequences: Floats, query_tokens: Floats, tp: Floats, context_tokens: float) -> Operators:
        c = machine.coefficients("dsa_decode", machine.recipe.kv_cache, SparseCoefficients)
        core = self.decode_core(machine, c, sequences, query_tokens, self.heads / tp, as_floats(context_tokens))
        return self.around(machine, sequences * query_tokens, tp) | core

    def shared_core(
        self,
        machine: Machine,
        sequences: Floats,
        query_tokens: Floats,
        tp: Floats,
        dcp: Floats,
        context_tokens: float,
    ) -> Operators:
        """Each rank scores its own index keys, and attends to those of the chosen tokens that it holds: an equal share."""
        if self.pools_keys:
            return {}
        c = machine.coefficients("dsa_decode", machine.recipe.kv_cache, SparseCoefficients)
        heads = self.heads / tp * dcp
        return self.decode_core(machine, c, sequences, query_tokens, heads, context_tokens / dcp, self.top_k / dcp)

    def around(self, machine: Machine, tokens: Floats, tp: Floats) -> Operators:
        """What surrounds the core: projections and absorption."""
        result = self.projections(machine, tokens, tp, without=("kv_b",))
        result["absorb"] = self.absorb(machine, tokens, self.heads / tp)
        return result

    def decode_core(
        self,
        machine: Machine,
        c: SparseCoefficients,
        sequences: Floats,
        query_tokens: Floats,
        heads: Floats,
        context: Floats,
        attended: ArrayLike | None = None,
    ) -> Operators:
        """Indexer and sparse core of a decode step.

        heads, context : of the rank; attended : chosen tokens that it attends to at most, all of them when absent.
        """
        most = self.top_k if attended is None else attended
        shape: dict[str, Any] = {
            "latent_dim": self.kv_lora_rank,
            "rope_dim": self.qk_rope_dim,
            "kv_bytes": machine.dtype_info("kv_cache").weight_bytes,
            "peak_flops_per_s": machine.hardware.gpu.peak_flops_per_s("bf16"),
            "hbm_bytes_per_s": machine.hbm_bytes_per_s,
        }
        columns = (sequences, context, heads, query_tokens)
        core = sparse_decode_time_s(*columns, top_k=most, coefficients=c, **shape)
        result: Operators = {"sparse_attention": (core, sparse_decode_bound_s(*columns, top_k=most, **shape))}
        pools = context / self.key_pool
        keys = sequences * pools
        return result | self._index(machine, c, keys, keys * query_tokens, keys * query_tokens, pools)

    def prefill(self, machine: Machine, sequences: Floats, new_tokens: Floats, prefix_tokens: Floats, tp: Floats) -> Operators:
        c = machine.coefficients("dsa_prefill", machine.recipe.kv_cache, SparseCoefficients)
        core = self.prefill_core(machine, c, sequences, new_tokens, prefix_tokens, self.heads / tp)
        return self.around(machine, sequences * new_tokens, tp) | core

    def prefill_core(
        self, machine: Machine, c: SparseCoefficients, sequences: Floats, new_tokens: Floats, prefix_tokens: Floats, heads: Floats
    ) -> Operators:
        """Indexer and sparse core of a prefill step; heads : of the rank."""
        shape: dict[str, Any] = {
            "latent_dim": self.kv_lora_rank,
            "rope_dim": self.qk_rope_dim,
            "peak_flops_per_s": machine.hardware.gpu.peak_flops_per_s("bf16"),
            "hbm_bytes_per_s": machine.hbm_bytes_per_s,
        }
        selected = sequences * seen_pairs(new_tokens, prefix_tokens, self.top_k)
        columns = (sequences * new_tokens, selected, heads)
        core = sparse_prefill_time_s(sequences, *columns, full_selection=self.top_k, coefficients=c, **shape)
        result: Operators = {"sparse_attention": (core, sparse_prefill_bound_s(*columns, **shape))}
        last = (new_tokens + prefix_tokens) / self.key_pool
        pairs = sequences * seen_pairs(new_tokens, prefix_tokens) / self.key_pool
        keys = sequences * last
        return result | self._index(machine, c, keys, pairs, sequences * new_tokens * keys, last)

    def _index(
        self, machine: Machine, c: SparseCoefficients, keys: Floats, pairs: Floats, scores: Floats, longest: Floats
    ) -> Operators:
        if not self.computes_index:
            return {}
        peak = machine.hardware.gpu.peak_flops_per_s("fp8")
        shape: dict[str, Any] = {"index": self.index, "peak_flops_per_s": peak, "hbm_bytes_per_s": machine.hbm_bytes_per_s}
        return {
            "indexer": (index_time_s(keys, pairs, scores, longest, coefficients=c, **shape), index_bound_s(keys, pairs, **shape))
        }

    def state_bytes(self, context_tokens: ArrayLike, tp: ArrayLike, recipe: PrecisionRecipe) -> Floats:
        """Latents, and index keys where the layer computes an index; replicated over tensor-parallel ranks.

        An FP8 latent keeps its rope part in BF16 and an FP32 scale per 128 elements: 656 bytes for 512 + 64 (FlashMLA).
        """
        context, _ = np.broadcast_arrays(as_floats(context_tokens), as_floats(tp))
        latent = self.cache_elements_per_token * DTYPES[recipe.kv_cache].weight_bytes
        if recipe.kv_cache == "fp8":
            latent = self.kv_lora_rank + 4 * -(-self.kv_lora_rank // 128) + 2 * self.qk_rope_dim
        own = self.index.key_bytes / self.key_pool if self.computes_index else 0.0
        return as_floats(context * (latent + own))

    def activation_elements(self, phase: Phase, tp: Floats) -> Floats:
        """Query and output over latents: prefill is absorbed like decode."""
        return as_floats(self.heads / tp * 2 * self.cache_elements_per_token)

    def elementwise_elements(self, phase: Phase, tp: Floats) -> Floats:
        """Queries over latents, and those of the indexer."""
        own = self.index_heads * self.index_dim if self.computes_index else 0
        return as_floats(self.heads / tp * self.cache_elements_per_token + own)

    def requirements(self, recipe: PrecisionRecipe, phase: Phase) -> tuple[Requirement, ...]:
        around: Requirement = ("elementwise", "default" if phase == "decode" else "prefill")
        return ((f"dsa_{phase}", recipe.kv_cache), ("mla_absorb", "bf16"), around)

    def sources(self, recipe: PrecisionRecipe, phase: Phase, inputs: Mapping[str, float]) -> dict[str, OperatorSource]:
        core = (f"dsa_{phase}", recipe.kv_cache, core_inputs(inputs, self.heads))
        indexer = {"indexer": core} if self.computes_index else {}
        return {"sparse_attention": core, **indexer, "absorb": self.absorb_source(inputs)}
