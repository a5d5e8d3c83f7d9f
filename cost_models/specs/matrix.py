"""One weight matrix of a transformer, named by the family that a precision recipe gives a dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats

Sharding = Literal["column", "row", "replicated"]
Family = Literal[
    "attention_in",
    "q_b",
    "kv_b",
    "o_proj",
    "dense_ffn",
    "shared_expert",
    "experts",
    "router",
    "router_fp32",
    "gates",
    "lm_head",
    "embedding",
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
    parts: tuple[tuple[int, int], ...] = ()
    """(n, most shards) of fused column-parallel parts that stop sharding at different counts; none: all n at any."""

    def rank_n(self, shards: ArrayLike) -> Floats:
        """Output features on one of `shards` ranks; a part beyond its most shards is held in copies."""
        ranks = as_floats(shards)
        if self.sharding != "column":
            return np.full(ranks.shape, float(self.n))
        if not self.parts:
            return as_floats(self.n / ranks)
        return as_floats(sum(n / np.minimum(ranks, most) for n, most in self.parts))

    def rank_k(self, shards: ArrayLike) -> Floats:
        """Input features on one of `shards` ranks."""
        ranks = as_floats(shards)
        return as_floats(self.k / ranks if self.sharding == "row" else np.full(ranks.shape, float(self.k)))

    @property
    def parameters(self) -> int:
        return self.n * self.k * self.layers * self.copies
