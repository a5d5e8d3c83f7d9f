"""Gated delta net (arXiv 2412.06464) as Qwen3-Next and Qwen3.5 have it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cost_models.arrays import Floats
from cost_models.attention.base import Operators
from cost_models.attention.recurrent_kind import RecurrentKind
from cost_models.operators import matrix_gemm
from cost_models.specs.matrix import Matrix

if TYPE_CHECKING:
    from cost_models.machine import Machine

FUSED_GEMMS = 2
"""Of the input: queries, keys, values and output gate in one, rates and decays in another."""


@dataclass(frozen=True, slots=True)
class InputProjections:
    """How an engine multiplies a layer's input."""

    gemms: float
    """2: see FUSED_GEMMS; 4: the output gate and the decays apart from what they are fused with [-]."""


def _both(first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    return first[0] + second[0], first[1] + second[1]


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
            Matrix("delta_decay", "gates", 2 * self.value_heads, hidden, layers, "column"),
            Matrix("delta_out", "o_proj", hidden, self.out_features, layers, "row"),
        ]

    def projections(self, machine: Machine, tokens: Floats, tp: Floats, without: tuple[str, ...] = ()) -> Operators:
        """The GEMM of every matrix; the input's in as many as the engine has for it (calibration variant `projections`)."""
        found = super().projections(machine, tokens, tp, without)
        if not machine.calibration.has(self.kind, "projections"):
            return found
        gemms = machine.coefficients(self.kind, "projections", InputProjections).gemms
        if gemms > FUSED_GEMMS:
            hidden = machine.model.hidden
            parts = [Matrix("delta_in", "attention_in", n, hidden, 1, "column") for n in (self.conv_channels, self.out_features)]
            rates = Matrix("delta_decay", "gates", self.value_heads, hidden, 1, "column")
            found["delta_in"] = _both(matrix_gemm(machine, parts[0], tokens, tp), matrix_gemm(machine, parts[1], tokens, tp))
            found["delta_decay"] = _both(*[matrix_gemm(machine, rates, tokens, tp)] * 2)
        return found

    def vector_parameters(self, layers: int) -> int:
        """Convolution, decay rates and their biases, the norm of a head."""
        return layers * (self.conv_channels * self.conv + 2 * self.value_heads + self.value_dim)
