"""What every all-to-all backend answers; steps, memory, fits and rules ask nothing else.

A backend is one module with one class. To add one: its file, its line in registry.py (and in `dispatch.BackendName`), its
entries `dispatch` and `combine` in the calibrations, its choice in the engines' documents with the versions that have it. The
contract suite tests/contracts/test_all_to_all.py runs over the registry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cost_models.all_to_all.routing import expected_destinations, expected_domains, reachable_share
from cost_models.arrays import Floats
from cost_models.fitting import Coefficient

ExpertKernel = Literal["fused", "masked", "contiguous"]
"""What the arrival of tokens lets an engine run its experts with."""

START = {
    "start_s": Coefficient(1.2e-5, 5e-7, 1e-4),
    "scale_up_efficiency": Coefficient(0.6, 0.05, 0.98, prior=0.5),
}
SHARPNESS = {"sharpness": Coefficient(1.0, 0.8, 4.0, prior=0.4)}
PER_RANK = {"start_per_rank_s": Coefficient(1e-6, 1e-8, 1e-5)}
PER_LOG2_RANKS = {"start_per_log2_ranks_s": Coefficient(3e-6, 1e-7, 3e-5)}


@dataclass(frozen=True, slots=True)
class Volumes:
    """Bytes that one rank moves over each link in one direction, and its gathered buffer."""

    scale_up_bytes: Floats
    scale_out_bytes: Floats
    buffer_bytes: Floats


@dataclass(frozen=True, slots=True)
class ExchangedTokens:
    """What one rank sends and where it may go, (rows,) each."""

    own_bytes: Floats
    """Its tokens on the wire, once each."""
    ranks: Floats
    domains: Floats
    """Scale-up domains that the ranks span."""
    top_k: int
    groups: int
    top_k_groups: int
    contiguous: NDArray[np.bool_]
    """Experts lie in their original order."""

    @property
    def local_ranks(self) -> Floats:
        """Ranks of one domain."""
        return self.ranks / self.domains

    @property
    def remote_share(self) -> Floats:
        """Share of the domains that are not a rank's own."""
        return 1 - 1 / self.domains

    @property
    def hit_domains(self) -> Floats:
        """Domains that one token's experts are on; rebalanced experts keep their groups where these divide evenly."""
        grouped = self.contiguous | (np.mod(self.groups, self.domains) == 0)
        return expected_domains(self.top_k, self.domains, self.groups, self.top_k_groups, grouped)

    @property
    def remote_copies_bytes(self) -> Floats:
        """One copy for each distinct rank but its own that a token's experts are on."""
        reachable = reachable_share(self.ranks, self.groups, self.top_k_groups, self.contiguous)
        share = np.where(self.contiguous, reachable, self.hit_domains / self.domains)
        hit = expected_destinations(self.top_k, self.ranks, share)
        return hit * self.own_bytes * (self.ranks - 1) / self.ranks


@dataclass(frozen=True, slots=True)
class BufferShape:
    """What decides a backend's buffers on one rank, (rows,) each."""

    tokens: Floats
    """Most that a rank sends at once."""
    ranks: Floats
    slots: Floats
    """Experts and redundant experts."""
    hidden: int
    payload_bytes: float
    """Of one dispatched token."""
    pinned_bytes: float
    """What an engine sets aside for NVLink and RDMA buffers whatever is sent."""


class AllToAll(ABC):
    """One way to dispatch tokens to their experts' ranks and to combine the results."""

    name: ClassVar[str]
    gathers: ClassVar[bool] = False
    """Every rank holds every token: activations and expert rows are those of the whole group."""
    point_to_point: ClassVar[bool] = True
    """Ranks send to whom they must, so that the busiest rank sets the pace."""
    copies_per_expert: ClassVar[bool] = False
    """A token arrives once for each of its experts, not once a rank."""
    waits_for_counts: ClassVar[bool] = False
    """The host waits for what arrives before it launches the experts: no CUDA graph, launches exposed."""
    expert_kernel: ClassVar[ExpertKernel] = "fused"
    graphless_prefill: ClassVar[bool] = True
    """In prefill, where no graph is captured, the engine may take the contiguous kernel instead of the fused one."""
    prefills_as: ClassVar[str | None] = None
    """Backend that stands in while prompts are computed, where this one is for decode."""
    fitted: ClassVar[Mapping[str, Coefficient]]
    """What timings inside one domain determine of DispatchCoefficients."""

    @abstractmethod
    def volumes(self, traffic: ExchangedTokens) -> Volumes:
        """Bytes on the busiest direction of one rank for one dispatch or combine, under balanced load."""

    @abstractmethod
    def buffer_bytes(self, shape: BufferShape) -> Floats:
        """Memory that its buffers take on one rank [B]."""
