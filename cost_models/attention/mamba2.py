"""Mamba-2 state-space layers (arXiv 2405.21060) as Nemotron-H has them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cost_models.attention.recurrent_kind import RecurrentKind
from cost_models.specs.matrix import Matrix


class Mamba2Spec(RecurrentKind):
    """Heads of head_dim channels, each with a head_dim x state_dim state; groups share their input and output maps."""

    kind: Literal["mamba2"] = "mamba2"
    heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    state_dim: int = Field(gt=0)
    groups: int = Field(gt=0)

    @property
    def state_heads(self) -> int:
        return self.heads

    @property
    def state_elements(self) -> int:
        return self.head_dim * self.state_dim

    @property
    def conv_channels(self) -> int:
        """Inputs, and the input and output maps of each group."""
        return self.out_features + 2 * self.groups * self.state_dim

    @property
    def in_features(self) -> int:
        """Gate, convolved channels and a step size per head."""
        return self.out_features + self.conv_channels + self.heads

    @property
    def out_features(self) -> int:
        return self.heads * self.head_dim

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        shared = 2 * self.groups * self.state_dim
        parts = ((self.in_features - shared, self.heads), (shared, self.groups))
        return [
            Matrix("mamba_in", "attention_in", self.in_features, hidden, layers, "column", parts=parts),
            Matrix("mamba_out", "o_proj", hidden, self.out_features, layers, "row"),
        ]

    def vector_parameters(self, layers: int) -> int:
        """Convolution with bias, decay, skip and step-size biases, the gated norm."""
        return layers * (self.conv_channels * (self.conv + 1) + 3 * self.heads + self.out_features)
