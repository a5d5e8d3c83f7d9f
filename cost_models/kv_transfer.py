"""Handing a prompt's KV cache from a prefill to a decode instance: a start-up, and bytes over the links between them."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats
from cost_models.specs.hardware import HardwareSpec


@dataclass(frozen=True, slots=True)
class HandoverCoefficients:
    """Of a connector, per engine."""

    start_s: float
    """Handshake, registration and notification of one hand-over [s]."""
    efficiency: float = 0.8
    """Share of the link's rate that large transfers reach [-]."""
    overlapped: float = 0.0
    """Share of the bytes that are sent while the prompt is still computed (layer or chunk by chunk) [-]."""


def link_bytes_per_s(hardware: HardwareSpec, one_domain: bool) -> float:
    """Of one GPU: its scale-up links where both pools share a domain, else its share of the NICs [B/s]."""
    if one_domain:
        return hardware.scale_up.bytes_per_s.value
    return hardware.scale_out.nic_bits_per_s.value / 8 * hardware.scale_out.nics_per_node / hardware.gpus_per_node


def handover_bytes_s(state_bytes: ArrayLike, link: ArrayLike, c: HandoverCoefficients) -> Floats:
    """Time that hand-overs occupy a link: what is left to send when a prompt is done [s].

    state_bytes : of one GPU of the receiving instance; every tensor-parallel rank takes its own shard, or its copy where
    the cache is not sharded. link : rate of the slower end [B/s].
    """
    return as_floats(as_floats(state_bytes) * (1 - c.overlapped) / (as_floats(link) * c.efficiency))
