"""Which links a group of ranks talks over: the scale-up domain, the NICs, or both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats
from cost_models.specs.hardware import HardwareSpec


@dataclass(frozen=True, slots=True)
class Links:
    """Line rates per GPU, one direction, and the size of the scale-up domain."""

    domain_gpus: int
    scale_up_bytes_per_s: float
    scale_out_bytes_per_s: float
    node_gpus: int = 8
    """GPUs of one host; a domain may span several."""

    @classmethod
    def of(cls, hardware: HardwareSpec) -> Links:
        up = hardware.scale_up
        return cls(up.domain_gpus, up.bytes_per_s.value, hardware.scale_out_bytes_per_s, hardware.gpus_per_node)

    def domains(self, ranks: ArrayLike) -> Floats:
        """Scale-up domains that a group of consecutive ranks spans."""
        return as_floats(np.ceil(as_floats(ranks) / self.domain_gpus))

    def nodes_in_domain(self, ranks: ArrayLike) -> Floats:
        """Hosts that the ranks of a group inside one domain span."""
        return as_floats(np.ceil(np.minimum(as_floats(ranks), self.domain_gpus) / min(self.node_gpus, self.domain_gpus)))
