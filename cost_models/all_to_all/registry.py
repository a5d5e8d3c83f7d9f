"""All backends; their order gives the integer codes of candidate rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cost_models.all_to_all.absent import NoExchange
from cost_models.all_to_all.base import AllToAll
from cost_models.all_to_all.gathered import AllGatherReduceScatter
from cost_models.all_to_all.low_latency import DeepEpLowLatency
from cost_models.all_to_all.normal import DeepEpNormal
from cost_models.all_to_all.one_sided import NvlinkOneSided
from cost_models.arrays import Ints

ALL_TO_ALL: tuple[AllToAll, ...] = (
    NoExchange(),
    AllGatherReduceScatter(),
    DeepEpLowLatency(),
    DeepEpNormal(),
    NvlinkOneSided(),
)
BY_NAME = {backend.name: backend for backend in ALL_TO_ALL}


def rows_whose(backends: Ints, holds: Callable[[AllToAll], bool]) -> NDArray[np.bool_]:
    """Rows whose backend has a property. backends : codes, (rows,)."""
    return np.array([holds(backend) for backend in ALL_TO_ALL])[backends]
