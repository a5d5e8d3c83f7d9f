"""One-sided NVLink: one copy per token and rank, written into the destination's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from cost_models.all_to_all.base import PER_LOG2_RANKS, SHARPNESS, START, AllToAll, BufferShape, ExchangedTokens, Volumes
from cost_models.arrays import Floats, as_floats
from cost_models.fitting import Coefficient


class NvlinkOneSided(AllToAll):
    """Ranks write into each other's memory inside a scale-up domain (FlashInfer, TensorRT-LLM)."""

    name = "nvlink_one_sided"
    fitted: ClassVar[Mapping[str, Coefficient]] = {**START, **PER_LOG2_RANKS, **SHARPNESS}

    def volumes(self, traffic: ExchangedTokens) -> Volumes:
        sent = traffic.remote_copies_bytes
        up = sent * (traffic.local_ranks - 1) / np.maximum(traffic.ranks - 1, 1)
        return Volumes(up, sent * traffic.remote_share, np.zeros(sent.shape))

    def buffer_bytes(self, shape: BufferShape) -> Floats:
        """Every rank's tokens as dispatched, and their results in BF16."""
        return as_floats(shape.ranks * shape.tokens * (shape.payload_bytes + 2 * shape.hidden))
