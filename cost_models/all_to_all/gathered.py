"""All-gather and reduce-scatter (NCCL): every token goes to every rank, whoever needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from cost_models.all_to_all.base import PER_RANK, START, AllToAll, BufferShape, ExchangedTokens, Volumes
from cost_models.arrays import Floats, as_floats
from cost_models.fitting import Coefficient


class AllGatherReduceScatter(AllToAll):
    """A ring across domains, an all-gather inside: the NIC carries what other domains hold of this rank's share.

    A ring has a step for each rank: short messages take 9, 12, 18 and 28 us on 2, 4, 8 and 16 ranks of a GB200 NVL72.
    """

    name = "allgather_reducescatter"
    gathers = True
    point_to_point = False
    fitted: ClassVar[Mapping[str, Coefficient]] = {
        **START,
        **PER_RANK,
        "mid_factor": Coefficient(1.2, 0.01, 6.0),
        "mid_exponent": Coefficient(0.5, 0.05, 0.9, prior=0.5),
        "copy_bytes_per_s": Coefficient(2.5e12, 1e11, 2e13),
    }

    def volumes(self, traffic: ExchangedTokens) -> Volumes:
        own, ranks = traffic.own_bytes, traffic.ranks
        return Volumes((ranks - 1) * own, (traffic.domains - 1) * own, ranks * own)

    def buffer_bytes(self, shape: BufferShape) -> Floats:
        """Gathered tokens and their results in BF16."""
        return as_floats(shape.ranks * shape.tokens * 4 * shape.hidden)
