"""Kubernetes LeaderWorkerSet: a group of pods for every instance, Services, and the router of a pair.

Schema: kubernetes-sigs/lws config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml (v1).
"""

from __future__ import annotations

import shlex

from autotune.exporters.base import Script
from autotune.exporters.launch import Launch, LaunchPool, Process, Router
from autotune.exporters.targets.base import (
    Document,
    Target,
    TargetOptions,
    manifest,
    plan_annotations,
    printable,
    router_image,
    service_name,
)
from autotune.exporters.targets.bash import bench_scripts
from autotune.exporters.targets.pods import (
    LEADER_WORKER,
    PodShape,
    command_of,
    container,
    known_variables,
    labels,
    metadata,
    pod_spec,
    probes,
    refuse_mpi,
    refuse_unlike,
    shared_objects,
)

SERVES = "autotune/serves"
"""Label of pods that answer requests."""


def _render(launch: Launch, options: TargetOptions) -> list[Script]:
    """launch.yaml, and bench.sh for a machine that reaches the service."""
    refuse_unlike(launch, "lws")
    refuse_mpi(launch, "lws", "dynamo, srt-slurm or bash")
    documents = shared_objects(launch)
    for pool in launch.pools:
        documents.append(_set(launch, pool, options))
    if launch.router is None:
        documents += [_service(launch, pool) for pool in launch.pools]
    else:
        documents += _router(launch, launch.router, options)
    files = [manifest("launch.yaml", documents, f"LeaderWorkerSets of {launch.engine} {launch.version}")]
    return [*files, *bench_scripts(launch)]


def group_spec(launch: Launch, pool: LaunchPool, options: TargetOptions, shape: PodShape = LEADER_WORKER) -> Document:
    """replicas and leaderWorkerTemplate: one group of pods for every instance, made anew together when one of them fails."""
    leader = pod_template(launch, pool, pool.head, options, shape, serves=True)
    worker = pod_template(launch, pool, pool.worker, options, shape, serves=pool.every_node_serves or pool.place.nodes == 1)
    group: Document = {"size": pool.place.nodes, "restartPolicy": "RecreateGroupOnPodRestart"}
    group |= {"leaderTemplate": leader} if leader != worker else {}
    group["workerTemplate"] = worker
    return {"replicas": pool.instances, "startupPolicy": "LeaderCreated", "leaderWorkerTemplate": group}


def pod_template(
    launch: Launch, pool: LaunchPool, process: Process, options: TargetOptions, shape: PodShape, serves: bool
) -> Document:
    """A pod of one kind of node."""
    main = container(launch, pool, process, options, shape, command_of(process, known_variables(process, shape)), serves)
    marked = labels(launch, pool) | ({SERVES: "true"} if serves else {})
    return {
        "metadata": {"labels": marked, "annotations": plan_annotations(launch, pool)},
        "spec": pod_spec(launch, pool, main),
    }


def _set(launch: Launch, pool: LaunchPool, options: TargetOptions) -> Document:
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": metadata(launch, f"{service_name(launch)}-{pool.role}", pool),
        "spec": {**group_spec(launch, pool, options), "networkConfig": {"subdomainPolicy": "Shared"}},
    }


def _service(launch: Launch, pool: LaunchPool) -> Document:
    """One address of an aggregated pool; of one side of a pair, for a router of the operator's."""
    name = f"{service_name(launch)}-{pool.role}-http"
    selector = {**labels(launch, pool), SERVES: "true"}
    return _address(launch, name, selector, int(pool.head.variables()["PORT"]))


def _address(launch: Launch, name: str, selector: dict[str, str], port: int) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(launch, name),
        "spec": {"selector": selector, "ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}]},
    }


def servers(launch: Launch, pool: LaunchPool) -> list[str]:
    """URLs of the pods that answer, by the names that a LeaderWorkerSet gives them."""
    name, port = f"{service_name(launch)}-{pool.role}", pool.head.variables()["PORT"]
    pods = [
        f"{name}-{instance}" + (f"-{node}" if node else "")
        for instance in range(pool.instances)
        for node in range(pool.servers_per_instance)
    ]
    return [f"http://{pod}.{name}:{port}" for pod in pods]


def router_words(launch: Launch, router: Router, urls: dict[str, list[str]]) -> list[str]:
    """The router's command with every server named."""
    words = [router.optional[word[1:]] if word.startswith("$") else word for word in shlex.split(router.command)]
    bootstrap = {pool.role: pool.head.variables().get("BOOTSTRAP_PORT") for pool in launch.pools}
    for role in ("prefill", "decode"):
        for url in urls[role]:
            port = bootstrap[role] if router.bootstrap_offset else None
            words += [f"--{role}", url, *([port] if port else [])]
    return [*words, "--host", "0.0.0.0", "--port", router.optional["PORT"]]  # noqa: S104  (meant to be reached)


def _router(launch: Launch, router: Router, options: TargetOptions) -> list[Document]:
    """A Deployment and its Service."""
    name = f"{service_name(launch)}-router"
    words = router_words(launch, router, {pool.role: servers(launch, pool) for pool in launch.pools})
    port = int(router.optional["PORT"])
    marked = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "autotune"}
    program = 3 if words[0] == "python3" else 1
    main = {
        "name": "router",
        "image": router_image(options, f"a router ({router.source})"),
        "command": words[:program],
        "args": [printable(text, "an argument") for text in words[program:]],
        "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}],
        **probes(),
    }
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": marked},
        "template": {"metadata": {"labels": marked}, "spec": {"terminationGracePeriodSeconds": 30, "containers": [main]}},
    }
    about = {**metadata(launch, name), "labels": marked}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": about, "spec": spec},
        _address(launch, name, marked, port),
    ]


TARGET = Target(
    name="lws",
    title="Kubernetes LeaderWorkerSet",
    render=_render,
    apply="kubectl apply -f launch.yaml",
    validate="kubectl apply --dry-run=server -f launch.yaml",
)
