"""Variables that public recipes set and that decide whether, or how fast, an engine of several nodes works.

Read from the recipes of llm-d (guides/wide-ep-lws), NVIDIA Dynamo (recipes/deepseek-r1), vllm-project/recipes, the 107
DeepSeek-R1 recipes of NVIDIA/srt-slurm and, for TensorRT-LLM, the 330 of its recipes/trtllm (2026). All are
defaults: what the operator exports wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autotune.documents.deployment import Deployment
from autotune.exporters.base import OTHER_SIDE, NodePlacement
from autotune.exporters.quoting import Shell
from cost_models.releases import version_key
from search_spaces.rules import Subject

START_LIMIT_S = 3600
"""A cold start over shared storage with kernel builds and graph capture is longer than the engines' 600 s."""
NVSHMEM = ("deepep", "deepep_low_latency", "deepep_high_throughput")
"""All-to-alls that talk over NVSHMEM."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where a script runs."""

    deployment: Deployment
    subject: Subject
    place: NodePlacement

    @property
    def vendor(self) -> str:
        return self.subject.hardware.gpu.vendor

    @property
    def several_nodes(self) -> bool:
        """Whether an instance spans nodes."""
        return self.place.nodes > 1

    @property
    def fabric(self) -> bool:
        """Whether NVLink joins nodes, as in NVL72."""
        hardware = self.subject.hardware
        return hardware.scale_up.domain_gpus > hardware.gpus_per_node

    @property
    def inside_a_domain(self) -> bool:
        """Whether an instance lies inside one scale-up domain."""
        return self.deployment.pool.layout.gpus <= self.subject.hardware.scale_up.domain_gpus

    @property
    def pair(self) -> bool:
        """Whether it is one side of a prefill/decode pair."""
        return self.deployment.phase in OTHER_SIDE

    @property
    def pair_in_a_domain(self) -> bool:
        """Whether both sides of a pair lie inside one scale-up domain that joins nodes."""
        pools = self.deployment.pools
        if not self.pair or not self.fabric or len(pools) < 2 or len({pool.hardware for pool in pools.values()}) > 1:
            return False
        return sum(pool.layout.gpus * pool.instances for pool in pools.values()) <= self.subject.hardware.scale_up.domain_gpus

    @property
    def nvshmem(self) -> bool:
        """Whether its all-to-all talks over NVSHMEM."""
        choice = self.subject.choice()
        return choice is not None and choice.value in NVSHMEM


@dataclass(frozen=True, slots=True)
class LaunchSetting:
    """A variable and when it is set."""

    name: str
    value: str
    when: Callable[[Where], bool]
    why: str
    engines: tuple[str, ...] = ("vllm", "sglang")
    since: str | None = None


SETTINGS = (
    LaunchSetting("NCCL_MNNVL_ENABLE", "1", lambda w: w.fabric and w.several_nodes, "collectives over NVLink between nodes"),
    LaunchSetting("NCCL_CUMEM_ENABLE", "1", lambda w: w.fabric and w.several_nodes, "the memory that takes"),
    LaunchSetting("NCCL_NVLS_ENABLE", "1", lambda w: w.fabric and w.several_nodes, "reductions in the switches", ("vllm",)),
    LaunchSetting("VLLM_USE_NCCL_SYMM_MEM", "1", lambda w: w.fabric and w.several_nodes, "symmetric memory", ("vllm",)),
    LaunchSetting("UCX_CUDA_IPC_ENABLE_MNNVL", "y", lambda w: w.pair_in_a_domain, "KV caches over NVLink between nodes"),
    LaunchSetting("UCX_TLS", "cuda_copy,cuda_ipc,tcp", lambda w: w.pair_in_a_domain, "and not over NICs"),
    LaunchSetting("UCX_MEMTYPE_CACHE", "n", lambda w: w.pair_in_a_domain, "fabric memory is not cached"),
    LaunchSetting("NVSHMEM_REMOTE_TRANSPORT", "ibgda", lambda w: w.nvshmem and not w.inside_a_domain, "DeepEP between domains"),
    LaunchSetting("NVSHMEM_IB_ENABLE_IBGDA", "1", lambda w: w.nvshmem and not w.inside_a_domain, "DeepEP between domains"),
    LaunchSetting("VLLM_ENGINE_READY_TIMEOUT_S", str(START_LIMIT_S), lambda _: True, "cold starts", ("vllm",), "0.14"),
    LaunchSetting("VLLM_ROCM_USE_AITER", "1", lambda w: w.vendor == "amd", "AITER kernels: the fast ones on ROCm", ("vllm",)),
    LaunchSetting("SGLANG_USE_AITER", "1", lambda w: w.vendor == "amd", "AITER kernels: the fast ones on ROCm", ("sglang",)),
    LaunchSetting("VLLM_SKIP_P2P_CHECK", "1", lambda _: True, "start time", ("vllm",)),
    LaunchSetting(
        "VLLM_RANDOMIZE_DP_DUMMY_INPUTS", "1", lambda w: w.deployment.pool.dp > 1, "idle ranks route evenly", ("vllm",)
    ),
    LaunchSetting("SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT", str(START_LIMIT_S), lambda w: w.pair, "cold starts", ("sglang",)),
    LaunchSetting("SGLANG_DISAGGREGATION_WAITING_TIMEOUT", str(START_LIMIT_S), lambda w: w.pair, "bursts", ("sglang",)),
    LaunchSetting("SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE", "100", lambda w: w.pair, "long steps", ("sglang",)),
    LaunchSetting("TRTLLM_ENABLE_PDL", "1", lambda _: True, "kernels start while the one before ends", ("trtllm",)),
    LaunchSetting("TRTLLM_SERVER_DISABLE_GC", "1", lambda _: True, "no pauses of the server", ("trtllm",)),
    LaunchSetting("TRTLLM_WORKER_DISABLE_GC", "1", lambda _: True, "no pauses of the ranks", ("trtllm",)),
    LaunchSetting("UCX_CUDA_IPC_ENABLE_MNNVL", "n", lambda w: w.pair and not w.fabric, "no NVLink joins nodes", ("trtllm",)),
    LaunchSetting("NCCL_GRAPH_MIXING_SUPPORT", "0", lambda _: True, "graphs that launch faster", ("trtllm",)),
    LaunchSetting("TORCH_DISTRIBUTED_DEFAULT_TIMEOUT", "1800", lambda w: w.several_nodes, "nodes that load later", ("sglang",)),
)


def settings_of(where: Where) -> dict[str, str]:
    """Variables of a script, in order."""
    engine, key = where.subject.engine.name, version_key(where.subject.version)
    return {
        setting.name: setting.value
        for setting in SETTINGS
        if engine in setting.engines and (setting.since is None or key >= version_key(setting.since)) and setting.when(where)
    }


def network_variables(where: Where) -> dict[str, str | Shell]:
    """Variables of the interface that ranks on several nodes find each other over, set where the operator names it in NIC."""
    if not where.several_nodes:
        return {}
    nic = Shell('"$NIC"')
    found: dict[str, str | Shell] = {"GLOO_SOCKET_IFNAME": nic, "NCCL_SOCKET_IFNAME": nic}
    return found | ({"NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME": nic} if where.nvshmem else {})
