"""DeepEP normal: one copy per token and rank, crossing to each destination node once over RDMA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from cost_models.all_to_all.base import SHARPNESS, START, AllToAll, BufferShape, ExchangedTokens, ExpertKernel, Volumes
from cost_models.arrays import Floats
from cost_models.fitting import Coefficient


class DeepEpNormal(AllToAll):
    """Counts are exchanged first and the host waits for them; experts run a contiguous kernel."""

    name = "deepep_normal"
    waits_for_counts = True
    expert_kernel: ClassVar[ExpertKernel] = "contiguous"
    fitted: ClassVar[Mapping[str, Coefficient]] = {**START, **SHARPNESS}

    def volumes(self, traffic: ExchangedTokens) -> Volumes:
        across = np.where(traffic.domains > 1, traffic.hit_domains * traffic.own_bytes * traffic.remote_share, 0.0)
        return Volumes(traffic.remote_copies_bytes, across, np.zeros(traffic.own_bytes.shape))

    def buffer_bytes(self, shape: BufferShape) -> Floats:
        return np.full(len(shape.tokens), shape.pinned_bytes)
