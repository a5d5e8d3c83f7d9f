"""Pods: the part of a launch that every Kubernetes target says alike."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.errors import ExportError
from autotune.exporters.launch import Launch, LaunchPool, Process
from autotune.exporters.quoting import Shell, word
from autotune.exporters.settings import START_LIMIT_S
from autotune.exporters.targets.base import (
    Document,
    TargetOptions,
    engine_image,
    escaped,
    kubernetes_text,
    literal_of,
    plan_annotations,
    printable,
    service_name,
)

PROBE_S = 10
SHARED_MEMORY = "64Gi"
"""Of /dev/shm: engines' processes hand batches over through it, and 64 MiB, the default, stops them (as in Dynamo's recipes)."""
TERMINATION_S = 120
"""Running requests are finished; then the engine is killed."""
MOST_DATA_BYTES = 1_000_000
"""Of a ConfigMap, below the 1 MiB that Kubernetes takes."""
FILES = "/etc/autotune"
GPU_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}
PRODUCTS = {"hgx-h200": "NVIDIA-H200", "hgx-b200": "NVIDIA-B200", "gb200-nvl72": "NVIDIA-GB200"}
"""Hardware -> nvidia.com/gpu.product, where public recipes of ai-dynamo/dynamo (recipes/, 2026) select it; else none is asked."""
ARM = ("gb200-nvl72", "gb300-nvl72", "vr-nvl72")
"""Hardware with Arm hosts, which clusters taint."""
TOKEN_SECRET = "hf-token-secret"  # noqa: S105  (a secret's name)
CLAIM = "compute-domain-channel"


@dataclass(frozen=True, slots=True)
class PodShape:
    """What differs between targets."""

    container: str = "main"
    node_rank: Document | None = None
    """Environment entry's source of NODE_RANK, and of HEAD_ADDRESS: of targets that number nodes."""
    head_address: Document | None = None
    variables: dict[str, str] | None = None
    """Instead of the process's own, e.g. another PORT."""


LEADER_WORKER = PodShape(node_rank={"value": "$(LWS_WORKER_INDEX)"}, head_address={"value": "$(LWS_LEADER_ADDRESS)"})
"""LeaderWorkerSet puts these into every container, ahead of its own (pkg/utils/pod/pod_utils.go)."""


def refuse_mpi(launch: Launch, target: str, instead: str) -> None:
    """Raises ExportError for instances whose nodes MPI joins, and for the router that reads its servers from a file."""
    for pool in launch.pools:
        if pool.head.ranks:
            raise ExportError(
                f"{target} starts every node by itself; MPI joins the {pool.place.nodes} nodes of a {launch.engine} {pool.role} "
                f"instance: use --format {instead}"
            )
    if launch.router is not None and launch.engine == "trtllm":
        raise ExportError(f"{target} has no file for trtllm-serve disaggregated to read its servers from: use --format {instead}")


def refuse_unlike(launch: Launch, target: str) -> None:
    """Raises ExportError for what no pod says: engines that start a server per rank from one script."""
    for pool in launch.pools:
        if pool.vendor not in GPU_RESOURCES or any(process.per_rank for process in pool.processes):
            raise ExportError(
                f"{target} is not written for {launch.engine} (one server per rank of a node): use --format bash or sbatch"
            )


def refuse_lone_pool(launch: Launch, target: str, instead: str) -> None:
    """Raises ExportError for one side of a pair, where a target starts whole services."""
    if launch.phase != "serve":
        raise ExportError(f"{target} starts whole services: this plan holds a {launch.phase} pool alone; use --format {instead}")


def known_variables(process: Process, shape: PodShape) -> dict[str, str]:
    """Variables whose values are written where they are used."""
    files = {item.name: f"{FILES}/{item.file}" for item in process.beside}
    return {"NIC": "eth0", **process.variables(), **files, **(shape.variables or {})}


def command_of(process: Process, known: dict[str, str]) -> Document:
    """command and args of a container: words as they are, or, where one must be worked out, one line for a shell."""
    arguments = [value for argument in process.arguments for value in argument.words()]
    return run_of([literal_of(value, known) for value in process.command], [literal_of(value, known) for value in arguments])


def run_of(program: list[object], arguments: list[object]) -> Document:
    """The same of any words."""
    texts = [kubernetes_text(value) for value in (*program, *arguments)]
    if None not in texts:
        return {"command": texts[: len(program)], "args": texts[len(program) :]}
    line = " ".join(_shell_word(value) for value in (*program, *arguments))
    return {"command": ["/bin/bash", "-c"], "args": [f"exec {line}"]}


def _shell_word(value: object) -> str:
    """As a shell reads it once Kubernetes has read it."""
    return word(value) if isinstance(value, Shell) else escaped(word(printable(value, "an argument")))


