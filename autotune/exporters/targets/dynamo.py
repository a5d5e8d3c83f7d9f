"""NVIDIA Dynamo: a DynamoGraphDeployment with a frontend and a component for every pool.

Schema: ai-dynamo/dynamo deploy/operator/api/v1beta1 (nvidia.com/v1beta1). Options that place ranks on nodes are left out: the
operator adds them to every node of a multinode component (deploy/operator/internal/dynamo/backend_{vllm,sglang,trtllm}.go).
"""

from __future__ import annotations

from autotune.errors import ExportError
from autotune.exporters.base import Script, json_value
from autotune.exporters.launch import Launch, LaunchPool
from autotune.exporters.targets.base import (
    Document,
    Target,
    TargetOptions,
    literal_of,
    manifest,
    plan_annotations,
    printable,
    service_name,
)
from autotune.exporters.targets.bash import bench_scripts
from autotune.exporters.targets.pods import (
    SHARED_MEMORY,
    PodShape,
    container,
    known_variables,
    labels,
    metadata,
    pod_spec,
    probes,
    refuse_lone_pool,
    refuse_unlike,
    run_of,
    shared_objects,
)

PLACED = {
    "vllm": (
        "--port", "--data-parallel-size-local", "--data-parallel-start-rank", "--data-parallel-address",
        "--data-parallel-rpc-port", "--data-parallel-hybrid-lb", "--nnodes", "--node-rank", "--master-addr", "--master-port",
        "--headless", "--kv-transfer-config",
    ),
    "sglang": ("--port", "--host", "--nnodes", "--node-rank", "--dist-init-addr"),
    "trtllm": ("--port", "--host", "--config"),
}  # fmt: skip
"""Options that the operator or the runtime sets."""
RUNTIMES = {"vllm": "dynamo.vllm", "sglang": "dynamo.sglang", "trtllm": "dynamo.trtllm"}
SYSTEM_PORT = 9090
FRONTEND_PORT = 8000
TRANSFER = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_load_failure_policy": "fail"}
TYPES = {"prefill": "prefill", "decode": "decode", "serve": "worker"}


def _render(launch: Launch, options: TargetOptions) -> list[Script]:
    """deploy.yaml, and bench.sh."""
    refuse_unlike(launch, "dynamo")
    if launch.engine not in RUNTIMES:
        raise ExportError(f"dynamo is written for {', '.join(RUNTIMES)}, not for {launch.engine}")
    if options.image is None:
        raise ExportError(
            "dynamo needs an image of its own runtime, whose version no plan holds: name one with --image "
            f"(nvcr.io/nvidia/ai-dynamo/{launch.engine}-runtime:<its version>, one that holds {launch.engine} {launch.version})"
        )
    refuse_lone_pool(launch, "dynamo", "lws")
    components = [_frontend(options), *(_component(launch, pool, options) for pool in launch.pools)]
    graph = {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": metadata(launch, service_name(launch)),
        "spec": {"backendFramework": launch.engine, "components": components},
    }
    about = f"Dynamo graph of {launch.engine} {launch.version}"
    files = [manifest("deploy.yaml", [*shared_objects(launch), graph], about)]
    return [*files, *bench_scripts(launch)]


def _frontend(options: TargetOptions) -> Document:
    main = {
        "name": "main",
        "image": printable(options.image, "the image"),
        "command": ["python3", "-m", "dynamo.frontend"],
        "args": ["--http-port", str(FRONTEND_PORT)],
    }
    return {"name": "Frontend", "type": "frontend", "replicas": 1, "podTemplate": {"spec": {"containers": [main]}}}


def _component(launch: Launch, pool: LaunchPool, options: TargetOptions) -> Document:
    """One pool; an instance over several nodes is a multinode component."""
    shape = PodShape()
    main = container(launch, pool, pool.head, options, shape, run_of(*_words(launch, pool)), serves=False)
    main["ports"] = [{"name": "system", "containerPort": SYSTEM_PORT, "protocol": "TCP"}]
    main |= probes("system") | {"livenessProbe": {**probes("system", "/live")["livenessProbe"]}}
    spec = pod_spec(launch, pool, main)
    main["volumeMounts"] = [mount for mount in main["volumeMounts"] if mount["name"] != "shared-memory"]
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] != "shared-memory"]
    for holder, key in ((main, "volumeMounts"), (spec, "volumes")):
        if not holder[key]:
            del holder[key]
    found: Document = {"name": pool.role, "type": TYPES[pool.role], "replicas": pool.instances, "sharedMemorySize": SHARED_MEMORY}
    if pool.place.nodes > 1:
        found["multinode"] = {"nodeCount": pool.place.nodes}
    about = {"labels": labels(launch, pool), "annotations": plan_annotations(launch, pool)}
    return found | {"podTemplate": {"metadata": about, "spec": spec}}


def _words(launch: Launch, pool: LaunchPool) -> tuple[list[object], list[object]]:
    """The runtime's command and the engine's options for it."""
    process = pool.head
    known = known_variables(process, PodShape())
    words: list[object] = ["--model", known["MODEL"]] if launch.engine in ("vllm", "trtllm") else []
    for argument in process.arguments:
        if argument.flag not in PLACED[launch.engine]:
            words += [literal_of(value, known) for value in argument.words()]
    if launch.engine == "vllm" and pool.role != "serve":
        words += ["--disaggregation-mode", pool.role, "--kv-transfer-config", json_value(TRANSFER)]
    if launch.engine == "trtllm":
        words += ["--extra-engine-args", known["SETTINGS"]]
        words += [] if pool.role == "serve" else ["--disaggregation-mode", pool.role]
    return ["python3", "-m", RUNTIMES[launch.engine]], words


TARGET = Target(
    name="dynamo",
    title="NVIDIA Dynamo DynamoGraphDeployment",
    render=_render,
    apply="kubectl apply -f deploy.yaml",
    validate="kubectl apply --dry-run=server -f deploy.yaml",
)
