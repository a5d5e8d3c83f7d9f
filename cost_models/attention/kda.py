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
    """The output gate is one matrix; otherwise it passes a bottleneck of head_dim, as the decay does."""

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
        width, narrow = self.out_features, self.head_dim
        gate = [Matrix("kda_gate", "attention_in", width, hidden, layers, "column")]
        if not self.full_rank_gate:
            gate = [
                Matrix("kda_gate_a", "attention_in", narrow, hidden, layers, "replicated"),
                Matrix("kda_gate_b", "attention_in", width, narrow, layers, "column"),
            ]
        return [
            Matrix("kda_qkv", "attention_in", self.conv_channels, hidden, layers, "column"),
            Matrix("kda_decay_a", "attention_in", narrow, hidden, layers, "replicated"),
            Matrix("kda_decay_b", "attention_in", width, narrow, layers, "column"),
            Matrix("kda_beta", "attention_in", self.heads, hidden, layers, "column"),
            *gate,
            Matrix("kda_out", "o_proj", hidden, width, layers, "row"),
        ]

    def vector_parameters(self, layers: int) -> int:
        """Convolutions, decay rates and biases, the norm of a head."""
        return layers * (self.conv_channels * self.conv + self.heads + self.out_features + self.head_dim)
