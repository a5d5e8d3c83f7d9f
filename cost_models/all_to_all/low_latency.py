"""DeepEP low-latency: one copy per token and expert, straight to the expert's rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from cost_models.all_to_all.base import SHARPNESS, START, AllToAll, BufferShape, ExchangedTokens, ExpertKernel, Volumes
from cost_models.arrays import Floats, as_floats
from cost_models.fitting import Coefficient


class DeepEpLowLatency(AllToAll):
    """Sizes are fixed beforehand, so that a CUDA graph holds it; experts run a masked kernel. Prompts go the normal way."""

    name = "deepep_low_latency"
    copies_per_expert = True
    expert_kernel: ClassVar[ExpertKernel] = "masked"
    prefills_as = "deepep_normal"
    fitted: ClassVar[Mapping[str, Coefficient]] = {
        **START,
        "start_per_expert_s": Coefficient(1e-8, 1e-10, 1e-7),
        **SHARPNESS,
    }

    def volumes(self, traffic: ExchangedTokens) -> Volumes:
        copies = traffic.top_k * traffic.own_bytes
        up = copies * (traffic.local_ranks - 1) / traffic.ranks
        return Volumes(up, copies * traffic.remote_share, np.zeros(copies.shape))

    def buffer_bytes(self, shape: BufferShape) -> Floats:
        """Send and receive, twice each, for every expert: BF16 values, or FP8 with a scale per 128."""
        return as_floats(4 * shape.slots * shape.tokens * (2 * shape.hidden + shape.hidden / 32))
