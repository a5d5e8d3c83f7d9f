"""Hardware specification: datasheet facts of one cluster type, un-derated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cost_models.errors import MissingFactError
from cost_models.specs.base import Fact, Spec
from cost_models.specs.bounds import within

MOST_GPUS = 1_000_000
Bytes = Annotated[Fact, within(1e6, 1e16)]
BytesPerS = Annotated[Fact, within(1e3, 1e17)]
Flops = Annotated[Fact, within(1e6, 1e22)]


class GpuSpec(Spec):
    """One schedulable accelerator (a GPU, or one NPU)."""

    name: str
    """Marketing name, e.g. GB200; calibrations are keyed on it."""
    vendor: str = Field(min_length=1)
    """Lower case; engine documents say whose accelerators they run on."""
    architecture: str
    """Kernel family the GPU runs: hopper, blackwell, cdna4, ascend."""
    processors: Annotated[Fact, within(1, 1e6)]
    """Streaming multiprocessors (or AI cores)."""
    hbm_nominal_bytes: Bytes
    """Capacity as sold."""
    hbm_visible_bytes: Bytes
    """Capacity as the driver reports it; memory plans use this one."""
    hbm_bytes_per_s: BytesPerS
    flops_per_s: dict[str, Flops]
    """Dense tensor throughput by compute dtype (bf16, fp8, int8, nvfp4); fp32 that of the plain units."""

    def peak_flops_per_s(self, dtype: str) -> float:
        """Dense peak of a compute dtype [FLOP/s]; raises MissingFactError when there is none."""
        if dtype not in self.flops_per_s:
            known = ", ".join(sorted(self.flops_per_s))
            raise MissingFactError(f"{self.name} has no {dtype} tensor throughput; its dtypes are {known}")
        return self.flops_per_s[dtype].value


class ScaleUpSpec(Spec):
    """The fast domain: NVLink, HCCS or UB."""

    technology: str
    domain_gpus: int = Field(gt=0, le=MOST_GPUS)
    bytes_per_s: BytesPerS
    """Per GPU, one direction."""


class ScaleOutSpec(Spec):
    """The network between domains."""

    technology: str
    nic_bits_per_s: BytesPerS
    """Line rate of one NIC, one direction."""
    nics_per_node: int = Field(gt=0, le=MOST_GPUS)


class HostLinkSpec(Spec):
    """The link a GPU loads offloaded weights over."""

    technology: str
    bytes_per_s: BytesPerS
    """Per link, one direction."""
    shared_by_gpus: int = Field(gt=0, le=MOST_GPUS, default=1)


class HardwareSpec(Spec):
    """A cluster type. `autotune hw show NAME` prints one; a user's own file has the same schema."""

    format: Literal["autotune-hardware/1"] = "autotune-hardware/1"
    name: str
    title: str
    gpu: GpuSpec
    gpus_per_node: int = Field(gt=0, le=MOST_GPUS)
    nodes: int | None = Field(default=None, gt=0, le=MOST_GPUS)
    """Size of the cluster where it is fixed; none for a catalogue machine."""
    scale_up: ScaleUpSpec
    scale_out: ScaleOutSpec
    host_link: HostLinkSpec

    @model_validator(mode="after")
    def _domain_holds_whole_nodes(self) -> HardwareSpec:
        if self.scale_up.domain_gpus % self.gpus_per_node:
            raise ValueError(
                f"scale_up.domain_gpus {self.scale_up.domain_gpus} is not a multiple of gpus_per_node {self.gpus_per_node}"
            )
        return self

    @property
    def max_gpus(self) -> int | None:
        """GPUs in the cluster, where its size is fixed."""
        return None if self.nodes is None else self.nodes * self.gpus_per_node

    @property
    def default_gpus(self) -> int:
        """The fixed cluster, otherwise one scale-up domain."""
        return self.max_gpus or self.scale_up.domain_gpus

    @property
    def scale_out_bytes_per_s(self) -> float:
        """NIC bandwidth per GPU, one direction: the node's NICs shared by its GPUs [B/s]."""
        return self.scale_out.nic_bits_per_s.value / 8 * self.scale_out.nics_per_node / self.gpus_per_node

    @property
    def host_link_bytes_per_s(self) -> float:
        """Host-to-device bandwidth per GPU when all GPUs of a link copy at once [B/s]."""
        return self.host_link.bytes_per_s.value / self.host_link.shared_by_gpus
