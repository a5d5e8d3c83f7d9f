"""What every attention kind answers; memory, steps, search, serving and provenance ask nothing else.

A kind is one module with one class: its fields are what a model card says, its methods the physics. To add one, see
docs/models/adding_an_attention_kind.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats
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


@dataclass(frozen=True, slots=True)
class SharedContext:
    """What ranks exchange in one layer where each holds a share of every sequence's tokens; of one query token."""

    query: int
    """Elements of one head's query, which every rank of the group gathers."""
    output: int
    """Elements of one head's output, of which every rank computes a part."""
    chosen_bytes: int = 0
    """Candidates that one rank's index chooses, gathered to choose among those of all [B]."""
    gathered_prefix: int = 0
    """Elements of a cached token that prompts gather before they attend to it; 0: their queries and outputs are exchanged."""
    exchanges_new: bool = False
    """Whether prompts exchange queries and outputs without a cached prefix too."""
    beside: int = 0
    """Kernels of a decode step besides those around the exchange."""


class AttentionKind(Spec, ABC):
    """One kind of token mixing. All counts are of one layer; tp shards heads, dcp the tokens of ranks with the same keys."""

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
    def expanded_elements_per_token(self) -> int:
        """Elements of keys and values of all heads that a cached latent is expanded to; 0: it caches keys and values."""
        return 0

    @property
    def shared_context(self) -> SharedContext | None:
        """What ranks exchange that share the tokens of sequences; none: each keeps its state whole."""
        return None

    def context_ranks(self, tp: ArrayLike) -> Floats:
        """Most ranks of a tensor-parallel group that can share a sequence's tokens: those that hold the same keys."""
        return np.ones_like(as_floats(tp))

    def shared_core(
        self,
        machine: Machine,
        sequences: Floats,
        query_tokens: Floats,
        tp: Floats,
        dcp: Floats,
        context_tokens: float,
    ) -> Operators:
        """Operators of `decode` that differ where dcp ranks share the tokens, (rows,) each: the same ones for dcp 1.

        A rank attends with the query heads of its whole group to its own share of the keys. None where state stays whole.
        """
        del machine, sequences, query_tokens, tp, dcp, context_tokens
        return {}

    def shared_state_bytes(self, context_tokens: ArrayLike, tp: ArrayLike, dcp: ArrayLike, recipe: PrecisionRecipe) -> Floats:
        """`state_bytes` on one of dcp ranks that share the tokens, an equal share each [B]."""
        held = as_floats(context_tokens) / as_floats(dcp) if self.shared_context else context_tokens
        return self.state_bytes(held, tp, recipe)

    def heads_alike(self, tp: Floats, dcp: ArrayLike, phase: Phase) -> Floats:
        """Ranks that the query heads are split over while their core runs: fewer where ranks exchange queries."""
        shared = self.shared_context
        whole = shared is None or (phase == "prefill" and shared.gathered_prefix > 0)
        return tp if whole else as_floats(tp / as_floats(dcp))

    @property
    def normed_heads(self) -> bool:
        """Whether a kernel norms queries and keys by head, beside those that follow from the matrices."""
        return False

    @property
    def norms_across_heads(self) -> int:
        """Norms that run over the heads of all ranks, which then add up their sums of squares before each."""
        return 0

    @property
    def absorbed_over_expanded(self) -> float | None:
        """FLOPs of a prompt's core over latents, of those over expanded keys and values; none where it attends one way only."""
        return None

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


def core_inputs(inputs: Mapping[str, float], heads: int) -> dict[str, float]:
    """What a core's measured box is checked against: the query heads on a rank, and its share of the tokens of decode.

    inputs : as of `sources`, with dcp where ranks share the tokens.
    """
    dcp = inputs.get("dcp", 1.0)
    found = {**inputs, "heads": heads / inputs["tp"] * dcp}
    if "context_tokens" in inputs:
        found["context_tokens"] = inputs["context_tokens"] / dcp
    return found


def per_head_rank(heads: int, tp: ArrayLike) -> Floats:
    """Heads of one rank: shared out, at least one (then ranks hold copies)."""
    return np.maximum(heads / np.asarray(tp, dtype=np.float64), 1.0)