def environment_of(pool: LaunchPool, process: Process, shape: PodShape) -> list[Document]:
    """Variables that the place fills in, then those of the engine."""
    found: list[Document] = [{"name": "NODE_ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    if pool.place.nodes > 1:
        sources = {"NODE_RANK": shape.node_rank, "HEAD_ADDRESS": shape.head_address}
        found += [{"name": name, **source} for name, source in sources.items() if source is not None]
    known = known_variables(process, shape)
    for name, value in (process.exported() | (process.network if pool.place.nodes > 1 else {})).items():
        text = kubernetes_text(literal_of(value, known))
        if text is None:
            raise ExportError(f"{name} is worked out by a shell ({value}), which an environment of a pod is not")
        found.append({"name": name, "value": text})
    return found


def probes(port: str = "http", path: str = "/health") -> Document:
    """Startup as long as a cold start takes; then readiness, and liveness that forgives a long step."""
    get = {"httpGet": {"path": path, "port": port}}
    return {
        "startupProbe": {**get, "periodSeconds": PROBE_S, "timeoutSeconds": 5, "failureThreshold": START_LIMIT_S // PROBE_S},
        "readinessProbe": {**get, "periodSeconds": PROBE_S, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**get, "periodSeconds": 30, "timeoutSeconds": 10, "failureThreshold": 10},
    }


def resources_of(pool: LaunchPool, options: TargetOptions) -> Document:
    """GPUs, NICs where traffic takes them, and the claim on a memory domain where NVLink joins nodes."""
    gpus = str(pool.place.gpus_per_node)
    limits = {GPU_RESOURCES[pool.vendor]: gpus}
    if pool.rdma:
        limits[printable(options.rdma_resource, "the RDMA resource")] = gpus
    return {"limits": limits, "requests": dict(limits), **({"claims": [{"name": CLAIM}]} if pool.fabric else {})}


def container(
    launch: Launch, pool: LaunchPool, process: Process, options: TargetOptions, shape: PodShape, run: Document, serves: bool
) -> Document:
    """The engine's container; run : its command and args."""
    found: Document = {"name": shape.container, "image": engine_image(launch, pool.vendor, options), **run}
    found["env"] = environment_of(pool, process, shape)
    found["envFrom"] = [{"secretRef": {"name": TOKEN_SECRET, "optional": True}}]
    if serves:
        found["ports"] = [{"name": "http", "containerPort": int(known_variables(process, shape)["PORT"]), "protocol": "TCP"}]
        found |= probes()
    found["resources"] = resources_of(pool, options)
    if pool.rdma or pool.fabric:
        found["securityContext"] = {"capabilities": {"add": ["IPC_LOCK"]}}
    mounts: list[Document] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]  # noqa: S108  (where engines look for it)
    if process.beside:
        mounts.append({"name": "files", "mountPath": FILES, "readOnly": True})
    return found | {"volumeMounts": mounts}


def pod_spec(launch: Launch, pool: LaunchPool, main: Document, more: Document | None = None) -> Document:
    """A pod around its container."""
    name = service_name(launch)
    volumes: list[Document] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}}]
    if any(mount["name"] == "files" for mount in main["volumeMounts"]):
        volumes.append({"name": "files", "configMap": {"name": f"{name}-files"}})
    found: Document = {"terminationGracePeriodSeconds": TERMINATION_S, **(more or {}), "containers": [main], "volumes": volumes}
    if pool.hardware in PRODUCTS:
        found["nodeSelector"] = {"nvidia.com/gpu.product": PRODUCTS[pool.hardware]}
    found["tolerations"] = [{"key": GPU_RESOURCES[pool.vendor], "operator": "Exists", "effect": "NoSchedule"}]
    if pool.hardware in ARM:
        found["tolerations"].append({"key": "kubernetes.io/arch", "operator": "Exists", "effect": "NoSchedule"})
    if pool.fabric:
        found["resourceClaims"] = [{"name": CLAIM, "resourceClaimTemplateName": f"{name}-channel"}]
    return found


def labels(launch: Launch, pool: LaunchPool | None = None) -> dict[str, str]:
    """Of every object, and of one pool's."""
    name = service_name(launch)
    found = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "autotune"}
    return found | ({"autotune/role": pool.role} if pool else {})


def metadata(launch: Launch, name: str, pool: LaunchPool | None = None) -> Document:
    """Of an object."""
    return {"name": name, "labels": labels(launch, pool), "annotations": plan_annotations(launch, pool)}


def shared_objects(launch: Launch) -> list[Document]:
    """Files as a ConfigMap, and a ComputeDomain where memory is shared over NVLink between nodes.

    numNodes 0: the domain is of the nodes that its pods come to lie on (NVIDIA DRA driver, 25.8 and later).
    """
    name, found = service_name(launch), []
    if launch.files:
        data = {file.name: printable(file.text, file.name) for file in launch.files}
        if (size := sum(len(text.encode()) for text in data.values())) > MOST_DATA_BYTES:
            raise ExportError(
                f"the plan's files have {size:,} bytes, a ConfigMap holds {MOST_DATA_BYTES:,}: mount it from a volume"
            )
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(launch, f"{name}-files"), "data": data})
    if any(pool.fabric for pool in launch.pools):
        channel = {"resourceClaimTemplate": {"name": f"{name}-channel"}}
        found.append({
            "apiVersion": "resource.nvidia.com/v1beta1", "kind": "ComputeDomain", "metadata": metadata(launch, f"{name}-domain"),
            "spec": {"numNodes": 0, "channel": channel},
        })  # fmt: skip
    for pool in launch.pools:
        missing = [item.file for item in pool.head.beside if item.file not in {file.name for file in launch.files}]
        if missing:
            raise ExportError(f"the plan holds no {missing[0]}: search with recorded loads, or make it with `autotune place`")
    return found
