"""No expert parallelism across data-parallel ranks: nothing is exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from cost_models.all_to_all.base import AllToAll, BufferShape, ExchangedTokens, Volumes
from cost_models.arrays import Floats
from cost_models.fitting import Coefficient


class NoExchange(AllToAll):
    """Tensor parallelism alone: every rank holds all tokens already."""

    name = "none"
    gathers = False
    point_to_point = False
    graphless_prefill = False
    fitted: ClassVar[Mapping[str, Coefficient]] = {}

    def volumes(self, traffic: ExchangedTokens) -> Volumes:
        zero = np.zeros(traffic.own_bytes.shape)
        return Volumes(zero, zero, zero)

    def buffer_bytes(self, shape: BufferShape) -> Floats:
        return np.zeros(len(shape.tokens))
