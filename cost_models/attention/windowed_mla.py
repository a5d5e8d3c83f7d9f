"""Latent attention over a sliding window (dots3-note has it between sparse layers)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from cost_models.arrays import Floats, as_floats
from cost_models.attention.base import Operators, OperatorSource, Phase
from cost_models.attention.mla import MlaSpec
from cost_models.specs.precision import PrecisionRecipe

if TYPE_CHECKING:
    from cost_models.machine import Machine


class WindowedMlaSpec(MlaSpec):
    """Latent attention whose queries see the last tokens alone: the kernels of MLA, over fewer latents; no more are kept."""

    kind: Literal["windowed_mla"] = "windowed_mla"  # type: ignore[assignment]
    window_tokens: int = Field(gt=0)

    @property
    def reach_tokens(self) -> float:
        return self.window_tokens

    @property
    def shared_context(self) -> None:
        """Ranks do not share a window."""
        return None

    def decode(self, machine: Machine, sequences: Floats, query_tokens: Floats, tp: Floats, context_tokens: float) -> Operators:
        return super().decode(machine, sequences, query_tokens, tp, min(context_tokens, self.window_tokens))

    def prefill(self, machine: Machine, sequences: Floats, new_tokens: Floats, prefix_tokens: Floats, tp: Floats) -> Operators:
        """Of the cached prefix the last window is expanded and attended to."""
        near = np.minimum(prefix_tokens, self.window_tokens)
        return super().prefill(machine, sequences, new_tokens, near, tp)

    def state_bytes(self, context_tokens: ArrayLike, tp: ArrayLike, recipe: PrecisionRecipe) -> Floats:
        return super().state_bytes(np.minimum(as_floats(context_tokens), self.window_tokens), tp, recipe)

    def sources(self, recipe: PrecisionRecipe, phase: Phase, inputs: Mapping[str, float]) -> dict[str, OperatorSource]:
        seen = {key: min(inputs[key], float(self.window_tokens)) for key in ("context_tokens", "prefix_tokens") if key in inputs}
        return super().sources(recipe, phase, {**inputs, **seen})
