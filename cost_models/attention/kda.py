"""Kimi delta attention (arXiv 2510.26692): a delta rule whose decay is set per channel."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cost_models.attention.recurrent_kind import RecurrentKind
from cost_models.specs.matrix import Matrix


class KdaSpec(RecurrentKind):
    """Every head has queries, keys, values and a decay of head_dim channels, and a head_dim x head_dim state."""

    kind: Literal["kda"] = "kda"
    heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    full_rank_gate: bool = False
    """The output gate is one matrix; otherwise it passes a bottleneck of head_dim."""
    full_rank_decay: bool = False
    """The same of the decay (Ling-3.0)."""

    @property
    def state_heads(self) -> int:
        return self.heads

    @property
    def state_elements(self) -> int:
        return self.head_dim**2

    @property
    def conv_channels(self) -> int:
        return 3 * self.heads * self.head_dim

    @property
    def in_features(self) -> int:
        """Queries, keys, values, decay and output gate."""
        return self.conv_channels + 2 * self.heads * self.head_dim

    @property
    def out_features(self) -> int:
        return self.heads * self.head_dim

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        return [
            Matrix("kda_qkv", "attention_in", self.conv_channels, hidden, layers, "column"),
            *self._per_channel("kda_decay", hidden, layers, whole=self.full_rank_decay),
            Matrix("kda_beta", "attention_in", self.heads, hidden, layers, "column"),
            *self._per_channel("kda_gate", hidden, layers, whole=self.full_rank_gate),
            Matrix("kda_out", "o_proj", hidden, self.out_features, layers, "row"),
        ]

    def _per_channel(self, name: str, hidden: int, layers: int, *, whole: bool) -> list[Matrix]:
        """A number for every channel of every head: by one matrix, or through a bottleneck of head_dim."""
        width, narrow = self.out_features, self.head_dim
        if whole:
            return [Matrix(name, "attention_in", width, hidden, layers, "column")]
        return [
            Matrix(f"{name}_a", "attention_in", narrow, hidden, layers, "replicated"),
            Matrix(f"{name}_b", "attention_in", width, narrow, layers, "column"),
        ]

    def vector_parameters(self, layers: int) -> int:
        """Convolutions, decay rates and biases, the norm of a head."""
        return layers * (self.conv_channels * self.conv + self.heads + self.out_features + self.head_dim)
