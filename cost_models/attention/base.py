"""What every attention kind answers; memory, steps, search, serving and provenance ask nothing else.

A kind is one module with one class: its fields are what a model card says, its methods the physics. To add one, see
docs/models/adding_an_attention_kind.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats
from cost_models.operators import matrix_gemm
from cost_models.specs.base import Spec
from cost_models.specs.matrix import Matrix
from cost_models.specs.precision import PrecisionRecipe

if TYPE_CHECKING:
    from cost_models.machine import Machine

Phase = Literal["decode", "prefill"]
Operators = dict[str, tuple[Floats, Floats]]
"""Operator -> (time, roofline bound) in one layer [s]."""
Requirement = tuple[str, str]
"""Calibration family and variant."""
OperatorSource = tuple[str, str, Mapping[str, float]]
"""Calibration family, variant, and the inputs that its measured box is checked against."""


class AttentionKind(Spec, ABC):
    """One kind of token mixing. All counts are of one layer; tp shards heads, never tokens."""

    kind: str
    """Its name in the registry."""
    fixed_state: ClassVar[bool] = False
    """Whether a sequence's state keeps its size whatever the context."""

    @property
    @abstractmethod
    def shardable_heads(self) -> int:
        """Tensor parallelism must divide this."""

    @abstractmethod
    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        """Weight matrices of `layers` layers; parameters, memory and GEMMs are all read off them."""

    @abstractmethod
    def vector_parameters(self, layers: int) -> int:
        """Norms, biases and other parameters that no GEMM multiplies."""

    @abstractmethod
    def decode(self, machine: Machine, sequences: Floats, query_tokens: Floats, tp: Floats, context_tokens: float) -> Operators:
        """Operators of a decode step but the all-reduce and element-wise traffic, (rows,) each.

        sequences, query_tokens (per sequence), tp : (rows,). Raises MissingFactError without coefficients.
        """

    @abstractmethod
    def prefill(self, machine: Machine, sequences: Floats, new_tokens: Floats, prefix_tokens: Floats, tp: Floats) -> Operators:
        """The same for prompts of new_tokens after prefix_tokens that are in the cache already, (rows,) each."""

    @abstractmethod
    def state_bytes(self, context_tokens: ArrayLike, tp: ArrayLike, recipe: PrecisionRecipe) -> Floats:
        """What one sequence of a context keeps on one rank in one layer: keys, latents, recurrent state [B].

        Never decreasing in the context. It is also what a prefill worker hands to a decode worker.
        """

    @abstractmethod
    def state_copies(self, tp: float) -> float:
        """Copies of a sequence's state that a tensor-parallel group holds."""

    @abstractmethod
    def elementwise_elements(self, phase: Phase, tp: Floats) -> Floats:
        """Elements per token on one rank that norms, rotations and cache writes touch, besides the hidden state."""

    @abstractmethod
    def activation_elements(self, phase: Phase, tp: Floats) -> Floats:
        """Elements per token on one rank that are alive together at the widest place of the layer."""

    @abstractmethod
    def requirements(self, recipe: PrecisionRecipe, phase: Phase) -> tuple[Requirement, ...]:
        """Calibration entries that a phase is priced with, besides those of its matrices."""

    @abstractmethod
    def sources(self, recipe: PrecisionRecipe, phase: Phase, inputs: Mapping[str, float]) -> dict[str, OperatorSource]:
        """Operator -> what priced it, for operators that are not plain GEMMs.

        inputs : sequences, tp, and context_tokens (decode) or new_tokens and prefix_tokens (prefill).
        """

    @property
    def normed_heads(self) -> bool:
        """Whether a kernel norms queries and keys by head, beside those that follow from the matrices."""
        return False

    @property
    def page_tokens(self) -> int | None:
        """Tokens that a page of the cache must have for the kernels; none: any."""
        return None

    def timing_columns(self, phase: Phase, tp: int) -> dict[str, int]:
        """Shape columns of the core kernel in a timing table; none where no table of ours holds it."""
        return {}

    def projections(self, machine: Machine, tokens: Floats, tp: Floats, without: tuple[str, ...] = ()) -> Operators:
        """The GEMM of every matrix that is not named in `without`."""
        found = self.matrices(machine.model.hidden, 1)
        return {m.name: matrix_gemm(machine, m, tokens, tp) for m in found if m.name not in without}


def per_head_rank(heads: int, tp: ArrayLike) -> Floats:
    """Heads of one rank: shared out, at least one (then ranks hold copies)."""
    return np.maximum(heads / np.asarray(tp, dtype=np.float64), 1.0)
