"""Gated delta net (arXiv 2412.06464) as Qwen3-Next and Qwen3.5 have it."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from cost_models.attention.recurrent_kind import RecurrentKind
from cost_models.specs.matrix import Matrix


class GatedDeltaSpec(RecurrentKind):
    """Value heads share key heads in groups; each value head keeps a key_dim x value_dim state."""

    kind: Literal["gated_delta"] = "gated_delta"
    key_heads: int = Field(gt=0)
    value_heads: int = Field(gt=0)
    key_dim: int = Field(gt=0)
    value_dim: int = Field(gt=0)

    @property
    def shardable_heads(self) -> int:
        return math.gcd(self.key_heads, self.value_heads)

    @property
    def state_heads(self) -> int:
        return self.value_heads

    @property
    def state_elements(self) -> int:
        return self.key_dim * self.value_dim

    @property
    def conv_channels(self) -> int:
        """Queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.out_features

    @property
    def in_features(self) -> int:
        """Queries, keys, values and the output gate."""
        return self.conv_channels + self.out_features

    @property
    def out_features(self) -> int:
        return self.value_heads * self.value_dim

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        return [
            Matrix("delta_in", "attention_in", self.in_features, hidden, layers, "column"),
            Matrix("delta_decay", "attention_in", 2 * self.value_heads, hidden, layers, "column"),
            Matrix("delta_out", "o_proj", hidden, self.out_features, layers, "row"),
        ]

    def vector_parameters(self, layers: int) -> int:
        """Convolution, decay rates and their biases, the norm of a head."""
        return layers * (self.conv_channels * self.conv + 2 * self.value_heads + self.value_dim)
