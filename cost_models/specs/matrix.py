"""One weight matrix of a transformer, named by the family that a precision recipe gives a dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
