"""What recurrent kinds have in common: a matrix per head, a short convolution, and kernels that stream or scan them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from cost_models.arrays import Floats, as_floats
from cost_models.attention.base import AttentionKind, Operators, OperatorSource, Phase, Requirement
from cost_models.attention.recurrent import (
    BF16_BYTES,
    STATE_BYTES,
    ScanCoefficients,
    StreamCoefficients,
    convolution_bytes,
    scan_bound_s,
    scan_time_s,
    stream_time_s,
    update_bytes,
)
from cost_models.specs.precision import PrecisionRecipe

if TYPE_CHECKING:
    from cost_models.machine import Machine


class RecurrentKind(AttentionKind):
    """State of fixed size per sequence: it does not grow with the context.

    Engines cache prefixes of such layers at block ends only, so a hit shorter than a block is recomputed; that is not
    modelled. Calibration family: the kind's name, variants update and scan (the recurrence), convolution.decode and .prefill.
    """

    fixed_state: ClassVar[bool] = True
    conv: int = Field(gt=1)
    """Taps of the short convolution before the recurrence."""

    @property
    @abstractmethod
    def state_heads(self) -> int:
        """Heads that have a state each."""

    @property
    @abstractmethod
    def state_elements(self) -> int:
        """Elements of one head's state."""

    @property
    @abstractmethod
    def conv_channels(self) -> int:
        """Channels that the short convolution runs over, in all heads."""

    @property
    @abstractmethod
    def in_features(self) -> int:
        """Outputs of the input projections, in all heads."""

    @property
    @abstractmethod
    def out_features(self) -> int:
        """Inputs of the output projection, in all heads."""

    @property
    def shardable_heads(self) -> int:
        return self.state_heads

    def decode(self, machine: Machine, sequences: Floats, query_tokens: Floats, tp: Floats, context_tokens: float) -> Operators:
        """The context does not matter: that is the point of a recurrent layer."""
        tokens = sequences * query_tokens
        result = self.projections(machine, tokens, tp)
        moved = convolution_bytes(sequences, query_tokens, self.conv_channels / tp, self.conv - 1)
        result["short_convolution"] = self._streamed(machine, "convolution.decode", moved, moved)
        state = self.state_heads * self.state_elements / tp
        least = update_bytes(sequences, 1, state)
        result[f"{self.kind}_update"] = self._streamed(machine, "update", update_bytes(sequences, query_tokens, state), least)
        return result

    def prefill(self, machine: Machine, sequences: Floats, new_tokens: Floats, prefix_tokens: Floats, tp: Floats) -> Operators:
        tokens = sequences * new_tokens
        result = self.projections(machine, tokens, tp)
        moved = convolution_bytes(sequences, new_tokens, self.conv_channels / tp, 0)
        result["short_convolution"] = self._streamed(machine, "convolution.prefill", moved, moved)
        heads = self.state_heads / tp
        c = machine.coefficients(self.kind, "scan", ScanCoefficients)
        bound_s = scan_bound_s(
            tokens,
            heads,
            state_elements=self.state_elements,
            io_elements=(self.conv_channels + self.out_features) / self.state_heads,
            peak_flops_per_s=machine.hardware.gpu.peak_flops_per_s("bf16"),
            hbm_bytes_per_s=machine.hbm_bytes_per_s,
        )
        time_s = scan_time_s(sequences, new_tokens, heads, processors=machine.processors, coefficients=c)
        result[f"{self.kind}_scan"] = (np.maximum(time_s, bound_s), bound_s)
        return result

    def _streamed(self, machine: Machine, variant: str, moved: Floats, least: Floats) -> tuple[Floats, Floats]:
        c = machine.coefficients(self.kind, variant, StreamCoefficients)
        return stream_time_s(moved, hbm_bytes_per_s=machine.hbm_bytes_per_s, coefficients=c), least / machine.hbm_bytes_per_s

    def state_bytes(self, context_tokens: ArrayLike, tp: ArrayLike, recipe: PrecisionRecipe) -> Floats:
        """FP32 states and the convolution's last inputs, whatever the context; none before the first token."""
        context, ranks = np.broadcast_arrays(as_floats(context_tokens), as_floats(tp))
        whole = self.state_heads * self.state_elements * STATE_BYTES + self.conv_channels * (self.conv - 1) * BF16_BYTES
        return as_floats(np.where(context > 0, whole / ranks, 0.0))

    def state_copies(self, tp: float) -> float:
        return 1.0

    def elementwise_elements(self, phase: Phase, tp: Floats) -> Floats:
        """What gates and norms touch: the projected inputs."""
        return as_floats(self.in_features / tp)

    def activation_elements(self, phase: Phase, tp: Floats) -> Floats:
        return as_floats((self.in_features + self.conv_channels + self.out_features) / tp)

    def requirements(self, recipe: PrecisionRecipe, phase: Phase) -> tuple[Requirement, ...]:
        core = "update" if phase == "decode" else "scan"
        elementwise = "default" if phase == "decode" else "prefill"
        return ((self.kind, core), (self.kind, f"convolution.{phase}"), ("elementwise", elementwise))

    def sources(self, recipe: PrecisionRecipe, phase: Phase, inputs: Mapping[str, float]) -> dict[str, OperatorSource]:
        core, tp = "update" if phase == "decode" else "scan", inputs["tp"]
        heads = self.state_heads / tp
        own = {"query_tokens": 1.0, "new_tokens": 1.0, **inputs, "heads": heads, "state_elements": heads * self.state_elements}
        taps = {"channels": self.conv_channels / tp, "state_taps": float(self.conv - 1) if phase == "decode" else 0.0}
        return {
            f"{self.kind}_{core}": (self.kind, core, own),
            "short_convolution": (self.kind, f"convolution.{phase}", {**own, **taps}),
        }
