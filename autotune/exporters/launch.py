"""A launch as data: what runs where, before any target (bash, Slurm, Kubernetes, ...) says it in its own words.

Engines make a `Launch` from a plan; targets render it. Values are plain text, numbers, or shell text of a few variables that a
target fills in: NODE_RANK, HEAD_ADDRESS, NODE_ADDRESS, and what `Process.optional` holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.documents.deployment import Pool, PoolRole
from autotune.exporters.base import Argument, Beside, NodePlacement, Required, Script
from autotune.exporters.quoting import Shell


@dataclass(frozen=True, slots=True)
class PerRank:
    """A node that starts one server for each of its data-parallel ranks (vLLM-Ascend)."""

    servers: int
    """On one node."""
    tp: int
    chips_per_npu: int


@dataclass(frozen=True, slots=True)
class Process:
    """What every node of one kind runs."""

    name: str
    """Of its script, without ending: decode_node, decode_head, decode_worker."""
    title: str
    comments: tuple[str, ...]
    required: tuple[Required, ...]
    """Variables whose values only the place of launch knows."""
    optional: dict[str, str]
    """Variables with a default: MODEL, SERVED_NAME, PORT, ..."""
    place: NodePlacement
    environment: dict[str, str | Shell]
    command: tuple[str | Shell, ...]
    arguments: tuple[Argument, ...]
    beside: tuple[Beside, ...] = ()
    defaults: dict[str, str] = field(default_factory=dict)
    """Environment that the operator's own wins over."""
    network: dict[str, str | Shell] = field(default_factory=dict)
    """Environment where NIC names an interface."""
    strides: dict[str, int] = field(default_factory=dict)
    """Ports, and how far they move from slot to slot of a shared node."""
    offsets: dict[str, int] = field(default_factory=dict)
    """Ports that lie so far from PORT."""
    per_rank: PerRank | None = None
    ranks: int = 0
    """MPI ranks that it starts on all nodes of the instance from the first of them; 0 where every node starts its own."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its settings file holds (TensorRT-LLM), which lies beside as SETTINGS."""

    def variables(self) -> dict[str, str]:
        """Values of the optional variables and of the ports that hang on PORT, of an instance that shares its node with none."""
        found = dict(self.optional)
        for name, offset in self.offsets.items():
            found[name] = str(int(found["PORT"]) + offset)
        return found

    def exported(self) -> dict[str, str | Shell]:
        """Environment of the engine, beside variables."""
        return {**self.defaults, **self.environment}


@dataclass(frozen=True, slots=True)
class LaunchPool:
    """Identical instances, each on `place.nodes` nodes."""

    role: PoolRole
    pool: Pool
    hardware: str
    """Catalogue name."""
    precision: str
    vendor: str
    place: NodePlacement
    processes: tuple[Process, ...]
    """One for every node; or the head's and then the workers'."""
    fabric: bool
    """Whether NVLink joins nodes and an instance, or the pair, uses it."""
    rdma: bool
    """Whether an instance or the hand-over of caches goes over NICs."""

    @property
    def instances(self) -> int:
        return self.pool.instances

    @property
    def nodes(self) -> int:
        """Of all instances, each on nodes of its own or sharing one with others."""
        place = self.place
        return self.instances * place.nodes if place.per_node == 1 else -(-self.instances // place.per_node)

    @property
    def gpus(self) -> int:
        return self.instances * self.place.nodes * self.place.gpus_per_node

    @property
    def head(self) -> Process:
        """What the first node of an instance runs."""
        return self.processes[0]

    @property
    def worker(self) -> Process:
        """What its other nodes run."""
        return self.processes[-1]

    @property
    def servers_per_instance(self) -> int:
        """Nodes that answer requests: all of a data-parallel vLLM instance, else the head."""
        return self.place.nodes if self.every_node_serves else 1

    @property
    def every_node_serves(self) -> bool:
        return any(argument.flag == "--data-parallel-hybrid-lb" for argument in self.head.arguments)


@dataclass(frozen=True, slots=True)
class Router:
    """One endpoint in front of a prefill and a decode pool."""

    command: Shell
    """Empty where the program is named by PROXY."""
    source: str
    """Where it comes from."""
    template: str
    comments: tuple[str, ...]
    required: tuple[Required, ...]
    optional: dict[str, str]
    bootstrap_offset: int


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The load that a service was planned for."""

    command: Shell
    comments: tuple[str, ...]
    required: tuple[Required, ...]
    optional: dict[str, str]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that starts a plan."""

    name: str
    """Model and hardware, e.g. deepseek-r1-gb200-nvl72."""
    engine: str
    version: str
    model: str
    """Catalogue name, or a file's own."""
    precision: str
    """The deployment's; a pool may have its own."""
    phase: PoolRole
    pools: tuple[LaunchPool, ...]
    router: Router | None = None
    benchmark: Benchmark | None = None
    files: tuple[Script, ...] = ()
    """Data that lies beside: expert maps."""

    @property
    def gpus(self) -> int:
        return sum(pool.gpus for pool in self.pools)
